/* Slow readers and deadlines: what time does to live requests. */
#include "daemon/engine_private.h"

static void entries_pause(struct job *job, bool paused)
{
    job->paused = paused;
    for (int i = 0; i < job->choices; i++)
        job->sequence[i].entry.paused = paused;
}

static size_t outbox_mark(const struct engine *engine)
{
    return engine->options.outbox_bytes / 2;
}

static int64_t outbox_patience(const struct engine *engine)
{
    return (int64_t)(engine->options.outbox_timeout * (double)CLOCK_SECOND);
}

static void deadline_note(struct engine *engine, int64_t deadline)
{
    if (deadline < engine->next_deadline)
        engine->next_deadline = deadline;
}

void job_send(struct engine *engine, struct job *job, struct event *event)
{
    struct outbox *outbox = &job->request->outbox;
    if (event == NULL)
        return;
    outbox_push(outbox, event);
    if (job->paused || outbox_bytes(outbox) <= engine->options.outbox_bytes ||
        !outbox_watch(outbox, outbox_mark(engine), inbox_poke, &engine->inbox))
        return;
    entries_pause(job, true);
    job->paused_at = clock_now();
    engine->paused++;
    deadline_note(engine, job->paused_at + outbox_patience(engine));
}

void job_resume(struct engine *engine, struct job *job)
{
    if (!job->paused)
        return;
    outbox_unwatch(&job->request->outbox);
    entries_pause(job, false);
    engine->paused--;
}

/* When the job must be looked at again; CLOCK_NEVER too when it was ended here. */
static int64_t job_expire(struct engine *engine, struct job *job, int64_t now)
{
    if (job->spec->deadline <= now) {
        job_end(engine, job,
                &(struct ending){.reason = FINISH_DEADLINE,
                                 .status = STATUS_DEADLINE_EXCEEDED,
                                 .detail = "the deadline passed",
                                 .matched_id = -1});
        return CLOCK_NEVER;
    }
    if (!job->paused)
        return job->spec->deadline;
    if (outbox_bytes(&job->request->outbox) <= outbox_mark(engine)) {
        job_resume(engine, job);
        return job->spec->deadline;
    }
    int64_t patience = job->paused_at + outbox_patience(engine);
    if (patience > now)
        return patience < job->spec->deadline ? patience : job->spec->deadline;
    job_end(engine, job,
            &(struct ending){.reason = FINISH_ERROR,
                             .status = STATUS_RESOURCE_EXHAUSTED,
                             .detail = "the reader did not take its messages in time",
                             .matched_id = -1});
    return CLOCK_NEVER;
}

void jobs_expire(struct engine *engine, int64_t now)
{
    if (now < engine->next_deadline && engine->paused == 0)
        return;
    engine->next_deadline = CLOCK_NEVER;
    for (struct job *job = engine->jobs, *next; job != NULL; job = next) {
        next = job->next;
        deadline_note(engine, job_expire(engine, job, now));
    }
}
