/* How requests end otherwise: cancels, deadlines, slow readers, full queues, drains, lost ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

static void ended_expect(const struct heard *heard, enum finish_reason reason, enum status status)
{
    assert_true(heard->finished);
    assert_int_equal(heard->reason, reason);
    assert_int_equal(heard->status, status);
    assert_true(heard->detail[0] != '\0');
}

/* What came before the end is the beginning of what would have come. */
static void beginning_expect(const struct bench *bench, const struct request_spec *spec, int choice,
                             const struct heard *heard)
{
    static int32_t ids[CLIENT_IDS];
    enum finish_reason reason;
    int count = expect_ids(bench, spec, choice, ids, &reason);
    assert_true(heard->ids <= count);
    assert_memory_equal(heard->id, ids, (size_t)heard->ids * sizeof *ids);
}

static void test_cancel_of_running_and_waiting(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client[3];
    struct request_spec spec[3];
    int32_t prompt[20];
    prompt_fill(prompt, 20, 1);
    bench_open(&bench);
    bench.fake.hold_step = 20;
    bench_start(&bench);
    const char *ids[] = {"first", "second", "third"};
    for (int i = 0; i < 3; i++) { /* 12 choices for 8 slots */
        spec[i] = spec_plain(ids[i], prompt, 20, 100);
        spec[i].choices = 4;
        client_open(&client[i], &spec[i]);
        assert_int_equal(client_submit(&client[i], &bench), STATUS_OK);
    }
    while (client[0].heard[0].ids < 5)
        assert_true(client_take(&client[0], 30));
    engine_cancel(bench.engine, client[0].request);
    engine_cancel(bench.engine, client[0].request); /* idempotent */
    assert_true(engine_abort(bench.engine, "third"));
    assert_false(engine_abort(bench.engine, "fourth"));
    fake_executor_release(bench.executor, -1);
    for (int i = 0; i < 3; i++)
        client_listen(&client[i]);
    for (int i = 0; i < 4; i++) {
        ended_expect(&client[0].heard[i], FINISH_CANCELLED, STATUS_CANCELLED);
        beginning_expect(&bench, &spec[0], i, &client[0].heard[i]);
        heard_expect(&bench, &spec[1], i, &client[1].heard[i]);
        ended_expect(&client[2].heard[i], FINISH_CANCELLED, STATUS_CANCELLED);
    }
    assert_false(engine_abort(bench.engine, "third")); /* not live any more */
    engine_cancel(bench.engine, client[2].request);
    bench_settle(&bench);
    for (int i = 0; i < 3; i++)
        client_close(&client[i]);
    bench_close(&bench);
}

static void test_deadline_in_prefill_and_decode(void **state)
{
    (void)state;
    struct bench bench;
    static struct client late[2];
    int32_t prompt[450];
    prompt_fill(prompt, 450, 2);
    bench_open(&bench);
    bench.fake.delay_us = 4000;
    bench_start(&bench);
    struct request_spec spec[2];
    spec[0] = spec_plain("decode", prompt, 10, 400); /* 1.6 s at least */
    spec[0].deadline = clock_now() + CLOCK_SECOND;
    client_open(&late[0], &spec[0]);
    assert_int_equal(client_submit(&late[0], &bench), STATUS_OK);
    client_listen(&late[0]);
    ended_expect(&late[0].heard[0], FINISH_DEADLINE, STATUS_DEADLINE_EXCEEDED);
    assert_true(late[0].heard[0].ids > 0);
    beginning_expect(&bench, &spec[0], 0, &late[0].heard[0]);

    spec[1] = spec_plain("prefill", prompt, 450, 10);
    spec[1].deadline = clock_now() + CLOCK_SECOND / 500; /* 3 chunks take 12 ms at least */
    client_open(&late[1], &spec[1]);
    assert_int_equal(client_submit(&late[1], &bench), STATUS_OK);
    client_listen(&late[1]);
    ended_expect(&late[1].heard[0], FINISH_DEADLINE, STATUS_DEADLINE_EXCEEDED);
    assert_int_equal(late[1].heard[0].ids, 0);
    bench_settle(&bench);
    for (int i = 0; i < 2; i++)
        client_close(&late[i]);
    bench_close(&bench);
}

