/* Rank 0's loop, a ring of shape.depth steps between the engine's thread and it:
 *
 *   EMPTY --submit--> WAITING --the thread runs it--> DONE --collect--> EMPTY
 * The first failure stays: every step after it ends with the same words. */
#include "daemon/executor.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "daemon/base/clock.h"

enum slot_state { SLOT_EMPTY, SLOT_WAITING, SLOT_DONE };

struct slot {
    enum slot_state state;
    unsigned char *bytes; /* [room] */
    size_t length;
    struct sample_result *results; /* [max_rows] */
    int rows;
};

struct executor {
    struct stage *stage;
    struct fabric *fabric;
    struct step_shape shape;
    size_t room; /* of a step's bytes */
    struct slot slots[STAGE_DEPTH];

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint64_t submitted, collected; /* under lock */
    bool closing;                  /* under lock */
    struct error failure;          /* under lock; STATUS_OK while all is well */
};

/* Starts a step from its bytes. Rank 0 publishes it within the step: a rank that does not take it
 * is then the watch's to find. */
static enum status step_start(struct stage *stage, struct fabric *fabric,
                              const struct step_shape *shape, const void *bytes, size_t length,
                              struct error *error)
{
    struct step step;
    enum status status = step_decode(shape, bytes, length, &step, error);
    if (status == STATUS_OK) {
        fabric_step_begin(fabric, step.number);
        if (fabric->rank == 0)
            status = fabric->ops->publish(fabric, bytes, length);
    }
    if (status == STATUS_OK)
        status = stage_submit(stage, &step, error);
    if (status != STATUS_OK)
        error_set(error, status, "a step failed: %s", status_name(status));
    return status;
}

/* Waits for the oldest step; the rank is idle when it was the only one. */
static enum status step_end(struct stage *stage, struct fabric *fabric,
                            struct sample_result *results, int *rows, struct error *error)
{
    fabric_wait_begin(fabric);
    enum status status = stage_collect(stage, results, rows, error);
    fabric_wait_end(fabric);
    if (stage_pending(stage) == 0)
        fabric_step_end(fabric);
    return status;
}

static struct slot *slot_at(struct executor *executor, uint64_t number)
{
    return &executor->slots[number % (uint64_t)executor->shape.depth];
}

static void start_slot(struct executor *executor, struct slot *slot, struct error *error)
{
    step_start(executor->stage, executor->fabric, &executor->shape, slot->bytes, slot->length,
               error);
}

/* Whether the step of that number was submitted; `wait`: sleeps until it was or closing began. */
static bool is_submitted(struct executor *executor, uint64_t number, bool wait)
{
    pthread_mutex_lock(&executor->lock);
    while (wait && executor->submitted == number && !executor->closing)
        pthread_cond_wait(&executor->moved, &executor->lock);
    bool there = executor->submitted != number;
    pthread_mutex_unlock(&executor->lock);
    return there;
}

/* With room for another step, until one is there to start or the oldest is ready to collect. The
 * device cannot wake us for the second, so this sleeps in short turns. */
static void wait_either(struct executor *executor, uint64_t number)
{
    fabric_wait_begin(executor->fabric);
    while (!stage_ready(executor->stage) && !is_submitted(executor, number, false))
        clock_sleep(CLOCK_SECOND / 100000);
    fabric_wait_end(executor->fabric);
}

static void finish_slot(struct executor *executor, struct slot *slot, const struct error *failure)
{
    pthread_mutex_lock(&executor->lock);
    slot->state = SLOT_DONE;
    executor->failure = *failure;
    pthread_cond_broadcast(&executor->moved);
    pthread_mutex_unlock(&executor->lock);
}

static void *executor_main(void *context)
{
    struct executor *executor = context;
    struct fabric *fabric = executor->fabric;
    struct error failure = {.status = STATUS_OK};
    uint64_t started = 0, ended = 0, depth = (uint64_t)executor->shape.depth;
    prctl(PR_SET_TIMERSLACK, 1000); /* nanoseconds: short sleeps are short */
    /* A step that waits is started before the one under way is collected. */
    while (is_submitted(executor, started, started == ended) || started > ended) {
        bool failed_before = failure.status != STATUS_OK;
        if (started - ended < depth && is_submitted(executor, started, false)) {
            if (!failed_before)
                start_slot(executor, slot_at(executor, started), &failure);
            started++;
            if (failure.status == STATUS_OK && started - ended < depth) {
                wait_either(executor, started);
                continue;
            }
        }
        struct slot *slot = slot_at(executor, ended++);
        if (failure.status == STATUS_OK)
            step_end(executor->stage, fabric, slot->results, &slot->rows, &failure);
        finish_slot(executor, slot, &failure);
        if (!failed_before && failure.status != STATUS_OK)
            fabric->ops->abort(fabric, failure.status, failure.text);
    }
    if (failure.status == STATUS_OK)
        fabric->ops->publish(fabric, "", 0); /* the stop step */
    return NULL;
}

static void slots_free(struct executor *executor)
{
    for (int i = 0; i < STAGE_DEPTH; i++) {
        free(executor->slots[i].bytes);
        free(executor->slots[i].results);
    }
    free(executor);
}

