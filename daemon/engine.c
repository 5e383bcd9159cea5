#include "daemon/engine.h"

#include <signal.h>
#include <stdlib.h>

#include "daemon/engine_private.h"

static enum status options_check(const struct engine_options *options, struct error *error)
{
    if (options->plan == NULL || options->executor == NULL)
        return error_set(error, STATUS_CONFIG, "engine: no plan or no executor");
    if (options->max_queued < 1 || options->outbox_bytes < 1 || !(options->outbox_timeout >= 0) ||
        options->outbox_timeout > 1e9)
        return error_set(error, STATUS_CONFIG,
                         "engine: max_queued %d, outbox_bytes %zu, outbox_timeout %g",
                         options->max_queued, options->outbox_bytes, options->outbox_timeout);
    return STATUS_OK;
}

static void engine_free(struct engine *engine)
{
    for (int i = 0; i < STAGE_DEPTH; i++)
        batch_destroy(engine->flight[i]);
    free(engine->result);
    step_builder_destroy(engine->builder);
    scheduler_destroy(engine->scheduler);
    free(engine);
}

static enum status parts_create(struct engine *engine, struct error *error)
{
    const struct step_shape *shape = &engine->shape;
    enum status status = scheduler_create(shape, &engine->scheduler, error);
    if (status != STATUS_OK)
        return status;
    int stages = engine->options.plan->mesh.pipeline;
    scheduler_set_groups(engine->scheduler, stages < shape->depth ? stages : shape->depth);
    engine->builder = step_builder_create(shape);
    engine->result = calloc((size_t)shape->max_rows, sizeof *engine->result);
    bool good = engine->builder != NULL && engine->result != NULL;
    for (int i = 0; i < shape->depth; i++) {
        engine->flight[i] = batch_create(shape);
        good = good && engine->flight[i] != NULL;
    }
    return good ? STATUS_OK : error_set(error, STATUS_NO_MEMORY, "engine: out of memory");
}

/* Signals are the main thread's. */
static int thread_start(struct engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&engine->thread, NULL, engine_run, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

enum status engine_open(const struct engine_options *options, struct engine **out,
                        struct error *error)
{
    enum status status = options_check(options, error);
    if (status != STATUS_OK)
        return status;
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return error_set(error, STATUS_NO_MEMORY, "engine: out of memory");
    engine->options = *options;
    engine->next_deadline = CLOCK_NEVER;
    times_init(&engine->times);
    plan_step_shape(options->plan, &engine->shape);
    status = parts_create(engine, error);
    if (status != STATUS_OK)
        goto free_engine;
    status = inbox_open(&engine->inbox);
    if (status != STATUS_OK)
        goto free_engine;
    engine_publish(engine);
    if (thread_start(engine) != 0) {
        status = error_set(error, STATUS_NO_MEMORY, "engine: no thread could be started");
        goto close_inbox;
    }
    *out = engine;
    return STATUS_OK;

close_inbox:
    inbox_close(&engine->inbox);
free_engine:
    engine_free(engine);
    return status;
}

void engine_close(struct engine *engine)
{
    if (engine == NULL)
        return;
    pthread_mutex_lock(&engine->inbox.mutex);
    engine->inbox.draining = engine->inbox.stopping = engine->inbox.poked = true;
    pthread_cond_signal(&engine->inbox.wake);
    pthread_mutex_unlock(&engine->inbox.mutex);
    pthread_join(engine->thread, NULL);
    inbox_close(&engine->inbox);
    engine_free(engine);
}

enum status engine_submit(struct engine *engine, struct request *request, struct error *error)
{
    struct job *job;
    enum status status = job_create(engine, request, &job, error);
    if (status != STATUS_OK)
        return status;
    status = inbox_submit(engine, request, job, error);
    if (status != STATUS_OK)
        job_destroy(job);
    return status;
}

void engine_cancel(struct engine *engine, struct request *request)
{
    inbox_cancel(&engine->inbox, request);
}

void engine_drain(struct engine *engine)
{
    pthread_mutex_lock(&engine->inbox.mutex);
    engine->inbox.draining = true;
    if (engine->inbox.live == 0)
        pthread_cond_broadcast(&engine->inbox.idle);
    pthread_mutex_unlock(&engine->inbox.mutex);
}

void engine_load(struct engine *engine, struct engine_load *load)
{
    pthread_mutex_lock(&engine->inbox.mutex);
    *load = engine->inbox.load;
    load->draining = engine->inbox.draining;
    pthread_mutex_unlock(&engine->inbox.mutex);
}

enum status engine_health(struct engine *engine, struct error *error)
{
    pthread_mutex_lock(&engine->inbox.mutex);
    enum status status = engine->inbox.failure.status;
    if (status != STATUS_OK)
        error_set(error, status, "%s", engine->inbox.failure.text);
    pthread_mutex_unlock(&engine->inbox.mutex);
    return status;
}
