/* Token ids through the engine: what a request's events must be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client.h"
#include "daemon/base/clock.h"

static void test_generate(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[40];
    prompt_fill(prompt, 40, 3);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 40, 30);
    spec.sampling.seed = 77;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].ids, 30);
    assert_int_equal(client.seed, 77);
    assert_int_equal(client.prompt_tokens, 40);
    assert_int_equal(client.progresses, 0);
    /* 30 tokens are 30 steps: the length is known ahead, no step runs too many */
    assert_int_equal(fake_executor_steps(bench.executor), 30);
    assert_int_equal(fake_executor_deepest(bench.executor), 2);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_choices_draw_with_their_own_seeds(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[5];
    prompt_fill(prompt, 5, 4);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 5, 20);
    spec.choices = 4;
    spec.sampling.seed = UINT64_MAX; /* + i wraps */
    client_run(&client, &bench, &spec);
    for (int i = 0; i < 4; i++)
        heard_expect(&bench, &spec, i, &client.heard[i]);
    assert_memory_not_equal(client.heard[0].id, client.heard[1].id, 20 * sizeof(int32_t));
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

/* A seed whose output ends by the end-of-sequence id after more than `least` tokens. */
static uint64_t seed_that_stops(const struct bench *bench, struct request_spec *spec, int least)
{
    int32_t ids[CLIENT_IDS];
    enum finish_reason reason;
    for (spec->sampling.seed = 1;; spec->sampling.seed++) {
        int count = expect_ids(bench, spec, 0, ids, &reason);
        if (reason == FINISH_STOP && count > least)
            return spec->sampling.seed;
    }
}

static void test_stop_ids(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[5];
    prompt_fill(prompt, 5, 5);
    bench_open(&bench);
    bench.fake.eos = true;
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 5, 100);
    seed_that_stops(&bench, &spec, 5);
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].matched_id, FAKE_EOS);
    assert_false(client.heard[0].has_matched_stop);
    int without = client.heard[0].ids;
    client_close(&client);

    spec.include_stop = true;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].ids, without + 1);
    assert_int_equal(client.heard[0].id[without], FAKE_EOS);
    client_close(&client);

    spec.ignore_eos = true;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].reason, FINISH_LENGTH);
    client_close(&client);

    int32_t stop_ids[2] = {client.heard[0].id[3], 5};
    spec.stop_ids = stop_ids;
    spec.stop_id_count = 2;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].matched_id, stop_ids[0]);
    client_close(&client);

    spec.min_new_tokens = 60; /* the id that stopped it is banned now */
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_true(client.heard[0].completion_tokens > 60);
    client_close(&client);
    spec.ignore_eos = false;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    for (int i = 0; i < 60; i++)
        assert_true(client.heard[0].id[i] != FAKE_EOS && client.heard[0].id[i] != stop_ids[0]);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_logprobs(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[300];
    prompt_fill(prompt, 300, 6);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 30, 10);
    spec.logprobs = 3;
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.heard[0].logprobs, 10);
    uint64_t seen = 0;
    for (int i = 0; i < 30; i++)
        seen = fake_seen(seen, prompt[i]);
    for (int i = 0; i < 10; i++) {
        const struct heard *heard = &client.heard[0];
        assert_int_equal(heard->tops[i], 3);
        assert_true(heard->logprob[i] == fake_logprob(seen, heard->id[i]));
        seen = fake_seen(seen, heard->id[i]);
    }
    client_close(&client);
    spec.logprobs = 0;
    client_run(&client, &bench, &spec);
    assert_int_equal(client.heard[0].logprobs, 10);
    assert_int_equal(client.heard[0].tops[4], 0);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void prompt_logprobs_expect(const struct heard *heard, const int32_t *prompt, int count,
                                   int first)
{
    uint64_t seen = 0;
    for (int i = 0; i + 1 < count; i++) {
        seen = fake_seen(seen, prompt[i]);
        assert_true(heard->logprob[first + i] == fake_logprob(seen, prompt[i + 1]));
    }
}