static bool slots_take(struct executor *executor)
{
    size_t rows = executor->shape.max_rows > 0 ? (size_t)executor->shape.max_rows : 1;
    for (int i = 0; i < executor->shape.depth; i++) {
        struct slot *slot = &executor->slots[i];
        slot->bytes = malloc(executor->room);
        slot->results = calloc(rows, sizeof *slot->results);
        if (slot->bytes == NULL || slot->results == NULL)
            return false;
    }
    return true;
}

enum status executor_open(const struct executor_options *options, struct executor **result,
                          struct error *error)
{
    struct executor *executor = calloc(1, sizeof *executor);
    if (executor == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for the executor");
    executor->stage = options->stage;
    executor->fabric = options->fabric;
    executor->shape = *options->shape;
    executor->room = step_bytes_max(options->shape);
    enum status status = STATUS_OK;
    if (!slots_take(executor)) {
        status = error_set(error, STATUS_NO_MEMORY, "no memory for %d steps of %zu bytes",
                           executor->shape.depth, executor->room);
        goto free_slots;
    }
    pthread_mutex_init(&executor->lock, NULL);
    pthread_cond_init(&executor->moved, NULL);
    int failure = pthread_create(&executor->thread, NULL, executor_main, executor);
    if (failure != 0) {
        status = error_set(error, STATUS_IO, "no thread for the executor (error %d)", failure);
        goto destroy_lock;
    }
    *result = executor;
    return STATUS_OK;
destroy_lock:
    pthread_cond_destroy(&executor->moved);
    pthread_mutex_destroy(&executor->lock);
free_slots:
    slots_free(executor);
    return status;
}

void executor_close(struct executor *executor)
{
    if (executor == NULL)
        return;
    pthread_mutex_lock(&executor->lock);
    executor->closing = true;
    pthread_cond_broadcast(&executor->moved);
    pthread_mutex_unlock(&executor->lock);
    pthread_join(executor->thread, NULL);
    pthread_cond_destroy(&executor->moved);
    pthread_mutex_destroy(&executor->lock);
    slots_free(executor);
}

enum status executor_submit(struct executor *executor, const void *bytes, size_t length)
{
    if (length == 0 || length > executor->room)
        return STATUS_INTERNAL;
    enum status status = STATUS_INTERNAL; /* more than shape.depth uncollected */
    pthread_mutex_lock(&executor->lock);
    struct slot *slot = slot_at(executor, executor->submitted);
    if (slot->state == SLOT_EMPTY) {
        memcpy(slot->bytes, bytes, length);
        slot->length = length;
        slot->state = SLOT_WAITING;
        executor->submitted++;
        pthread_cond_broadcast(&executor->moved);
        status = STATUS_OK;
    }
    pthread_mutex_unlock(&executor->lock);
    return status;
}

enum status executor_collect(struct executor *executor, struct sample_result *results, int room,
                             int *rows, struct error *error)
{
    enum status status = STATUS_OK;
    pthread_mutex_lock(&executor->lock);
    if (executor->collected == executor->submitted) {
        status = error_set(error, STATUS_INTERNAL, "no step was submitted");
        goto unlock;
    }
    struct slot *slot = slot_at(executor, executor->collected);
    while (slot->state != SLOT_DONE)
        pthread_cond_wait(&executor->moved, &executor->lock);
    /* A failure may belong to the step after this one; the process ends all the same. */
    status = executor->failure.status;
    if (status != STATUS_OK)
        error_set(error, status, "%s", executor->failure.text);
    else if (slot->rows > room)
        status = error_set(error, STATUS_INTERNAL, "a step of %d rows, but room for %d", slot->rows,
                           room);
    if (status == STATUS_OK) {
        memcpy(results, slot->results, (size_t)slot->rows * sizeof *results);
        *rows = slot->rows;
    }
    slot->state = SLOT_EMPTY;
    executor->collected++;
unlock:
    pthread_mutex_unlock(&executor->lock);
    return status;
}

enum status executor_serve(struct stage *stage, struct fabric *fabric,
                           const struct step_shape *shape, struct error *error)
{
    struct error failure = {.status = STATUS_OK};
    size_t room = step_bytes_max(shape), length = 0;
    unsigned char *bytes = malloc(room);
    enum status status = STATUS_OK;
    if (bytes == NULL)
        status = error_set(&failure, STATUS_NO_MEMORY, "no memory for a step of %zu bytes", room);
    while (status == STATUS_OK) {
        int rows = 0;
        status = fabric->ops->await(fabric, bytes, room, &length);
        if (status != STATUS_OK)
            error_set(&failure, status, "waiting for a step: %s", status_name(status));
        else if (length == 0)
            break;
        else
            status = step_start(stage, fabric, shape, bytes, length, &failure);
        /* What needs no wait ends now: a rank between steps must not look busy to the watch. */
        while (status == STATUS_OK && (stage_pending(stage) == shape->depth || stage_ready(stage)))
            status = step_end(stage, fabric, NULL, &rows, &failure);
    }
    free(bytes);
    if (status == STATUS_OK)
        return STATUS_OK;
    error_set(error, status, "%s", failure.text);
    fabric->ops->abort(fabric, status, failure.text);
    return status;
}