static void test_deadline_in_queue(void **state)
{
    (void)state;
    struct bench bench;
    static struct client busy[2], late;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 2);
    bench_open(&bench);
    bench.fake.hold_step = 10;
    bench_start(&bench);
    struct request_spec spec;
    for (int i = 0; i < 2; i++) { /* all slots */
        spec = spec_plain(i ? "busy 1" : "busy 0", prompt, 10, 60);
        spec.choices = 4;
        client_open(&busy[i], &spec);
        assert_int_equal(client_submit(&busy[i], &bench), STATUS_OK);
    }
    while (busy[0].heard[3].ids == 0)
        assert_true(client_take(&busy[0], 30));
    spec = spec_plain("queue", prompt, 10, 10);
    spec.deadline = clock_now() + CLOCK_SECOND / 50;
    client_open(&late, &spec);
    assert_int_equal(client_submit(&late, &bench), STATUS_OK);
    while (clock_now() < spec.deadline)
        clock_sleep(CLOCK_SECOND / 1000);
    fake_executor_release(bench.executor, 15);
    client_listen(&late);
    ended_expect(&late.heard[0], FINISH_DEADLINE, STATUS_DEADLINE_EXCEEDED);
    assert_int_equal(late.heard[0].ids, 0);
    assert_false(busy[0].done);
    fake_executor_release(bench.executor, -1);
    for (int i = 0; i < 2; i++) {
        client_listen(&busy[i]);
        client_close(&busy[i]);
    }
    bench_settle(&bench);
    client_close(&late);
    bench_close(&bench);
}

/* An idle engine sleeps until the deadline of what cannot run. */
static void test_deadline_of_a_paused_request(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 3);
    bench_open(&bench);
    bench.options.outbox_bytes = 1000;
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 10, 300);
    spec.logprobs = 0;
    spec.deadline = clock_now() + CLOCK_SECOND / 10;
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_OK);
    engine_drain(bench.engine);
    assert_true(engine_wait_idle(bench.engine, clock_now() + 10 * CLOCK_SECOND));
    client_listen(&client);
    ended_expect(&client.heard[0], FINISH_DEADLINE, STATUS_DEADLINE_EXCEEDED);
    client_close(&client);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_slow_reader_pauses_and_goes_on(void **state)
{
    (void)state;
    struct bench bench;
    static struct client slow, quick;
    struct engine_load load;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 4);
    bench_open(&bench);
    bench.options.outbox_bytes = 20000;
    bench_start(&bench);
    struct request_spec spec = spec_plain("slow", prompt, 10, 400);
    spec.logprobs = 0; /* not merged: some 500 bytes a token */
    client_open(&slow, &spec);
    assert_int_equal(client_submit(&slow, &bench), STATUS_OK);
    struct request_spec quick_spec = spec_plain("quick", prompt, 10, 400);
    for (int i = 0; i < 3; i++) {
        client_run(&quick, &bench, &quick_spec);
        heard_expect(&bench, &quick_spec, 0, &quick.heard[0]);
        client_close(&quick);
    }
    engine_load(bench.engine, &load); /* paused: holds its slot, its steps stopped early */
    assert_int_equal(load.running, 1);
    assert_true(load.generated_tokens < 3 * 400 + 100);
    client_listen(&slow);
    heard_expect(&bench, &spec, 0, &slow.heard[0]);
    client_close(&slow);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_reader_that_never_reads_is_ended(void **state)
{
    (void)state;
    struct bench bench;
    static struct client slow;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 5);
    bench_open(&bench);
    bench.options.outbox_bytes = 5000;
    bench.options.outbox_timeout = 0.05;
    bench_start(&bench);
    struct request_spec spec = spec_plain("slow", prompt, 10, 400);
    spec.logprobs = 0;
    spec.choices = 2;
    client_open(&slow, &spec);
    assert_int_equal(client_submit(&slow, &bench), STATUS_OK);
    engine_drain(bench.engine);
    assert_true(engine_wait_idle(bench.engine, clock_now() + 10 * CLOCK_SECOND));
    client_listen(&slow);
    for (int i = 0; i < 2; i++) {
        ended_expect(&slow.heard[i], FINISH_ERROR, STATUS_RESOURCE_EXHAUSTED);
        beginning_expect(&bench, &spec, i, &slow.heard[i]);
        assert_true(slow.heard[i].ids < 20);
    }
    client_close(&slow);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_deltas_merge_in_a_slow_readers_outbox(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 6);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 10, 400);
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_OK);
    bench_settle(&bench);
    client_listen(&client);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    assert_true(client.events < 20);
    client_close(&client);
    bench_close(&bench);
}

