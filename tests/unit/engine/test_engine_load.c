/* Many clients in threads of their own: whatever else is in the steps, an output that is not cut
 * off is the one that the request has alone, and at the end everything is back where it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client.h"
#include "daemon/base/clock.h"

enum { THREADS = 8, REQUESTS = 40 };

struct worker {
    pthread_t thread;
    struct bench *bench;
    int number;
    uint32_t random;
    int whole, cut; /* choices */
    struct client client;
};

static int random_below(struct worker *worker, int end)
{
    worker->random = worker->random * 1664525u + 1013904223u;
    return (int)((worker->random >> 8) % (uint32_t)end);
}

static struct request_spec spec_random(struct worker *worker, int32_t *prompt)
{
    int length = 1 + random_below(worker, random_below(worker, 4) == 0 ? 400 : 60);
    prompt_fill(prompt, length, worker->random);
    struct request_spec spec = spec_plain("", prompt, length, 1 + random_below(worker, 80));
    snprintf(spec.id, sizeof spec.id, "%d %u", worker->number, worker->random);
    spec.choices = 1 + random_below(worker, 3);
    spec.priority = random_below(worker, 3);
    spec.sampling.seed = worker->random;
    spec.ignore_eos = random_below(worker, 3) == 0;
    spec.include_stop = random_below(worker, 2) == 0;
    spec.logprobs = random_below(worker, 3) - 1;
    spec.min_new_tokens = random_below(worker, spec.max_new_tokens);
    if (random_below(worker, 6) == 0)
        spec.deadline = clock_now() + CLOCK_SECOND * random_below(worker, 40) / 1000;
    return spec;
}

static void heard_check(struct worker *worker, const struct request_spec *spec, int choice)
{
    struct heard *heard = &worker->client.heard[choice];
    static _Thread_local int32_t ids[CLIENT_IDS];
    enum finish_reason reason;
    if (heard->reason == FINISH_STOP || heard->reason == FINISH_LENGTH) {
        heard_expect(worker->bench, spec, choice, heard);
        worker->whole++;
        return;
    }
    assert_true(heard->finished);
    assert_true(heard->reason == FINISH_CANCELLED || heard->reason == FINISH_DEADLINE);
    int count = expect_ids(worker->bench, spec, choice, ids, &reason);
    assert_true(heard->ids <= count);
    assert_memory_equal(heard->id, ids, (size_t)heard->ids * sizeof *ids);
    worker->cut++;
}

static void request_run(struct worker *worker)
{
    struct client *client = &worker->client;
    int32_t prompt[512];
    struct request_spec spec = spec_random(worker, prompt);
    client_open(client, &spec);
    enum status status = client_submit(client, worker->bench);
    assert_int_equal(status, STATUS_OK);
    int cancel = random_below(worker, 5) == 0 ? random_below(worker, 30) : -1;
    bool slow = random_below(worker, 5) == 0;
    for (int events = 0; !client->done; events++) {
        if (events == cancel && random_below(worker, 2) == 0)
            engine_cancel(worker->bench->engine, client->request);
        else if (events == cancel)
            engine_abort(worker->bench->engine, spec.id);
        if (slow)
            clock_sleep(CLOCK_SECOND / 5000);
        assert_true(client_take(client, 30));
    }
    for (int i = 0; i < spec.choices; i++)
        heard_check(worker, &spec, i);
    client_close(client);
}

static void *worker_run(void *context)
{
    struct worker *worker = context;
    for (int i = 0; i < REQUESTS; i++)
        request_run(worker);
    return NULL;
}

/* As many steps are under way as keep every stage busy. */
static void random_load(int stages, int depth)
{
    static struct worker worker[THREADS];
    struct bench bench;
    int whole = 0, cut = 0;
    bench_open_stages(&bench, stages);
    bench.fake.eos = true;
    bench.options.outbox_bytes = 3000;
    bench_start(&bench);
    for (int i = 0; i < THREADS; i++) {
        worker[i] = (struct worker){.bench = &bench, .number = i, .random = 77u * (uint32_t)i};
        assert_int_equal(pthread_create(&worker[i].thread, NULL, worker_run, &worker[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(worker[i].thread, NULL);
        whole += worker[i].whole;
        cut += worker[i].cut;
    }
    bench_settle(&bench);
    struct engine_load load;
    engine_load(bench.engine, &load);
    assert_int_equal(load.requests, THREADS * REQUESTS);
    assert_true(whole > THREADS * REQUESTS / 2 && cut > THREADS);
    assert_int_equal(fake_executor_deepest(bench.executor), depth);
    bench_close(&bench);
}

static void test_random_load(void **state)
{
    (void)state;
    random_load(1, 2);
}

static void test_random_load_in_a_pipeline(void **state)
{
    (void)state;
    random_load(5, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_load),
        cmocka_unit_test(test_random_load_in_a_pipeline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
