/* Where a sequence's time went: its FINISHED event and the engine's histograms. */
#include "daemon/engine_private.h"

#define BOUNDS(list) list, (int)(sizeof list / sizeof list[0])

void times_init(struct engine_times *times)
{
    histogram_init(&times->first_token, BOUNDS(histogram_request_bounds));
    histogram_init(&times->between_tokens, BOUNDS(histogram_token_bounds));
    histogram_init(&times->whole, BOUNDS(histogram_request_bounds));
    histogram_init(&times->queued, BOUNDS(histogram_request_bounds));
    histogram_init(&times->prefill, BOUNDS(histogram_request_bounds));
    histogram_init(&times->decode, BOUNDS(histogram_request_bounds));
}

void times_token(struct engine_times *times, struct sequence *sequence, int64_t now)
{
    const struct job *job = sequence->job;
    bool first = sequence->first == 0;
    if (!job->spec->uncounted)
        histogram_observe(first ? &times->first_token : &times->between_tokens,
                          clock_seconds(now - (first ? job->arrival : sequence->newest)));
    if (first)
        sequence->first = now;
    sequence->newest = now;
}

void times_finish(struct engine_times *times, const struct sequence *sequence, struct event *event,
                  int64_t now)
{
    int64_t arrival = sequence->job->arrival;
    int64_t started = sequence->started != 0 ? sequence->started : now;
    int64_t first = sequence->first != 0 ? sequence->first : now;
    event->queued = clock_seconds(started - arrival);
    event->prefill = clock_seconds(first - started);
    event->decode = clock_seconds(now - first);
    const struct request_spec *spec = sequence->job->spec;
    if (spec->uncounted || spec->kind != REQUEST_GENERATE ||
        (event->reason != FINISH_STOP && event->reason != FINISH_LENGTH))
        return;
    histogram_observe(&times->whole, clock_seconds(now - arrival));
    histogram_observe(&times->queued, event->queued);
    histogram_observe(&times->prefill, event->prefill);
    histogram_observe(&times->decode, event->decode);
}

const struct engine_times *engine_times(const struct engine *engine)
{
    return &engine->times;
}
