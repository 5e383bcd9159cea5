/* Text through the engine: the fake model draws single-byte tokens and a few whole words, so that
 * text, stops and held-back bytes can be worked out from the ids with tokenizer_decode alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <malloc.h>

#include "client.h"
#include "daemon/base/clock.h"
#include "daemon/engine_private.h"
#include "daemon/tokenizer_private.h"

struct decoded {
    struct arena *arena;
    char *bytes;
    size_t length;
};

static struct decoded decode(const struct bench *bench, const int32_t *ids, int count)
{
    struct decoded text = {.arena = arena_create(SIZE_MAX)};
    assert_int_equal(tokenizer_decode(bench->tokenizer, ids, (size_t)count, true, text.arena,
                                      &text.bytes, &text.length, NULL),
                     STATUS_OK);
    return text;
}

static void text_expect(const struct bench *bench, const struct heard *heard)
{
    struct decoded text = decode(bench, heard->id, heard->ids);
    assert_int_equal(heard->text_length, text.length);
    assert_memory_equal(heard->text, text.bytes, text.length);
    arena_destroy(text.arena);
}

static void start(struct bench *bench)
{
    bench_open(bench);
    bench_tokenizer(bench);
    bench->fake.eos = true;
    bench_start(bench);
}

static void test_text_is_what_the_ids_decode_to(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[12];
    start(&bench);
    for (uint32_t seed = 0; seed < 20; seed++) {
        prompt_fill(prompt, 12, seed);
        struct request_spec spec = spec_plain("a", prompt, 12, 60);
        spec.text = true;
        spec.choices = 3;
        spec.sampling.seed = seed;
        spec.include_stop = seed % 2 == 1;
        spec.ignore_eos = seed % 4 == 2;
        client_run(&client, &bench, &spec);
        for (int i = 0; i < 3; i++) {
            heard_expect(&bench, &spec, i, &client.heard[i]);
            text_expect(&bench, &client.heard[i]);
        }
        client_close(&client);
    }
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_echoed_text(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[300];
    prompt_fill(prompt, 300, 2);
    start(&bench);
    const struct stop_string never = {.text = "never to be seen", .length = 16};
    for (int variant = 0; variant < 4; variant++) {
        struct request_spec spec = spec_plain("a", prompt, 300, 40);
        spec.text = spec.echo = spec.ignore_eos = true;
        spec.logprobs = variant % 2 == 0 ? -1 : 2;
        if (variant >= 2) { /* the prompt's text is not looked through for stops */
            spec.stops = &never;
            spec.stop_count = 1;
        }
        client_run(&client, &bench, &spec);
        assert_int_equal(client.heard[0].ids, 340);
        assert_memory_equal(client.heard[0].id, prompt, sizeof prompt);
        if (variant < 2) {
            text_expect(&bench, &client.heard[0]);
        } else {
            struct decoded before = decode(&bench, prompt, 300);
            struct decoded after = decode(&bench, client.heard[0].id + 300, 40);
            assert_int_equal(client.heard[0].text_length, before.length + after.length);
            assert_memory_equal(client.heard[0].text, before.bytes, before.length);
            assert_memory_equal(client.heard[0].text + before.length, after.bytes, after.length);
            arena_destroy(before.arena);
            arena_destroy(after.arena);
        }
        client_close(&client);
    }
    bench_settle(&bench);
    bench_close(&bench);
}

