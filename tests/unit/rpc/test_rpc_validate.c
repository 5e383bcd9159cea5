/* Defaults, presence and the small arithmetic of a request; the limits of every field are tested
 * over the wire in tests/e2e/test_bad_requests.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/base/clock.h"
#include "daemon/rpc_validate.h"

enum { VOCAB = 1000, LENGTH = 64 };

struct fixture {
    struct rpc_model model;
    struct arena *arena;
    Jet__V1__GenerateRequest request;
    Jet__V1__SamplingParams sampling;
    Jet__V1__TokenIds token_ids;
    uint32_t ids[LENGTH + 1];
    struct request_spec spec;
    struct error error;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct plan *plan = calloc(1, sizeof *plan);
    plan->model.vocab = VOCAB;
    plan->limits.max_model_len = LENGTH;
    rpc_model_init(&f->model, plan, NULL);
    free(plan);
    f->arena = arena_create(1 << 20);
    jet__v1__generate_request__init(&f->request);
    jet__v1__sampling_params__init(&f->sampling);
    jet__v1__token_ids__init(&f->token_ids);
    f->token_ids.ids = f->ids;
    f->token_ids.n_ids = 10;
    f->request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    f->request.token_ids = &f->token_ids;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    arena_destroy(f->arena);
    free(f);
    return 0;
}

static enum status validate(struct fixture *f)
{
    f->error = (struct error){0};
    return rpc_validate_generate(&f->model, &f->request, CLOCK_NEVER, f->arena, &f->spec,
                                 &f->error);
}

static void unset_is_neutral(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(validate(f), STATUS_OK);
    assert_int_equal(f->spec.prompt_tokens, 10);
    assert_int_equal(f->spec.max_new_tokens, LENGTH - 10);
    assert_int_equal(f->spec.min_new_tokens, 0);
    assert_int_equal(f->spec.choices, 1);
    assert_int_equal(f->spec.logprobs, -1);
    assert_float_equal(f->spec.sampling.temperature, 1, 0);
    assert_float_equal(f->spec.sampling.top_p, 1, 0);
    assert_float_equal(f->spec.sampling.repetition, 1, 0);
    assert_float_equal(f->spec.sampling.min_p, 0, 0);
    assert_int_equal(f->spec.sampling.top_k, 0);
    assert_false(f->spec.text);
    assert_true(f->spec.deadline == CLOCK_NEVER);
    assert_true(strlen(f->spec.id) > 8);
}

static void unset_is_the_checkpoints_default(void **state)
{
    struct fixture *f = *state;
    struct plan *plan = calloc(1, sizeof *plan);
    plan->model.vocab = VOCAB;
    plan->limits.max_model_len = LENGTH;
    plan->model.has_generation = true;
    plan->model.temperature = 0.5F;
    plan->model.top_p = 0.25F;
    plan->model.min_p = 0.125F;
    plan->model.top_k = 7;
    plan->model.repetition_penalty = 1.5F;
    rpc_model_init(&f->model, plan, NULL);
    free(plan);
    f->request.sampling = &f->sampling;
    f->sampling.top_p_presence_case = JET__V1__SAMPLING_PARAMS__TOP_P_PRESENCE_TOP_P;
    f->sampling.top_p = 0.75F;
    assert_int_equal(validate(f), STATUS_OK);
    assert_float_equal(f->spec.sampling.temperature, 0.5, 0);
    assert_float_equal(f->spec.sampling.top_p, 0.75, 0);
    assert_float_equal(f->spec.sampling.min_p, 0.125, 0);
    assert_int_equal(f->spec.sampling.top_k, 7);
    assert_float_equal(f->spec.sampling.repetition, 1.5, 0);
}

/* A value of its own in every field, so that none can stand for another. */
static void every_field_is_taken(void **state)
{
    struct fixture *f = *state;
    Jet__V1__SamplingParams *s = f->request.sampling = &f->sampling;
    uint32_t stop_ids[] = {21, 22};
    s->temperature_presence_case = JET__V1__SAMPLING_PARAMS__TEMPERATURE_PRESENCE_TEMPERATURE;
    s->temperature = 0.75F;
    s->top_p_presence_case = JET__V1__SAMPLING_PARAMS__TOP_P_PRESENCE_TOP_P;
    s->top_p = 0.5F;
    s->top_k_presence_case = JET__V1__SAMPLING_PARAMS__TOP_K_PRESENCE_TOP_K;
    s->top_k = 40;
    s->min_p_presence_case = JET__V1__SAMPLING_PARAMS__MIN_P_PRESENCE_MIN_P;
    s->min_p = 0.125F;
    s->repetition_penalty_presence_case =
        JET__V1__SAMPLING_PARAMS__REPETITION_PENALTY_PRESENCE_REPETITION_PENALTY;
    s->repetition_penalty = 1.25F;
    s->presence_penalty_presence_case =
        JET__V1__SAMPLING_PARAMS__PRESENCE_PENALTY_PRESENCE_PRESENCE_PENALTY;
    s->presence_penalty = -0.25F;
    s->frequency_penalty_presence_case =
        JET__V1__SAMPLING_PARAMS__FREQUENCY_PENALTY_PRESENCE_FREQUENCY_PENALTY;
    s->frequency_penalty = 1.5F;
    s->seed_presence_case = JET__V1__SAMPLING_PARAMS__SEED_PRESENCE_SEED;
    s->seed = 1234567890123;
    f->request.max_new_tokens = 9;
    f->request.min_new_tokens = 4;
    f->request.n = 3;
    f->request.priority = -5;
    f->request.logprobs_presence_case = JET__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
    f->request.logprobs = 6;
    f->request.stop_token_ids = stop_ids;
    f->request.n_stop_token_ids = 2;
    f->request.ignore_eos = true;
    assert_int_equal(validate(f), STATUS_OK);
    const struct sampling *sampling = &f->spec.sampling;
    assert_float_equal(sampling->temperature, 0.75, 0);
    assert_float_equal(sampling->top_p, 0.5, 0);
    assert_int_equal(sampling->top_k, 40);
    assert_float_equal(sampling->min_p, 0.125, 0);
    assert_float_equal(sampling->repetition, 1.25, 0);
    assert_float_equal(sampling->presence, -0.25, 0);
    assert_float_equal(sampling->frequency, 1.5, 0);
    assert_true(sampling->seed == 1234567890123);
    assert_int_equal(f->spec.max_new_tokens, 9);
    assert_int_equal(f->spec.min_new_tokens, 4);
    assert_int_equal(f->spec.choices, 3);
    assert_int_equal(f->spec.priority, -5);
    assert_int_equal(f->spec.logprobs, 6);
    assert_int_equal(f->spec.stop_id_count, 2);
    assert_int_equal(f->spec.stop_ids[1], 22);
    assert_true(f->spec.ignore_eos && !f->spec.echo && !f->spec.include_stop);
}

