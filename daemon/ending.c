/* The end of a sequence, in two phases: its FINISHED event at once, its slot and blocks when no
 * step under way mentions it. */
#include <stdio.h>
#include <string.h>

#include "daemon/engine_private.h"

const struct ending ending_no_memory = {
    .reason = FINISH_ERROR,
    .status = STATUS_RESOURCE_EXHAUSTED,
    .detail = "out of memory",
    .matched_id = -1,
};

/* What a stream held back, as a delta without a token; false: out of memory. */
static bool stream_flush(struct engine *engine, struct sequence *sequence, struct stream *stream)
{
    const char *text;
    size_t length;
    if (stream == NULL || stream_finish(stream, &text, &length) != STATUS_OK || length == 0 ||
        !sequence->job->spec->text)
        return true;
    struct event *event =
        event_create(EVENT_DELTA, sequence->index, (struct event_room){.text = length});
    if (event == NULL)
        return false;
    event_add_text(event, text, length);
    job_send(engine, sequence->job, event);
    return true;
}

/* However it ends: the text of every id that went out goes out too. */
static bool text_flush(struct engine *engine, struct sequence *sequence)
{
    bool echo = sequence->echo_stream != sequence->stream;
    return (!echo || stream_flush(engine, sequence, sequence->echo_stream)) &&
           stream_flush(engine, sequence, sequence->stream);
}

static struct event *finished_fill(struct engine *engine, struct sequence *sequence,
                                   const struct ending *ending)
{
    struct event *event = sequence->finished;
    sequence->finished = NULL;
    event->reason = ending->reason;
    event->status = ending->status;
    snprintf(event->detail, sizeof event->detail, "%s",
             ending->detail != NULL ? ending->detail : "");
    event->matched_id = ending->matched_id;
    if (ending->matched_stop != NULL) {
        char *text = (char *)event->text; /* there is room for the longest */
        memcpy(text, ending->matched_stop->text, ending->matched_stop->length);
        text[ending->matched_stop->length] = '\0';
        event->matched_stop = text;
        event->matched_stop_length = ending->matched_stop->length;
    }
    event->prompt_tokens = sequence->job->spec->prompt_tokens;
    event->completion_tokens = sequence->sampled;
    event->seed = sequence->seed;
    times_finish(&engine->times, sequence, event, clock_now());
    return event;
}

static void end_count(struct engine_load *load, enum finish_reason reason)
{
    if (reason == FINISH_STOP || reason == FINISH_LENGTH)
        load->finished++;
    else if (reason == FINISH_CANCELLED || reason == FINISH_DEADLINE)
        load->cancelled++;
    else
        load->failed++;
}

/* The last choice ended: nobody can find the request any more, and its id is free before the client
 * can know. */
static void job_close(struct engine *engine, struct job *job, enum finish_reason reason)
{
    job_resume(engine, job);
    *(job->previous == NULL ? &engine->jobs : &job->previous->next) = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
    if (!job->spec->uncounted)
        end_count(&engine->load, reason);
    inbox_forget(&engine->inbox, job->request, !job->started);
}

void sequence_end(struct engine *engine, struct sequence *sequence, const struct ending *ending)
{
    struct job *job = sequence->job;
    if (sequence->ended)
        return;
    if (!text_flush(engine, sequence) && ending->reason != FINISH_ERROR)
        ending = &ending_no_memory;
    sequence->ended = true;
    scheduler_remove(engine->scheduler, &sequence->entry);
    struct event *event = finished_fill(engine, sequence, ending);
    event->last = ++job->ended == job->choices;
    if (event->last)
        job_close(engine, job, ending->reason);
    engine_publish(engine); /* whoever is told of the end finds it counted */
    outbox_push(&job->request->outbox, event);
}

void sequence_reap(struct engine *engine, struct sequence *sequence)
{
    struct job *job = sequence->job;
    if (!sequence->ended || sequence->reaped || sequence->flights > 0)
        return;
    sequence->reaped = true;
    scheduler_release(engine->scheduler, &sequence->entry);
    if (++job->reaped < job->choices)
        return;
    struct request *request = job->request;
    job_destroy(job);
    request_release(request);
    engine_publish(engine);
    inbox_reaped(&engine->inbox);
}

void job_end(struct engine *engine, struct job *job, const struct ending *ending)
{
    for (int i = 0; i < job->choices; i++)
        sequence_end(engine, &job->sequence[i], ending);
    int left = job->choices - job->reaped; /* the job goes with the last of them */
    for (int i = 0; left > 0 && i < job->choices; i++) {
        struct sequence *sequence = &job->sequence[i];
        if (sequence->reaped || sequence->flights > 0)
            continue;
        left--;
        sequence_reap(engine, sequence);
    }
}