/* What the stop string cuts, worked out from the whole text of the output without it. */
static void test_stop_strings(void **state)
{
    (void)state;
    struct bench bench;
    static struct client whole, cut;
    int32_t prompt[12];
    start(&bench);
    for (uint32_t seed = 0; seed < 20; seed++) {
        prompt_fill(prompt, 12, seed);
        struct request_spec spec = spec_plain("whole", prompt, 12, 60);
        spec.text = spec.ignore_eos = true;
        spec.include_stop = seed % 2 == 1;
        client_run(&whole, &bench, &spec);
        struct heard *all = &whole.heard[0];
        /* ASCII bytes of the text, over a border of tokens more often than not */
        size_t at = 20 + seed;
        while (at + 3 < all->text_length &&
               ((all->text[at] | all->text[at + 1] | all->text[at + 2]) & 0x80) != 0)
            at++;
        assert_true(at + 3 < all->text_length);
        struct stop_string stops[2] = {{.text = "not in any text", .length = 15},
                                       {.text = all->text + at, .length = 3}};
        all->text[all->text_length] = '\0';
        size_t first =
            (size_t)((char *)memmem(all->text, all->text_length, stops[1].text, 3) - all->text);
        strcpy(spec.id, "cut");
        spec.stops = stops;
        spec.stop_count = 2;
        client_run(&cut, &bench, &spec);
        const struct heard *heard = &cut.heard[0];
        assert_int_equal(heard->reason, FINISH_STOP);
        assert_true(heard->has_matched_stop);
        assert_int_equal(heard->matched_stop_length, 3);
        assert_memory_equal(heard->matched_stop, stops[1].text, 3);
        assert_int_equal(heard->matched_id, -1);
        assert_int_equal(heard->text_length, first + (spec.include_stop ? 3 : 0));
        assert_memory_equal(heard->text, all->text, heard->text_length);
        assert_int_equal(heard->completion_tokens, heard->ids);
        assert_true(heard->ids < all->ids);
        assert_memory_equal(heard->id, all->id, (size_t)heard->ids * sizeof *heard->id);
        struct decoded text = decode(&bench, heard->id, heard->ids);
        assert_true(text.length >= first + 3);
        arena_destroy(text.arena);
        client_close(&whole);
        client_close(&cut);
    }
    bench_settle(&bench);
    bench_close(&bench);
}

/* What a stop string could still claim when a request was cut off goes out: its ids did. The stop
 * string is the output itself, so that all of it is held back. */
static void test_held_text_comes_out_at_any_end(void **state)
{
    (void)state;
    struct bench bench;
    static struct client whole, cut;
    int32_t prompt[12];
    prompt_fill(prompt, 12, 4);
    bench_open(&bench);
    bench_tokenizer(&bench);
    bench.fake.delay_us = 1000;
    bench_start(&bench);
    struct request_spec spec = spec_plain("whole", prompt, 12, 300);
    spec.text = true;
    client_run(&whole, &bench, &spec);
    strcpy(spec.id, "cut");
    const struct stop_string stop = {.text = whole.heard[0].text,
                                     .length = whole.heard[0].text_length - 10};
    assert_true(stop.length > 500 && stop.length < REQUEST_STOP_BYTES_MAX);
    spec.stops = &stop;
    spec.stop_count = 1;
    struct engine_load load;
    engine_load(bench.engine, &load);
    fake_executor_release(bench.executor, (int64_t)load.steps + 12); /* the cancel comes in time */
    for (int way = 0; way < 2; way++) {
        spec.deadline = way == 0 ? CLOCK_NEVER : clock_now() + CLOCK_SECOND / 20;
        client_open(&cut, &spec);
        assert_int_equal(client_submit(&cut, &bench), STATUS_OK);
        while (way == 0 && cut.heard[0].ids < 5)
            assert_true(client_take(&cut, 30));
        assert_int_equal(cut.heard[0].text_length, 0);
        if (way == 0)
            engine_cancel(bench.engine, cut.request);
        fake_executor_release(bench.executor, -1);
        client_listen(&cut);
        assert_int_equal(cut.heard[0].reason, way == 0 ? FINISH_CANCELLED : FINISH_DEADLINE);
        assert_true(cut.heard[0].text_length > 0 || cut.heard[0].ids == 0);
        text_expect(&bench, &cut.heard[0]);
        client_close(&cut);
    }
    client_close(&whole);
    engine_load(bench.engine, &load); /* a deadline is the client's end too */
    assert_int_equal(load.cancelled, 2);
    assert_int_equal(load.failed, 0);
    bench_settle(&bench);
    bench_close(&bench);
}

