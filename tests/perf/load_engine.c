/* The load through the engine's own door, in process: what the gRPC path is compared with. */
#include "tests/perf/load.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"

struct bell {
    pthread_mutex_t mutex;
    pthread_cond_t rung;
    bool ringing;
};

struct live {
    struct request *request; /* NULL: free */
    int64_t sent, last;      /* of the newest delta */
};

static void ring(void *context)
{
    struct bell *bell = context;
    pthread_mutex_lock(&bell->mutex);
    bell->ringing = true;
    pthread_cond_signal(&bell->rung);
    pthread_mutex_unlock(&bell->mutex);
}

static void sleep_until_rung(struct bell *bell, int64_t until)
{
    struct timespec at;
    int64_t now = clock_now(), wait = until - now;
    clock_gettime(CLOCK_REALTIME, &at);
    if (wait > CLOCK_SECOND / 10)
        wait = CLOCK_SECOND / 10;
    if (wait < 0)
        wait = 0;
    int64_t nanoseconds = at.tv_nsec + wait;
    at.tv_sec += nanoseconds / CLOCK_SECOND;
    at.tv_nsec = nanoseconds % CLOCK_SECOND;
    pthread_mutex_lock(&bell->mutex);
    if (!bell->ringing)
        pthread_cond_timedwait(&bell->rung, &bell->mutex, &at);
    bell->ringing = false;
    pthread_mutex_unlock(&bell->mutex);
}

void load_result_free(struct load_result *result)
{
    samples_free(&result->first_token);
    samples_free(&result->inter_token);
}

int64_t load_arrival(const struct load *load, int i, int64_t previous)
{
    double u = sample_uniform(load->seed, (uint64_t)i, 0);
    return previous + (int64_t)(-log(u) / load->rate * (double)CLOCK_SECOND);
}

/* A prompt as the engine takes it: turned into tokens before the clock starts, which is not the
 * engine's work. */
struct prompt {
    int32_t *ids;
    size_t count;
};

static enum status prompts_encode(const struct load *load, const struct tokenizer *tokenizer,
                                  struct arena *arena, struct prompt **out, struct error *error)
{
    struct prompt *prompts = arena_allocate(arena, (size_t)load->prompts, sizeof *prompts);
    if (prompts == NULL)
        return error_set(error, STATUS_NO_MEMORY, "out of memory");
    enum status status = STATUS_OK;
    for (int i = 0; i < load->prompts && status == STATUS_OK; i++)
        status = tokenizer_encode(tokenizer, load->prompt[i], strlen(load->prompt[i]), false, arena,
                                  &prompts[i].ids, &prompts[i].count, error);
    *out = prompts;
    return status;
}

static enum status send_request(const struct load *load, int number, struct engine *engine,
                                const struct prompt *prompt, struct bell *bell, struct live *live,
                                struct error *error)
{
    struct arena *arena = arena_create(1 << 20); /* the request's, which may outlive this run */
    int32_t *ids = arena != NULL ? arena_allocate(arena, prompt->count, sizeof *ids) : NULL;
    if (ids == NULL) {
        arena_destroy(arena);
        return error_set(error, STATUS_NO_MEMORY, "out of memory");
    }
    memcpy(ids, prompt->ids, prompt->count * sizeof *ids);
    struct request_spec spec = {
        .kind = REQUEST_GENERATE,
        .prompt = ids,
        .prompt_tokens = (int)prompt->count,
        .sampling = {.temperature = 1, .top_p = 1, .repetition = 1, .seed = (uint64_t)number},
        .max_new_tokens = load->max_new_tokens,
        .choices = 1,
        .logprobs = -1,
        .ignore_eos = true,
        .deadline = CLOCK_NEVER,
        .text = true,
    };
    snprintf(spec.id, sizeof spec.id, "bench-%d", number);
    struct request *request = request_create(&spec, arena, ring, bell);
    if (request == NULL) {
        arena_destroy(arena);
        return error_set(error, STATUS_NO_MEMORY, "out of memory");
    }
    *live = (struct live){.request = request, .sent = clock_now()};
    enum status status = engine_submit(engine, request, error);
    if (status != STATUS_OK) {
        request_release(request);
        live->request = NULL;
    }
    return status;
}

/* Takes what has come for one request; true when it was the last. */
static bool take_events(struct live *live, struct load_result *result)
{
    bool last = false;
    for (struct event *event; !last && (event = request_next(live->request)) != NULL;
         event_free(event)) {
        last = event->last;
        if (event->kind == EVENT_FINISHED && event->reason == FINISH_ERROR) {
            result->failed++;
            snprintf(result->failure, sizeof result->failure, "%s", event->detail);
        } else if (event->kind == EVENT_FINISHED) {
            result->completed++;
        }
        if (event->kind != EVENT_DELTA || event->id_count == 0)
            continue;
        int64_t now = clock_now();
        if (live->last == 0)
            samples_add(&result->first_token, clock_seconds(now - live->sent));
        else
            samples_add(&result->inter_token, clock_seconds(now - live->last) / event->id_count);
        live->last = now;
        result->tokens += event->id_count;
    }
    if (last) {
        request_release(live->request);
        live->request = NULL;
    }
    return last;
}

enum status load_engine(const struct load *load, struct engine *engine,
                        const struct tokenizer *tokenizer, struct load_result *result)
{
    *result = (struct load_result){0};
    int room = load->rate > 0 ? load->requests : load->streams;
    struct live *live = calloc((size_t)room, sizeof *live);
    struct arena *arena = arena_create((size_t)256 << 20);
    struct prompt *prompts = NULL;
    struct bell bell = {.mutex = PTHREAD_MUTEX_INITIALIZER, .rung = PTHREAD_COND_INITIALIZER};
    struct error error = {0};
    enum status status = live != NULL && arena != NULL ? STATUS_OK : STATUS_NO_MEMORY;
    if (status == STATUS_OK)
        status = prompts_encode(load, tokenizer, arena, &prompts, &error);
    int sent = 0, done = 0;
    int64_t start = clock_now(), next = start;
    if (load->rate > 0)
        next = load_arrival(load, 0, start);
    while (status == STATUS_OK && done < load->requests) {
        for (int i = 0; i < room; i++) {
            if (live[i].request != NULL && take_events(&live[i], result))
                done++;
            if (live[i].request == NULL && sent < load->requests && clock_now() >= next &&
                status == STATUS_OK) {
                status = send_request(load, sent, engine, &prompts[sent % load->prompts], &bell,
                                      &live[i], &error);
                sent++;
                if (load->rate > 0)
                    next = load_arrival(load, sent, next);
            }
        }
        sleep_until_rung(&bell, sent < load->requests && load->rate > 0 ? next : CLOCK_NEVER);
    }
    result->seconds = clock_seconds(clock_now() - start);
    for (int i = 0; i < room && live != NULL; i++)
        if (live[i].request != NULL) {
            engine_cancel(engine, live[i].request);
            request_release(live[i].request);
        }
    free(live);
    arena_destroy(arena);
    if (status != STATUS_OK)
        snprintf(result->failure, sizeof result->failure, "%s", error.text);
    return status;
}