static void test_echo(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    static int32_t prompt[450], ids[CLIENT_IDS];
    enum finish_reason reason;
    prompt_fill(prompt, 450, 7);
    bench_open(&bench);
    bench_start(&bench);
    for (int logprobs = -1; logprobs <= 2; logprobs += 3) {
        const int lengths[] = {1, 2, 64, 65, 450};
        for (int i = 0; i < 5; i++) {
            struct request_spec spec = spec_plain("a", prompt, lengths[i], 10);
            spec.echo = true;
            spec.choices = 2;
            spec.logprobs = logprobs;
            client_run(&client, &bench, &spec);
            for (int choice = 0; choice < 2; choice++) {
                const struct heard *heard = &client.heard[choice];
                expect_ids(&bench, &spec, choice, ids, &reason);
                assert_int_equal(heard->ids, lengths[i] + 10);
                assert_memory_equal(heard->id, prompt, (size_t)lengths[i] * sizeof *prompt);
                assert_memory_equal(heard->id + lengths[i], ids, 10 * sizeof *ids);
                assert_int_equal(heard->completion_tokens, 10);
                assert_int_equal(heard->logprobs, logprobs < 0 ? 0 : heard->ids);
                if (logprobs >= 0)
                    prompt_logprobs_expect(heard, prompt, lengths[i], 1);
            }
            client_close(&client);
        }
    }
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_score(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    static int32_t prompt[500];
    const int lengths[] = {1, 2, 65, 66, 129, 500};
    prompt_fill(prompt, 500, 8);
    bench_open(&bench);
    bench.fake.shape.max_rows = 208;
    bench_start(&bench);
    for (int i = 0; i < 6; i++) {
        struct request_spec spec = spec_plain("a", prompt, lengths[i], 0);
        spec.kind = REQUEST_SCORE;
        spec.choices = 0;
        client_run(&client, &bench, &spec);
        assert_int_equal(client.scores, 1);
        assert_int_equal(client.heard[0].ids, lengths[i]);
        assert_memory_equal(client.heard[0].id, prompt, (size_t)lengths[i] * sizeof *prompt);
        assert_int_equal(client.heard[0].logprobs, lengths[i] - 1);
        prompt_logprobs_expect(&client.heard[0], prompt, lengths[i], 0);
        assert_int_equal(client.heard[0].reason, FINISH_STOP);
        assert_int_equal(client.heard[0].status, STATUS_OK);
        client_close(&client);
    }
    bench_settle(&bench);
    bench_close(&bench);
}

/* What scores makes no token, and would be a request of no length in every one of them. */
static void test_times_begin_at_arrival_and_are_of_what_generates(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[20];
    prompt_fill(prompt, 20, 9);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 20, 3);
    spec.ignore_eos = true;
    spec.arrival = clock_now() - 1000 * CLOCK_SECOND;
    client_run(&client, &bench, &spec);
    client_close(&client);
    const struct engine_times *times = engine_times(bench.engine);
    double whole = times->whole.sum;
    assert_true(whole >= 1000 && times->queued.sum >= 1000 && times->first_token.sum >= 1000);
    assert_true(times->prefill.sum < 1000 && times->decode.sum < 1000);
    spec.kind = REQUEST_SCORE;
    spec.choices = spec.max_new_tokens = 0;
    client_run(&client, &bench, &spec);
    client_close(&client);
    assert_true(times->whole.sum == whole);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_progress_of_long_prompts(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    static int32_t prompt[450];
    prompt_fill(prompt, 450, 9);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 450, 5);
    client_run(&client, &bench, &spec);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_int_equal(client.progresses, 3); /* 192, 384, 450 */
    assert_int_equal(client.last_prefilled, 450);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_penalties_and_biases_reach_the_row(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[5];
    struct logit_bias bias[REQUEST_BIASES_MAX];
    prompt_fill(prompt, 5, 10);
    for (int i = 0; i < REQUEST_BIASES_MAX; i++)
        bias[i] = (struct logit_bias){.id = i, .value = (float)i / 64};
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 5, 20);
    spec.sampling = (struct sampling){.temperature = 0.7F,
                                      .top_p = 0.9F,
                                      .min_p = 0.05F,
                                      .top_k = 40,
                                      .repetition = 1.2F,
                                      .presence = 0.25F,
                                      .frequency = 0.5F,
                                      .seed = 77,
                                      .bias = bias,
                                      .biases = REQUEST_BIASES_MAX};
    spec.choices = 4;
    client_run(&client, &bench, &spec);
    for (int i = 0; i < 4; i++)
        heard_expect(&bench, &spec, i, &client.heard[i]);
    client_close(&client);
    bench_settle(&bench);
    const struct fake_drawn *drawn = fake_executor_drawn(bench.executor);
    const struct sample_row *row = &drawn->row;
    assert_true(row->temperature == 0.7F && row->top_p == 0.9F && row->min_p == 0.05F);
    assert_true(row->repetition == 1.2F && row->presence == 0.25F && row->frequency == 0.5F);
    assert_int_equal(row->top_k, 40);
    assert_int_equal(row->flags, SAMPLE_COUNTED);
    assert_true(drawn->counted);
    assert_int_equal(row->bias_count, REQUEST_BIASES_MAX);
    assert_memory_equal(drawn->bias, bias, sizeof bias);
    bench_close(&bench);
}

/* Each penalty alone needs the counts; without one they are left alone. */
static void test_penalties_ask_for_counts(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[5];
    prompt_fill(prompt, 5, 10);
    for (int i = 0; i < 4; i++) {
        bench_open(&bench);
        bench_start(&bench);
        struct request_spec spec = spec_plain("a", prompt, 5, 2);
        spec.sampling.repetition = i == 1 ? 1.1F : 1;
        spec.sampling.presence = i == 2 ? -0.5F : 0;
        spec.sampling.frequency = i == 3 ? 0.5F : 0;
        client_run(&client, &bench, &spec);
        client_close(&client);
        bench_settle(&bench);
        const struct fake_drawn *drawn = fake_executor_drawn(bench.executor);
        assert_int_equal(drawn->counted, i > 0);
        assert_int_equal(drawn->row.flags, i > 0 ? SAMPLE_COUNTED : 0);
        bench_close(&bench);
    }
}