/* Also where it is the checkpoint's and the client says nothing. */
static void a_tiny_temperature_is_raised(void **state)
{
    struct fixture *f = *state;
    f->model.sampling.temperature = 1e-6F;
    assert_int_equal(validate(f), STATUS_OK);
    assert_float_equal(f->spec.sampling.temperature, 1e-4, 1e-9);
    f->request.sampling = &f->sampling;
    assert_int_equal(validate(f), STATUS_OK);
    assert_float_equal(f->spec.sampling.temperature, 1e-4, 1e-9);
    f->model.sampling.temperature = 0;
    assert_int_equal(validate(f), STATUS_OK);
    assert_float_equal(f->spec.sampling.temperature, 0, 0);
}

/* Presence: zero that was set is not unset. */
static void zero_is_a_value(void **state)
{
    struct fixture *f = *state;
    f->request.sampling = &f->sampling;
    f->sampling.temperature_presence_case =
        JET__V1__SAMPLING_PARAMS__TEMPERATURE_PRESENCE_TEMPERATURE;
    f->sampling.seed_presence_case = JET__V1__SAMPLING_PARAMS__SEED_PRESENCE_SEED;
    f->request.logprobs_presence_case = JET__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
    assert_int_equal(validate(f), STATUS_OK);
    assert_float_equal(f->spec.sampling.temperature, 0, 0);
    assert_true(f->spec.sampling.seed == 0);
    assert_int_equal(f->spec.logprobs, 0);
}

static void a_repeated_bias_counts_once(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint32_t id;
        float value;
    } given[] = {{5, 1}, {999, 2}, {5, 3}, {0, 4}, {5, -5}};
    Jet__V1__SamplingParams__LogitBiasEntry entries[5], *list[5];
    for (int i = 0; i < 5; i++) {
        jet__v1__sampling_params__logit_bias_entry__init(&entries[i]);
        entries[i].key = given[i].id;
        entries[i].value = given[i].value;
        list[i] = &entries[i];
    }
    f->sampling.n_logit_bias = 5;
    f->sampling.logit_bias = list;
    f->request.sampling = &f->sampling;
    assert_int_equal(validate(f), STATUS_OK);
    assert_int_equal(f->spec.sampling.biases, 3);
    assert_int_equal(f->spec.sampling.bias[0].id, 0);
    assert_int_equal(f->spec.sampling.bias[1].id, 5);
    assert_float_equal(f->spec.sampling.bias[1].value, -5, 0);
    assert_int_equal(f->spec.sampling.bias[2].id, 999);
}

