#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/base/clock.h"
#include "daemon/request_private.h"

/* ---- bench -------------------------------------------------------------------------------- */

void bench_open(struct bench *bench)
{
    bench_open_stages(bench, 1);
}

void bench_open_stages(struct bench *bench, int stages)
{
    struct model_config model;
    struct error error = {0};
    struct limits limits = {.max_model_len = 512,
                            .max_num_seqs = 8,
                            .max_num_batched_tokens = 208,
                            .block_tokens = 16,
                            .kv_blocks = 64};
    *bench = (struct bench){0};
    assert_int_equal(model_config_builtin("jet-nemotron-2b", &model, &error), STATUS_OK);
    model.eos[0] = FAKE_EOS;
    model.eos_count = 1;
    enum status status =
        plan_make(&model, (struct mesh){1, 1, stages}, limits, DTYPE_F32, &bench->plan, &error);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
    bench->fake = (struct fake_options){.fail_step = -1, .hold_step = -1};
    plan_step_shape(bench->plan, &bench->fake.shape);
    bench->options = (struct engine_options){
        .plan = bench->plan, .max_queued = 1000, .outbox_bytes = 1 << 20, .outbox_timeout = 20};
}

/* Read once: with sanitizers that takes seconds. */
void bench_tokenizer(struct bench *bench)
{
    static struct tokenizer *tokenizer;
    struct error error = {0};
    if (tokenizer == NULL &&
        tokenizer_load(JETD_TEST_DATA "/tokenizer", &tokenizer, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    bench->options.tokenizer = bench->tokenizer = tokenizer;
}

void bench_start(struct bench *bench)
{
    struct error error = {0};
    bench->executor = fake_executor_create(&bench->fake);
    bench->options.executor = bench->executor;
    if (engine_open(&bench->options, &bench->engine, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

void bench_settle(struct bench *bench)
{
    struct engine_load load;
    engine_drain(bench->engine);
    assert_true(engine_wait_idle(bench->engine, clock_now() + 30 * CLOCK_SECOND));
    engine_load(bench->engine, &load);
    assert_int_equal(load.slots_used, 0);
    assert_int_equal(load.blocks_used, 0);
    assert_int_equal(load.running, 0);
    assert_int_equal(load.waiting, 0);
    assert_int_equal(load.requests, load.finished + load.cancelled + load.failed);
    assert_true(load.draining);
}

void bench_close(struct bench *bench)
{
    engine_close(bench->engine);
    assert_string_equal(fake_executor_violation(bench->executor), "");
    fake_executor_destroy(bench->executor);
    plan_free(bench->plan);
}

/* ---- client ------------------------------------------------------------------------------- */

struct request_spec spec_plain(const char *id, const int32_t *prompt, int prompt_tokens,
                               int max_new_tokens)
{
    struct request_spec spec = {.kind = REQUEST_GENERATE,
                                .prompt = prompt,
                                .prompt_tokens = prompt_tokens,
                                .sampling = {.top_p = 1, .repetition = 1, .seed = 1},
                                .max_new_tokens = max_new_tokens,
                                .choices = 1,
                                .logprobs = -1,
                                .deadline = CLOCK_NEVER};
    strncpy(spec.id, id, REQUEST_ID_MAX);
    return spec;
}

static void client_wake(void *context)
{
    struct client *client = context;
    pthread_mutex_lock(&client->mutex);
    client->woken = true;
    pthread_cond_signal(&client->wake);
    pthread_mutex_unlock(&client->mutex);
}

void client_open(struct client *client, const struct request_spec *from)
{
    struct request_spec spec = *from;
    struct arena *arena = arena_create(SIZE_MAX);
    *client = (struct client){0};
    pthread_mutex_init(&client->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&client->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    spec.prompt =
        arena_copy(arena, from->prompt, (size_t)(from->prompt_tokens > 0 ? from->prompt_tokens : 0),
                   sizeof *spec.prompt);
    spec.stop_ids =
        arena_copy(arena, from->stop_ids, (size_t)from->stop_id_count, sizeof *spec.stop_ids);
    spec.sampling.bias = arena_copy(arena, from->sampling.bias, (size_t)from->sampling.biases,
                                    sizeof *spec.sampling.bias);
    client->request = request_create(&spec, arena, client_wake, client);
    assert_non_null(client->request);
}

enum status client_submit(struct client *client, struct bench *bench)
{
    struct error error = {0};
    enum status status = engine_submit(bench->engine, client->request, &error);
    assert_int_equal(status, error.status);
    return status;
}

static void delta_hear(struct heard *heard, const struct event *event)
{
    assert_false(heard->finished);
    assert_true(heard->ids + event->id_count <= CLIENT_IDS);
    assert_true(heard->text_length + event->text_length < CLIENT_TEXT);
    memcpy(heard->id + heard->ids, event->ids, (size_t)event->id_count * sizeof *event->ids);
    heard->ids += event->id_count;
    memcpy(heard->text + heard->text_length, event->text, event->text_length);
    heard->text_length += event->text_length;
    assert_int_equal(event->text[event->text_length], '\0');
    for (int i = 0; i < event->logprob_count; i++) {
        const struct token_logprob *entry = &event->logprobs[i];
        heard->tops[heard->logprobs] = entry->tops;
        for (int t = 0; t < entry->tops; t++)
            assert_int_equal(entry->top[t].id, entry->id + t);
        if (event->kind == EVENT_DELTA)
            assert_int_equal(entry->id, event->ids[i]);
        heard->logprob[heard->logprobs++] = entry->logprob;
    }
}

static void finished_hear(struct heard *heard, const struct event *event)
{
    assert_false(heard->finished);
    assert_true(event->queued >= 0 && event->prefill >= 0 && event->decode >= 0);
    heard->finished = true;
    heard->reason = event->reason;
    heard->status = event->status;
    strcpy(heard->detail, event->detail);
    heard->has_matched_stop = event->matched_stop != NULL;
    heard->matched_stop_length = event->matched_stop_length;
    assert_true(event->matched_stop_length < sizeof heard->matched_stop);
    if (event->matched_stop != NULL)
        memcpy(heard->matched_stop, event->matched_stop, event->matched_stop_length);
    heard->matched_id = event->matched_id;
    heard->completion_tokens = event->completion_tokens;
}

static void event_hear(struct client *client, const struct event *event)
{
    assert_false(client->done);
    assert_true(event->choice >= 0 && event->choice < CLIENT_CHOICES);
    struct heard *heard = &client->heard[event->choice];
    client->events++;
    if (event->kind == EVENT_PROMPT) {
        assert_int_equal(client->events, 1);
        client->prompts++;
        client->seed = event->seed;
        client->prompt_tokens = event->prompt_tokens;
    } else if (event->kind == EVENT_PROGRESS) {
        assert_true(event->prefilled > client->last_prefilled);
        client->last_prefilled = event->prefilled;
        client->progresses++;
    } else if (event->kind == EVENT_FINISHED) {
        finished_hear(heard, event);
    } else {
        client->scores += event->kind == EVENT_SCORE;
        delta_hear(heard, event);
    }
    client->done = event->last;
}

bool client_take(struct client *client, double seconds)
{
    int64_t until = clock_now() + (int64_t)(seconds * 1e9);
    for (;;) {
        struct event *event = request_next(client->request);
        if (event != NULL) {
            event_hear(client, event);
            event_free(event);
            return true;
        }
        struct timespec at = {.tv_sec = until / CLOCK_SECOND, .tv_nsec = until % CLOCK_SECOND};
        pthread_mutex_lock(&client->mutex);
        int late = 0;
        while (!client->woken && late == 0)
            late = pthread_cond_timedwait(&client->wake, &client->mutex, &at);
        client->woken = false;
        pthread_mutex_unlock(&client->mutex);
        if (late != 0)
            return false;
    }
}

void client_listen(struct client *client)
{
    while (!client->done)
        assert_true(client_take(client, 30));
    assert_int_equal(client->prompts, client->events > 1 ? 1 : client->prompts);
    assert_null(request_next(client->request));
}

void client_close(struct client *client)
{
    /* a wake may still be on its way until the engine let go of the request */
    while (atomic_load(&client->request->references) > 1)
        clock_sleep(100000);
    request_release(client->request);
    pthread_cond_destroy(&client->wake);
    pthread_mutex_destroy(&client->mutex);
}

void client_run(struct client *client, struct bench *bench, const struct request_spec *spec)
{
    client_open(client, spec);
    assert_int_equal(client_submit(client, bench), STATUS_OK);
    client_listen(client);
}

/* ---- expectations ------------------------------------------------------------------------- */

static bool id_listed(int32_t id, const int32_t *ids, int count)
{
    for (int i = 0; i < count; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

int expect_ids(const struct bench *bench, const struct request_spec *spec, int choice, int32_t *ids,
               enum finish_reason *reason)
{
    int32_t stop[REQUEST_STOP_IDS_MAX + 1];
    int stops = 0;
    uint64_t seen = 0;
    for (int i = 0; i < spec->stop_id_count; i++)
        stop[stops++] = spec->stop_ids[i];
    if (!spec->ignore_eos)
        stop[stops++] = FAKE_EOS;
    for (int i = 0; i < spec->prompt_tokens; i++)
        seen = fake_seen(seen, spec->prompt[i]);
    for (int i = 0; i < spec->max_new_tokens; i++) {
        ids[i] = fake_draw(seen, spec->sampling.seed + (uint64_t)choice, (uint64_t)i,
                           bench->fake.eos, stop, i < spec->min_new_tokens ? stops : 0);
        seen = fake_seen(seen, ids[i]);
        if (id_listed(ids[i], stop, stops)) {
            *reason = FINISH_STOP;
            return i + 1;
        }
    }
    *reason = FINISH_LENGTH;
    return spec->max_new_tokens;
}

void heard_expect(const struct bench *bench, const struct request_spec *spec, int choice,
                  const struct heard *heard)
{
    static _Thread_local int32_t ids[CLIENT_IDS];
    enum finish_reason reason;
    int count = expect_ids(bench, spec, choice, ids, &reason);
    assert_true(heard->finished);
    assert_int_equal(heard->reason, reason);
    assert_int_equal(heard->status, STATUS_OK);
    assert_string_equal(heard->detail, "");
    assert_int_equal(heard->completion_tokens, count);
    assert_int_equal(heard->matched_id, reason == FINISH_STOP ? ids[count - 1] : -1);
    int sent = reason == FINISH_STOP && !spec->include_stop ? count - 1 : count;
    assert_int_equal(heard->ids, sent);
    assert_memory_equal(heard->id, ids, (size_t)sent * sizeof *ids);
}

void prompt_fill(int32_t *prompt, int n, uint32_t seed)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        prompt[i] = 10 + (int32_t)((seed >> 16) % 80);
    }
}
