/* Request bytes as they come from a client: unpacked, their text checked, validated against a model
 * with a tokenizer and one without. What passes must be a request the engine can take. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/rpc_unpack.h"
#include "daemon/rpc_validate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { LENGTH = 128 };

static struct rpc_model with_text, without_text;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    struct tokenizer *tokenizer = NULL;
    struct error error = {0};
    if (tokenizer_load(JETD_TEST_DATA "/../../ops/demo-model", &tokenizer, &error) != STATUS_OK)
        abort();
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        abort();
    plan->limits.max_model_len = LENGTH;
    plan->model.vocab = tokenizer_size(tokenizer);
    rpc_model_init(&with_text, plan, tokenizer);
    plan->model.vocab = 300;
    rpc_model_init(&without_text, plan, NULL);
    free(plan);
    return 0;
}

static void need(bool condition)
{
    if (!condition)
        abort();
}

static void check_spec(const struct rpc_model *model, const struct request_spec *spec)
{
    need(spec->prompt_tokens >= 1 && spec->choices >= 1 && spec->choices <= REQUEST_CHOICES_MAX);
    for (int i = 0; i < spec->prompt_tokens; i++)
        need(spec->prompt[i] >= 0 && spec->prompt[i] < model->vocab);
    for (int i = 0; i < spec->stop_id_count; i++)
        need(spec->stop_ids[i] >= 0 && spec->stop_ids[i] < model->vocab);
    for (int i = 0; i < spec->sampling.biases; i++)
        need(spec->sampling.bias[i].id >= 0 && spec->sampling.bias[i].id < model->vocab &&
             isfinite(spec->sampling.bias[i].value) &&
             (i == 0 || spec->sampling.bias[i - 1].id < spec->sampling.bias[i].id));
    if (spec->kind == REQUEST_SCORE) {
        need(spec->prompt_tokens <= LENGTH);
        return;
    }
    need(spec->max_new_tokens >= 1 && spec->prompt_tokens + spec->max_new_tokens <= LENGTH);
    need(spec->min_new_tokens >= 0 && spec->min_new_tokens <= spec->max_new_tokens);
    need(spec->logprobs >= -1 && spec->logprobs <= SAMPLE_TOP_MAX);
    need(isfinite(spec->sampling.temperature) && spec->sampling.temperature >= 0);
    need(spec->sampling.top_p > 0 && spec->sampling.top_p <= 1);
    need(spec->sampling.repetition > 0 && isfinite(spec->sampling.repetition));
    need(spec->stop_count == 0 || model->tokenizer);
}

static void check_error(enum status status, const struct error *error)
{
    need(status == error->status && error->text[0]);
    need(status == STATUS_INVALID_ARGUMENT || status == STATUS_FAILED_PRECONDITION ||
         status == STATUS_UNIMPLEMENTED || status == STATUS_RESOURCE_EXHAUSTED);
}

static void validate(const struct rpc_model *model, bool score, const ProtobufCMessage *message,
                     size_t size)
{
    struct arena *arena = arena_create(rpc_request_room(size));
    struct request_spec spec;
    struct error error = {0};
    if (!arena)
        return;
    enum status status =
        score ? rpc_validate_score(model, (const void *)message, CLOCK_NEVER, arena, &spec, &error)
              : rpc_validate_generate(model, (const void *)message, CLOCK_NEVER, arena, &spec,
                                      &error);
    if (status == STATUS_OK)
        check_spec(model, &spec);
    else
        check_error(status, &error);
    arena_destroy(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    bool score = data[0] & 1;
    struct arena *arena = NULL;
    ProtobufCMessage *message = NULL;
    struct error error = {0};
    enum status status = rpc_unpack(score ? &jet__v1__score_request__descriptor
                                          : &jet__v1__generate_request__descriptor,
                                    data + 1, size - 1, &arena, &message, &error);
    if (status != STATUS_OK) {
        check_error(status, &error);
        return 0;
    }
    validate(&with_text, score, message, size);
    validate(&without_text, score, message, size);
    arena_destroy(arena);
    return 0;
}