static void lengths_add_up(void **state)
{
    struct fixture *f = *state;
    f->token_ids.n_ids = LENGTH - 1;
    assert_int_equal(validate(f), STATUS_OK);
    assert_int_equal(f->spec.max_new_tokens, 1);
    f->request.max_new_tokens = 2;
    assert_int_equal(validate(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->error.text, "max_new_tokens"));
    f->request.max_new_tokens = 0;
    f->token_ids.n_ids = LENGTH; /* no room for a new token */
    assert_int_equal(validate(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->error.text, "token_ids"));
}

static void a_score_may_fill_the_model(void **state)
{
    struct fixture *f = *state;
    Jet__V1__ScoreRequest request = JET__V1__SCORE_REQUEST__INIT;
    request.prompt_case = JET__V1__SCORE_REQUEST__PROMPT_TOKEN_IDS;
    request.token_ids = &f->token_ids;
    f->token_ids.n_ids = LENGTH;
    struct error error = {0};
    assert_int_equal(rpc_validate_score(&f->model, &request, 5, f->arena, &f->spec, &error),
                     STATUS_OK);
    assert_int_equal(f->spec.kind, REQUEST_SCORE);
    assert_int_equal(f->spec.prompt_tokens, LENGTH);
    assert_true(f->spec.deadline == 5);
    f->token_ids.n_ids++;
    assert_int_equal(rpc_validate_score(&f->model, &request, 5, f->arena, &f->spec, &error),
                     STATUS_INVALID_ARGUMENT);
}

/* Long texts: refused by their bytes alone, in an arena that their ids would not fit into. */
static void a_text_that_cannot_fit_costs_nothing(void **state)
{
    struct fixture *f = *state;
    struct tokenizer *tokenizer;
    assert_int_equal(tokenizer_load(JETD_TEST_DATA "/tokenizer", &tokenizer, &f->error), STATUS_OK);
    f->model.tokenizer = tokenizer;
    f->model.vocab = tokenizer_size(tokenizer);
    enum { BYTES = 1 << 20 };
    char *text = calloc(1, BYTES);
    memset(text, 'x', BYTES);
    Jet__V1__Message message = JET__V1__MESSAGE__INIT, *messages = &message;
    Jet__V1__Chat chat = JET__V1__CHAT__INIT;
    message.role = (ProtobufCBinaryData){.len = 4, .data = (uint8_t *)"user"};
    message.content = (ProtobufCBinaryData){.len = BYTES, .data = (uint8_t *)text};
    chat.n_messages = 1;
    chat.messages = &messages;
    f->request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TEXT;
    f->request.text = message.content;
    arena_destroy(f->arena);
    f->arena = arena_create(4096);
    assert_int_equal(validate(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->error.text, "text: 1048576 bytes are at least"));
    assert_non_null(strstr(f->error.text, "max_model_len 64"));
    f->request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_CHAT;
    f->request.chat = &chat;
    assert_int_equal(validate(f), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(f->error.text, "chat: 1048576 bytes are at least"));
    f->request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TEXT;
    memset(text, ' ', BYTES); /* many spaces are one token: these fit */
    f->request.text.len = 1000;
    assert_int_equal(validate(f), STATUS_OK);
    tokenizer_free(tokenizer);
    free(text);
}

/* However small the arena, the answer is a status. */
static void memory_may_run_out_anywhere(void **state)
{
    struct fixture *f = *state;
    uint32_t stops[40] = {0};
    f->request.n_stop_token_ids = 40;
    f->request.stop_token_ids = stops;
    bool refused = false, taken = false;
    for (size_t limit = 0; limit < 1024; limit += 8) {
        arena_destroy(f->arena);
        f->arena = arena_create(limit);
        enum status status = f->arena ? validate(f) : STATUS_RESOURCE_EXHAUSTED;
        assert_true(status == STATUS_OK || status == STATUS_RESOURCE_EXHAUSTED);
        refused |= status != STATUS_OK;
        taken |= status == STATUS_OK;
    }
    assert_true(refused && taken);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(unset_is_neutral),
        TEST(unset_is_the_checkpoints_default),
        TEST(every_field_is_taken),
        TEST(a_tiny_temperature_is_raised),
        TEST(zero_is_a_value),
        TEST(a_repeated_bias_counts_once),
        TEST(lengths_add_up),
        TEST(a_score_may_fill_the_model),
        TEST(a_text_that_cannot_fit_costs_nothing),
        TEST(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