/* As vLLM does it: a stop string may end the output only with a token past min_new_tokens. */
static void test_stop_strings_wait_for_min_new_tokens(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[12];
    prompt_fill(prompt, 12, 4);
    start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 12, 100);
    char every[16][2];
    struct stop_string stops[16];
    for (int i = 0; i < 16; i++) { /* common letters: one comes within some tokens */
        every[i][0] = "etaoinsrhldcumgp"[i];
        stops[i] = (struct stop_string){.text = every[i], .length = 1};
    }
    spec.text = spec.ignore_eos = true;
    spec.stops = stops;
    spec.stop_count = 16;
    client_run(&client, &bench, &spec);
    assert_int_equal(client.heard[0].reason, FINISH_STOP);
    assert_true(client.heard[0].completion_tokens < 40);
    client_close(&client);
    spec.min_new_tokens = 40;
    client_run(&client, &bench, &spec);
    assert_int_equal(client.heard[0].reason, FINISH_STOP);
    assert_true(client.heard[0].has_matched_stop);
    assert_true(client.heard[0].completion_tokens > 40);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_a_stop_string_may_hold_any_character(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[12], ids[CLIENT_IDS];
    enum finish_reason reason;
    start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 12, 300);
    spec.text = spec.ignore_eos = true;
    int32_t nul = bench.tokenizer->byte_ids[0];
    uint32_t seed = 0;
    for (int at = 0; at < 1 || at > 298; seed++) { /* a prompt after which U+0000 is drawn */
        prompt_fill(prompt, 12, seed);
        int count = expect_ids(&bench, &spec, 0, ids, &reason);
        for (at = 0; at < count && ids[at] != nul;)
            at++;
    }
    const struct stop_string stop = {.text = "\0", .length = 1};
    spec.stops = &stop;
    spec.stop_count = 1;
    client_run(&client, &bench, &spec);
    assert_int_equal(client.heard[0].reason, FINISH_STOP);
    assert_int_equal(client.heard[0].matched_stop_length, 1);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

/* Bytes that a request takes in the engine from its submit on. */
static size_t job_bytes(const struct bench *bench, const struct request_spec *spec)
{
    struct error error = {0};
    struct request *request = request_create(spec, arena_create(SIZE_MAX), NULL, NULL);
    struct job *job;
    struct mallinfo2 before = mallinfo2();
    if (job_create(bench->engine, request, &job, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    struct mallinfo2 after = mallinfo2();
    job_destroy(job);
    request_release(request);
    return after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
}

/* Stop strings and an echoed prompt are there once, however many choices there are. A sanitizer's
 * allocator counts nothing, and the test says nothing then. */
static void test_choices_take_little_memory(void **state)
{
    (void)state;
    enum { CHOICES = REQUEST_CHOICES_MAX, EACH = 6 << 10 };
    struct bench bench;
    static int32_t prompt[4000];
    static char text[REQUEST_STOP_BYTES_MAX];
    struct stop_string stops[REQUEST_STOPS_MAX];
    prompt_fill(prompt, 4000, 2);
    memset(text, 'x', sizeof text);
    for (int i = 0; i < REQUEST_STOPS_MAX; i++)
        stops[i] = (struct stop_string){.text = text, .length = sizeof text};
    bench_open(&bench);
    bench_tokenizer(&bench);
    bench.plan->limits.max_model_len = 5000;
    bench.plan->limits.kv_blocks = 400;
    bench.fake.shape.kv_blocks = 400;
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 4000, 40);
    spec.text = spec.echo = true;
    spec.stops = stops;
    spec.stop_count = REQUEST_STOPS_MAX;
    size_t one = job_bytes(&bench, &spec);
    spec.choices = CHOICES;
    size_t all = job_bytes(&bench, &spec);
    if (all > one + CHOICES * EACH)
        fail_msg("%zu bytes for one choice, %zu for %d", one, all, CHOICES);
    bench_settle(&bench);
    bench_close(&bench);
}

/* A reader that takes nothing: no more of the echoed prompt waits than the steps have read. */
static void test_an_echo_is_bounded_by_the_outbox(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[400];
    prompt_fill(prompt, 400, 2);
    bench_open(&bench);
    bench_tokenizer(&bench);
    bench.options.outbox_bytes = 1000;
    bench.options.outbox_timeout = 0.2;
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 400, 40);
    spec.text = spec.echo = true;
    spec.choices = 4;
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_OK);
    engine_drain(bench.engine);
    assert_true(engine_wait_idle(bench.engine, clock_now() + 10 * CLOCK_SECOND));
    client_listen(&client);
    int ids = 0;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(client.heard[i].status, STATUS_RESOURCE_EXHAUSTED);
        ids += client.heard[i].ids;
    }
    assert_true(ids > 0 && ids <= 2 * 208); /* two steps were under way */
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_what_the_ids_decode_to),
        cmocka_unit_test(test_echoed_text),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_held_text_comes_out_at_any_end),
        cmocka_unit_test(test_stop_strings_wait_for_min_new_tokens),
        cmocka_unit_test(test_a_stop_string_may_hold_any_character),
        cmocka_unit_test(test_choices_take_little_memory),
        cmocka_unit_test(test_an_echo_is_bounded_by_the_outbox),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