static void test_a_row_that_is_not_finite_ends_its_choice_only(void **state)
{
    (void)state;
    struct bench bench;
    static struct client bad, good;
    int32_t prompt[5], broken[5];
    prompt_fill(prompt, 5, 11);
    prompt_fill(broken, 5, 12);
    broken[2] = FAKE_NOT_FINITE;
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("good", prompt, 5, 100);
    client_open(&good, &spec);
    assert_int_equal(client_submit(&good, &bench), STATUS_OK);
    struct request_spec broken_spec = spec_plain("bad", broken, 5, 100);
    client_run(&bad, &bench, &broken_spec);
    assert_int_equal(bad.heard[0].reason, FINISH_ERROR);
    assert_int_equal(bad.heard[0].status, STATUS_INTERNAL);
    assert_string_equal(bad.heard[0].detail, "the model produced logits that are not finite");
    assert_int_equal(bad.heard[0].ids, 0);
    client_close(&bad);
    broken_spec.kind = REQUEST_SCORE;
    broken_spec.max_new_tokens = 0;
    client_run(&bad, &bench, &broken_spec);
    assert_int_equal(bad.heard[0].reason, FINISH_ERROR);
    assert_int_equal(bad.scores, 0);
    client_close(&bad);
    client_listen(&good);
    heard_expect(&bench, &spec, 0, &good.heard[0]);
    client_close(&good);
    assert_int_equal(engine_health(bench.engine, NULL), STATUS_OK);
    bench_settle(&bench);
    bench_close(&bench);
}

/* A wrong caller gets a refusal; it must never become a step that every rank refuses. */
static void test_refusals(void **state)
{
    (void)state;
    struct bench bench;
    struct client client;
    int32_t prompt[600];
    const struct logit_bias far = {.id = 200000, .value = 1};
    const int32_t far_id = -4;
    prompt_fill(prompt, 600, 13);
    bench_open(&bench);
    bench_start(&bench);
    const struct request_spec plain = spec_plain("a", prompt, 5, 10);
    struct request_spec bad[20];
    int count = 0;
#define BAD(field, to)                                                                             \
    do {                                                                                           \
        bad[count] = plain;                                                                        \
        bad[count].field = (to);                                                                   \
        count++;                                                                                   \
    } while (0)
    BAD(prompt_tokens, 0);
    BAD(max_new_tokens, 0);
    BAD(min_new_tokens, 11);
    BAD(choices, 0);
    BAD(choices, REQUEST_CHOICES_MAX + 1);
    BAD(logprobs, SAMPLE_TOP_MAX + 1);
    BAD(stop_id_count, REQUEST_STOP_IDS_MAX + 1);
    bad[count - 1].stop_ids = prompt;
    BAD(sampling.temperature, -1);
    BAD(sampling.temperature, 0.0F / 0.0F);
    BAD(sampling.top_p, 0);
    BAD(sampling.min_p, 1.5F);
    BAD(sampling.top_k, -1);
    BAD(sampling.repetition, 0);
    BAD(sampling.presence, 1.0F / 0.0F);
    BAD(sampling.bias, &far);
    bad[count - 1].sampling.biases = 1;
    BAD(stop_ids, &far_id);
    bad[count - 1].stop_id_count = 1;
    for (int i = 0; i < count; i++) {
        client_open(&client, &bad[i]);
        assert_int_equal(client_submit(&client, &bench), STATUS_INVALID_ARGUMENT);
        client_close(&client);
    }
    prompt[3] = 151936;
    client_open(&client, &plain);
    assert_int_equal(client_submit(&client, &bench), STATUS_INVALID_ARGUMENT);
    client_close(&client);
    prompt[3] = 11;
    struct request_spec spec = plain;
    spec.max_new_tokens = 508; /* max_model_len + 1 */
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_INVALID_ARGUMENT);
    client_close(&client);
    spec = plain;
    spec.text = true;
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_FAILED_PRECONDITION);
    client_close(&client);
    assert_int_equal(fake_executor_steps(bench.executor), 0);
    bench_settle(&bench);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_choices_draw_with_their_own_seeds),
        cmocka_unit_test(test_stop_ids),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_times_begin_at_arrival_and_are_of_what_generates),
        cmocka_unit_test(test_progress_of_long_prompts),
        cmocka_unit_test(test_penalties_and_biases_reach_the_row),
        cmocka_unit_test(test_penalties_ask_for_counts),
        cmocka_unit_test(test_a_row_that_is_not_finite_ends_its_choice_only),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
