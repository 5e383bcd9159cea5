/* Results of a collected step: tokens to streams, streams to events. */
#include "daemon/engine_private.h"

static const struct ending NOT_FINITE = {
    .reason = FINISH_ERROR,
    .status = STATUS_INTERNAL,
    .detail = "the model produced logits that are not finite",
    .matched_id = -1,
};

static size_t tops_of(const struct request_spec *spec)
{
    return spec->logprobs > 0 ? (size_t)spec->logprobs : 0;
}

/* ---- sampled tokens ----------------------------------------------------------------------- */

/* *matched: the stop string that this token completed, -1: none. */
static bool token_send(struct engine *engine, struct sequence *sequence,
                       const struct sample_result *result, int *matched)
{
    const struct request_spec *spec = sequence->job->spec;
    const char *text = "";
    size_t length = 0;
    *matched = -1;
    if (sequence->stream != NULL &&
        stream_push(sequence->stream, result->token, &text, &length, matched) != STATUS_OK)
        return false;
    struct event_room room = {.ids = 1,
                              .text = spec->text ? length : 0,
                              .logprobs = spec->logprobs >= 0,
                              .tops = tops_of(spec)};
    struct event *event = event_create(EVENT_DELTA, sequence->index, room);
    if (event == NULL)
        return false;
    event_add_id(event, result->token);
    event_add_text(event, text, room.text);
    if (room.logprobs > 0)
        event_add_logprob(event, result, (int)room.tops);
    job_send(engine, sequence->job, event);
    return true;
}

/* A stop id is counted, but only with include_stop it is sent. */
static void token_commit(struct engine *engine, struct sequence *sequence,
                         const struct sample_result *result)
{
    const struct request_spec *spec = sequence->job->spec;
    bool stops = job_stops_at(sequence->job, result->token);
    int matched = -1;
    sequence->sampled++;
    engine->load.generated_tokens += !spec->uncounted;
    struct ending ending = {.reason = FINISH_NONE, .matched_id = stops ? result->token : -1};
    if ((!stops || spec->include_stop) && !token_send(engine, sequence, result, &matched))
        ending = ending_no_memory;
    else if (matched >= 0) {
        ending.reason = FINISH_STOP;
        ending.matched_stop = &spec->stops[matched];
    } else if (stops || sequence->sampled == spec->max_new_tokens) {
        ending.reason = stops ? FINISH_STOP : FINISH_LENGTH;
    }
    if (ending.reason != FINISH_NONE)
        sequence_end(engine, sequence, &ending);
}

/* ---- scored prompt tokens ----------------------------------------------------------------- */

static void score_commit(struct engine *engine, struct sequence *sequence,
                         const struct sample_result *results, int rows)
{
    struct job *job = sequence->job;
    for (int i = 0; i < rows; i++)
        event_add_logprob(job->score, &results[i], (int)tops_of(job->spec));
    sequence->scored += rows;
    if (sequence->scored < sequence->entry.scored)
        return;
    job_send(engine, job, job->score);
    job->score = NULL;
    sequence_end(engine, sequence, &(struct ending){.reason = FINISH_STOP, .matched_id = -1});
}

/* The prompt leaves chunk by chunk, so that no more of it is in the outbox than was read: with
 * log-probabilities each token in the step that predicts it, and the first beside the second. */
static bool echo_send(struct engine *engine, struct sequence *sequence,
                      const struct batch_item *item, const struct sample_result *results)
{
    bool scored = sequence->job->spec->logprobs >= 0;
    int begin = item->context + (scored && item->context > 0);
    int end = scored ? item->context + item->scored + 1 : item->context + item->tokens;
    if (begin == end)
        return true;
    struct event *event = echo_create(sequence, begin, end, scored ? results : NULL);
    job_send(engine, sequence->job, event);
    return event != NULL;
}

/* ---- items -------------------------------------------------------------------------------- */

/* After each chunk of a prompt that needs several; out of memory only costs the message. */
static void progress_send(struct engine *engine, struct sequence *sequence,
                          const struct batch_item *item)
{
    const struct request_spec *spec = sequence->job->spec;
    if (sequence->index != 0 || item->context >= sequence->entry.inputs ||
        item->tokens == sequence->entry.inputs)
        return;
    struct event *event = event_create(EVENT_PROGRESS, 0, (struct event_room){0});
    if (event == NULL)
        return;
    event->prompt_tokens = spec->prompt_tokens;
    event->prefilled = item->context + item->tokens;
    job_send(engine, sequence->job, event);
}

static bool rows_finite(const struct sample_result *results, int rows)
{
    for (int i = 0; i < rows; i++) {
        if (results[i].token < 0)
            return false;
    }
    return true;
}

static void item_commit(struct engine *engine, struct sequence *sequence,
                        const struct batch_item *item, const struct sample_result *results,
                        int64_t now)
{
    const struct request_spec *spec = sequence->job->spec;
    if (item->context < sequence->entry.inputs && !spec->uncounted)
        engine->load.prompt_tokens += (uint64_t)item->tokens;
    if (!rows_finite(results, item->scored + (item->sample >= 0))) {
        sequence_end(engine, sequence, &NOT_FINITE);
        return;
    }
    if (item->sample >= 0)
        times_token(&engine->times, sequence, now);
    progress_send(engine, sequence, item);
    if (spec->kind == REQUEST_SCORE) {
        score_commit(engine, sequence, results, item->scored);
        return;
    }
    bool echoes = spec->echo && item->context < sequence->entry.inputs;
    if (echoes && !echo_send(engine, sequence, item, results))
        sequence_end(engine, sequence, &ending_no_memory);
    else if (item->sample >= 0)
        token_commit(engine, sequence, &results[item->scored]);
}

void batch_commit(struct engine *engine, const struct batch *batch,
                  const struct sample_result *results, int64_t now)
{
    for (int i = 0; i < batch->items; i++) {
        const struct batch_item *item = &batch->item[i];
        struct sequence *sequence = (struct sequence *)item->entry;
        sequence->flights--;
        if (!sequence->ended)
            item_commit(engine, sequence, item, results, now);
        results += item->scored + (item->sample >= 0);
        sequence_reap(engine, sequence);
    }
}
