#include "daemon/engine_private.h"

#include <stdlib.h>
#include <string.h>

enum status inbox_open(struct inbox *inbox)
{
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic) != 0)
        return STATUS_NO_MEMORY;
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    *inbox = (struct inbox){0};
    inbox->submitted_end = &inbox->submitted;
    pthread_mutex_init(&inbox->mutex, NULL);
    pthread_cond_init(&inbox->wake, &monotonic);
    pthread_cond_init(&inbox->idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return STATUS_OK;
}

void inbox_close(struct inbox *inbox)
{
    pthread_cond_destroy(&inbox->idle);
    pthread_cond_destroy(&inbox->wake);
    pthread_mutex_destroy(&inbox->mutex);
}

/* ---- ids ---------------------------------------------------------------------------------- */

static struct request **bucket_of(struct inbox *inbox, const char *id)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *id != '\0'; id++)
        hash = (hash ^ (unsigned char)*id) * 16777619u;
    return &inbox->bucket[hash % INBOX_BUCKETS];
}

static struct request *request_find(struct inbox *inbox, const char *id)
{
    struct request *request = *bucket_of(inbox, id);
    while (request != NULL && strcmp(request->spec.id, id) != 0)
        request = request->same_bucket;
    return request;
}

/* ---- from other threads ------------------------------------------------------------------- */

static enum status admits(const struct engine *engine, struct error *error)
{
    const struct inbox *inbox = &engine->inbox;
    if (inbox->failure.status != STATUS_OK)
        return error_set(error, inbox->failure.status, "%s", inbox->failure.text);
    if (inbox->draining)
        return error_set(error, STATUS_FAILED_PRECONDITION, "the server is draining");
    if (inbox->queued >= engine->options.max_queued)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "the queue is full (%d requests wait)",
                         inbox->queued);
    return STATUS_OK;
}

enum status engine_admits(struct engine *engine, struct error *error)
{
    pthread_mutex_lock(&engine->inbox.mutex);
    enum status status = admits(engine, error);
    pthread_mutex_unlock(&engine->inbox.mutex);
    return status;
}

static enum status submit_check(struct inbox *inbox, const struct request *request,
                                struct error *error)
{
    if (request->submitted)
        return error_set(error, STATUS_INVALID_ARGUMENT, "request was submitted before");
    if (request->spec.id[0] != '\0' && request_find(inbox, request->spec.id) != NULL)
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "request_id: a live request has the same one");
    return STATUS_OK;
}

enum status inbox_submit(struct engine *engine, struct request *request, struct job *job,
                         struct error *error)
{
    struct inbox *inbox = &engine->inbox;
    pthread_mutex_lock(&inbox->mutex);
    enum status status = admits(engine, error);
    if (status == STATUS_OK)
        status = submit_check(inbox, request, error);
    if (status == STATUS_OK) {
        struct request **bucket = bucket_of(inbox, request->spec.id);
        request_retain(request);
        request->job = job;
        request->submitted = true;
        request->same_bucket = *bucket;
        *bucket = request;
        request->submitted_next = NULL;
        *inbox->submitted_end = request;
        inbox->submitted_end = &request->submitted_next;
        inbox->queued++;
        inbox->live++;
        inbox->poked = true;
        pthread_cond_signal(&inbox->wake);
    }
    pthread_mutex_unlock(&inbox->mutex);
    return status;
}

static void cancel_locked(struct inbox *inbox, struct request *request)
{
    if (request->job == NULL || request->cancelled)
        return;
    request_retain(request); /* the list's */
    request->cancelled = true;
    request->cancelled_next = inbox->cancelled;
    inbox->cancelled = request;
    inbox->poked = true;
    pthread_cond_signal(&inbox->wake);
}

void inbox_cancel(struct inbox *inbox, struct request *request)
{
    pthread_mutex_lock(&inbox->mutex);
    cancel_locked(inbox, request);
    pthread_mutex_unlock(&inbox->mutex);
}

bool engine_abort(struct engine *engine, const char *id)
{
    struct inbox *inbox = &engine->inbox;
    pthread_mutex_lock(&inbox->mutex);
    struct request *request = id[0] == '\0' ? NULL : request_find(inbox, id);
    if (request != NULL)
        cancel_locked(inbox, request);
    pthread_mutex_unlock(&inbox->mutex);
    return request != NULL;
}

void inbox_poke(void *context)
{
    struct inbox *inbox = context;
    pthread_mutex_lock(&inbox->mutex);
    inbox->poked = true;
    pthread_cond_signal(&inbox->wake);
    pthread_mutex_unlock(&inbox->mutex);
}

static void wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t until)
{
    if (until == CLOCK_NEVER) {
        pthread_cond_wait(condition, mutex);
        return;
    }
    struct timespec at = {.tv_sec = until / CLOCK_SECOND, .tv_nsec = until % CLOCK_SECOND};
    pthread_cond_timedwait(condition, mutex, &at);
}

bool engine_wait_idle(struct engine *engine, int64_t deadline)
{
    struct inbox *inbox = &engine->inbox;
    pthread_mutex_lock(&inbox->mutex);
    while (!(inbox->draining && inbox->live == 0) && clock_now() < deadline)
        wait_until(&inbox->idle, &inbox->mutex, deadline);
    bool idle = inbox->draining && inbox->live == 0;
    pthread_mutex_unlock(&inbox->mutex);
    return idle;
}

/* ---- from the engine's thread ------------------------------------------------------------- */

struct inbox_news inbox_take(struct inbox *inbox)
{
    pthread_mutex_lock(&inbox->mutex);
    struct inbox_news news = {
        .submitted = inbox->submitted, .cancelled = inbox->cancelled, .stopping = inbox->stopping};
    inbox->submitted = inbox->cancelled = NULL;
    inbox->submitted_end = &inbox->submitted;
    inbox->poked = false;
    pthread_mutex_unlock(&inbox->mutex);
    return news;
}

void inbox_sleep(struct inbox *inbox, int64_t until)
{
    pthread_mutex_lock(&inbox->mutex);
    while (!inbox->poked && (until == CLOCK_NEVER || clock_now() < until))
        wait_until(&inbox->wake, &inbox->mutex, until);
    pthread_mutex_unlock(&inbox->mutex);
}

void inbox_forget(struct inbox *inbox, struct request *request, bool queued)
{
    pthread_mutex_lock(&inbox->mutex);
    struct request **link = bucket_of(inbox, request->spec.id);
    while (*link != request)
        link = &(*link)->same_bucket;
    *link = request->same_bucket;
    request->job = NULL;
    inbox->queued -= queued;
    pthread_mutex_unlock(&inbox->mutex);
}

void inbox_started(struct inbox *inbox)
{
    pthread_mutex_lock(&inbox->mutex);
    inbox->queued--;
    pthread_mutex_unlock(&inbox->mutex);
}

void inbox_reaped(struct inbox *inbox)
{
    pthread_mutex_lock(&inbox->mutex);
    if (--inbox->live == 0)
        pthread_cond_broadcast(&inbox->idle);
    pthread_mutex_unlock(&inbox->mutex);
}

void inbox_publish(struct inbox *inbox, const struct engine_load *load)
{
    pthread_mutex_lock(&inbox->mutex);
    inbox->load = *load;
    pthread_mutex_unlock(&inbox->mutex);
}

void inbox_fail(struct inbox *inbox, const struct error *error)
{
    pthread_mutex_lock(&inbox->mutex);
    if (inbox->failure.status == STATUS_OK)
        inbox->failure = *error;
    pthread_mutex_unlock(&inbox->mutex);
}