static void test_ids_and_queue(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client[4], same;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 7);
    bench_open(&bench);
    bench.fake.hold_step = 0;
    bench.options.max_queued = 2;
    bench_start(&bench);
    struct request_spec spec = spec_plain("0", prompt, 10, 110);
    for (int i = 0; i < 4; i++) { /* two run in all eight slots, two wait */
        spec.id[0] = (char)('0' + i);
        spec.choices = 4;
        client_open(&client[i], &spec);
        assert_int_equal(client_submit(&client[i], &bench), STATUS_OK);
        if (i != 1)
            continue;
        fake_executor_release(bench.executor, 20);
        while (client[0].heard[0].ids == 0 || client[1].heard[0].ids == 0) {
            assert_true(client_take(&client[0], 30));
            assert_true(client_take(&client[1], 30));
        }
    }
    spec.id[0] = '4';
    client_open(&same, &spec);
    assert_int_equal(engine_admits(bench.engine, NULL), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(client_submit(&same, &bench), STATUS_RESOURCE_EXHAUSTED);
    engine_cancel(bench.engine, same.request); /* was never live */
    client_close(&same);
    fake_executor_release(bench.executor, 160); /* the first two need 110, the next two as many */
    client_listen(&client[0]);
    client_listen(&client[1]);
    spec.id[0] = '3';
    spec.choices = 1;
    client_open(&same, &spec);
    while (client[2].heard[0].ids == 0 || client[3].heard[0].ids == 0) {
        assert_true(client_take(&client[2], 30));
        assert_true(client_take(&client[3], 30));
    }
    assert_int_equal(client_submit(&same, &bench), STATUS_INVALID_ARGUMENT); /* lives */
    fake_executor_release(bench.executor, -1);
    client_listen(&client[3]);
    assert_int_equal(client_submit(&same, &bench), STATUS_OK); /* its id is free at once */
    assert_int_equal(client_submit(&same, &bench), STATUS_INVALID_ARGUMENT);
    client_listen(&client[2]);
    client_listen(&same);
    heard_expect(&bench, &spec, 0, &same.heard[0]);
    for (int i = 0; i < 4; i++)
        client_close(&client[i]);
    client_close(&same);
    bench_settle(&bench);
    bench_close(&bench);
}

static void test_drain(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client, refused;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 8);
    bench_open(&bench);
    bench.fake.hold_step = 5;
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 10, 60);
    client_open(&client, &spec);
    assert_int_equal(client_submit(&client, &bench), STATUS_OK);
    assert_false(engine_wait_idle(bench.engine, clock_now() + CLOCK_SECOND / 1000));
    engine_drain(bench.engine);
    struct request_spec other = spec_plain("b", prompt, 10, 60);
    client_open(&refused, &other);
    assert_int_equal(engine_admits(bench.engine, NULL), STATUS_FAILED_PRECONDITION);
    assert_int_equal(client_submit(&refused, &bench), STATUS_FAILED_PRECONDITION);
    client_close(&refused);
    assert_false(engine_wait_idle(bench.engine, clock_now()));
    fake_executor_release(bench.executor, -1);
    client_listen(&client);
    heard_expect(&bench, &spec, 0, &client.heard[0]);
    bench_settle(&bench);
    client_close(&client);
    bench_close(&bench);
}

/* A reader quicker than any other: takes its events on the engine's thread, as they are pushed. */
struct instant {
    struct request *request;
    struct engine *engine;
    struct engine_load seen[CLIENT_CHOICES]; /* when the n-th FINISHED came */
    int finished;
};

static void instant_wake(void *context)
{
    struct instant *instant = context;
    for (struct event *event; (event = request_next(instant->request)) != NULL; event_free(event)) {
        if (event->kind == EVENT_FINISHED && instant->finished < CLIENT_CHOICES)
            engine_load(instant->engine, &instant->seen[instant->finished++]);
    }
}

