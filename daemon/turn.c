/* The engine's thread. A turn: hear what others want, let time do its part, keep shape.depth
 * steps under way, commit the oldest. It sleeps only when nothing can run. */
#include "daemon/engine_private.h"

static const struct ending CANCELLED = {
    .reason = FINISH_CANCELLED,
    .status = STATUS_CANCELLED,
    .detail = "cancelled",
    .matched_id = -1,
};

void engine_publish(struct engine *engine)
{
    struct blocks_usage usage;
    struct engine_load *load = &engine->load;
    scheduler_usage(engine->scheduler, &usage);
    load->running = scheduler_running(engine->scheduler);
    load->waiting = scheduler_waiting(engine->scheduler);
    load->slots = usage.slots;
    load->slots_used = usage.slots_used;
    load->blocks = (uint64_t)usage.blocks;
    load->blocks_used = (uint64_t)usage.blocks_reserved;
    load->steps = engine->steps;
    inbox_publish(&engine->inbox, load);
}

/* The place in the ring of the step `later` than the oldest under way. */
static int flight_at(const struct engine *engine, int later)
{
    return (engine->first_flight + later) % engine->shape.depth;
}

/* ---- failure ------------------------------------------------------------------------------ */

static struct ending ending_of(const struct error *failure)
{
    return (struct ending){.reason = FINISH_ERROR,
                           .status = failure->status,
                           .detail = failure->text,
                           .matched_id = -1};
}

/* A step failed on some rank: nothing that was under way can be trusted or collected. */
static void engine_fail(struct engine *engine, uint64_t step, enum status status,
                        struct error *failure)
{
    error_set(failure, status, "the step could not be run");
    error_prefix(failure, "step %llu", (unsigned long long)step);
    engine->failed = true;
    inbox_fail(&engine->inbox, failure);
    struct ending ending = ending_of(failure);
    while (engine->jobs != NULL) {
        struct job *job = engine->jobs;
        job_end(engine, job, &ending);
    }
    for (; engine->flights > 0; engine->flights--) {
        const struct batch *batch = engine->flight[engine->first_flight];
        for (int i = 0; i < batch->items; i++) {
            struct sequence *sequence = (struct sequence *)batch->item[i].entry;
            sequence->flights--;
            sequence_reap(engine, sequence);
        }
        engine->first_flight = flight_at(engine, 1);
    }
}

/* ---- news --------------------------------------------------------------------------------- */

static void job_link(struct engine *engine, struct job *job)
{
    job->next = engine->jobs;
    if (job->next != NULL)
        job->next->previous = job;
    engine->jobs = job;
    engine->load.requests += !job->spec->uncounted;
    if (job->spec->deadline < engine->next_deadline)
        engine->next_deadline = job->spec->deadline;
}

static void job_accept(struct engine *engine, struct job *job)
{
    job_link(engine, job);
    if (engine->failed) {
        struct error failure = engine->inbox.failure; /* only this thread writes it */
        struct ending ending = ending_of(&failure);
        job_end(engine, job, &ending);
        return;
    }
    job_send(engine, job, job->prompt);
    job->prompt = NULL;
    if (job->sequence[0].entry.inputs == 0) { /* SCORE of one token: nothing to compute */
        struct event *score = job->score;
        job->score = NULL;
        job_send(engine, job, score);
        job_end(engine, job, &(struct ending){.reason = FINISH_STOP, .matched_id = -1});
        return;
    }
    for (int i = 0; i < job->choices; i++) {
        job->sequence[i].entry.arrival = engine->arrivals++;
        scheduler_add(engine->scheduler, &job->sequence[i].entry);
    }
}

/* Returns whether the engine is to stop. */
static bool engine_listen(struct engine *engine)
{
    struct inbox_news news = inbox_take(&engine->inbox);
    for (struct request *request = news.submitted, *next; request != NULL; request = next) {
        next = request->submitted_next; /* the request may be gone below */
        job_accept(engine, request->job);
    }
    for (struct request *request = news.cancelled, *next; request != NULL; request = next) {
        next = request->cancelled_next;
        if (request->job != NULL)
            job_end(engine, request->job, &CANCELLED);
        request_release(request);
    }
    while (news.stopping && engine->jobs != NULL)
        job_end(engine, engine->jobs, &CANCELLED);
    return news.stopping;
}

/* ---- steps -------------------------------------------------------------------------------- */

static void batch_depart(struct engine *engine, const struct batch *batch, int64_t now)
{
    for (int i = 0; i < batch->items; i++) {
        struct sequence *sequence = (struct sequence *)batch->item[i].entry;
        sequence->flights++;
        if (sequence->started == 0)
            sequence->started = now;
        if (!sequence->job->started) {
            sequence->job->started = true;
            inbox_started(&engine->inbox);
        }
    }
    engine->flights++;
    engine->steps++;
}

/* Composes and submits one step; false: nothing can run, or enough is under way. */
static bool step_submit(struct engine *engine, int64_t now)
{
    if (engine->failed || engine->flights == engine->shape.depth)
        return false;
    struct batch *batch = engine->flight[flight_at(engine, engine->flights)];
    enum status status = scheduler_compose(engine->scheduler, batch);
    if (status == STATUS_OK && batch->items == 0)
        return false;
    const void *bytes;
    size_t length;
    if (status == STATUS_OK)
        status = batch_build(engine, batch, &bytes, &length);
    if (status == STATUS_OK)
        status = executor_submit(engine->options.executor, bytes, length);
    if (status == STATUS_OK) {
        batch_depart(engine, batch, now);
        return true;
    }
    engine_fail(engine, engine->steps, status, &(struct error){0});
    return false;
}

static void step_collect(struct engine *engine)
{
    const struct batch *batch = engine->flight[engine->first_flight];
    struct error error = {0};
    int rows = 0;
    enum status status = executor_collect(engine->options.executor, engine->result,
                                          engine->shape.max_rows, &rows, &error);
    if (status == STATUS_OK && rows != batch->rows)
        status = error_set(&error, STATUS_INTERNAL, "the step has %d rows, %d results came",
                           batch->rows, rows);
    if (status != STATUS_OK) {
        engine_fail(engine, engine->steps - (uint64_t)engine->flights, status, &error);
        return;
    }
    engine->first_flight = flight_at(engine, 1);
    engine->flights--;
    batch_commit(engine, batch, engine->result, clock_now());
}

void *engine_run(void *context)
{
    struct engine *engine = context;
    for (;;) {
        bool stopping = engine_listen(engine);
        int64_t now = clock_now();
        jobs_expire(engine, now);
        bool submitted = step_submit(engine, now);
        bool collected = !submitted && engine->flights > 0;
        if (collected)
            step_collect(engine);
        engine_publish(engine);
        if (stopping && engine->jobs == NULL && engine->flights == 0)
            return NULL;
        /* What was collected may have given back what a waiting sequence needs. */
        if (!submitted && !collected && engine->flights == 0)
            inbox_sleep(&engine->inbox, engine->next_deadline);
    }
}