static void test_the_end_is_counted_before_it_is_told(void **state)
{
    (void)state;
    struct bench bench;
    int32_t prompt[10];
    prompt_fill(prompt, 10, 8);
    bench_open(&bench);
    bench_start(&bench);
    struct request_spec spec = spec_plain("a", prompt, 10, 7);
    spec.ignore_eos = true;
    spec.choices = 3;
    struct arena *arena = arena_create(SIZE_MAX);
    spec.prompt = arena_copy(arena, prompt, 10, sizeof *prompt);
    struct instant instant = {.engine = bench.engine};
    instant.request = request_create(&spec, arena, instant_wake, &instant);
    assert_non_null(instant.request);
    assert_int_equal(engine_submit(bench.engine, instant.request, &(struct error){0}), STATUS_OK);
    bench_settle(&bench);
    assert_int_equal(instant.finished, 3);
    const struct engine_load *last = &instant.seen[2];
    assert_int_equal(last->finished, 1);
    assert_int_equal(last->generated_tokens, 3 * 7);
    assert_int_equal(last->prompt_tokens, 3 * 10);
    assert_int_equal(last->running, 0);
    assert_int_equal(instant.seen[0].finished, 0);
    request_release(instant.request);
    bench_close(&bench);
}

static void test_close_cancels_what_runs(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client[3];
    int32_t prompt[10];
    prompt_fill(prompt, 10, 9);
    bench_open(&bench);
    bench.fake.delay_us = 3000;
    bench_start(&bench);
    for (int i = 0; i < 3; i++) {
        struct request_spec spec = spec_plain("", prompt, 10, 400);
        spec.choices = 4;
        client_open(&client[i], &spec);
        assert_int_equal(client_submit(&client[i], &bench), STATUS_OK);
    }
    assert_true(client_take(&client[0], 30));
    bench_close(&bench);
    for (int i = 0; i < 3; i++) {
        client_listen(&client[i]);
        ended_expect(&client[i].heard[0], FINISH_CANCELLED, STATUS_CANCELLED);
        client_close(&client[i]);
    }
}

static void test_a_lost_rank_ends_everything(void **state)
{
    (void)state;
    struct bench bench;
    static struct client client[4], after;
    struct error error = {0};
    int32_t prompt[10];
    char which[32];
    unsigned before = log_errors();
    prompt_fill(prompt, 10, 10);
    for (int64_t step = 0; step < 12; step++) {
        bench_open(&bench);
        bench.fake.delay_us = 200;
        bench.fake.fail_step = step;
        bench_start(&bench);
        for (int i = 0; i < 4; i++) {
            struct request_spec spec = spec_plain("", prompt, 10, 400);
            spec.choices = 4;
            client_open(&client[i], &spec);
            (void)engine_submit(bench.engine, client[i].request, NULL);
        }
        client_listen(&client[0]); /* the others may have come too late to be taken */
        ended_expect(&client[0].heard[0], FINISH_ERROR, STATUS_PEER_LOST);
        error = (struct error){0};
        assert_int_equal(engine_health(bench.engine, &error), STATUS_PEER_LOST);
        assert_non_null(strstr(error.text, "rank 1 was lost"));
        snprintf(which, sizeof which, "step %d: ", (int)step);
        assert_memory_equal(error.text, which, strlen(which));
        struct request_spec spec = spec_plain("after", prompt, 10, 5);
        client_open(&after, &spec);
        assert_int_equal(engine_admits(bench.engine, NULL), STATUS_PEER_LOST);
        assert_int_equal(client_submit(&after, &bench), STATUS_PEER_LOST);
        client_close(&after);
        bench_settle(&bench);
        for (int i = 0; i < 4; i++)
            client_close(&client[i]);
        bench_close(&bench);
    }
    assert_int_equal(log_errors(), before); /* passed up, not said twice */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel_of_running_and_waiting),
        cmocka_unit_test(test_deadline_in_prefill_and_decode),
        cmocka_unit_test(test_deadline_in_queue),
        cmocka_unit_test(test_deadline_of_a_paused_request),
        cmocka_unit_test(test_slow_reader_pauses_and_goes_on),
        cmocka_unit_test(test_reader_that_never_reads_is_ended),
        cmocka_unit_test(test_deltas_merge_in_a_slow_readers_outbox),
        cmocka_unit_test(test_ids_and_queue),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_the_end_is_counted_before_it_is_told),
        cmocka_unit_test(test_close_cancels_what_runs),
        cmocka_unit_test(test_a_lost_rank_ends_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
