/* The prompt sent back: its ids, its text and, where scored, its log-probabilities. */
#include "daemon/engine_private.h"
#include "daemon/text.h"

/* A stream that the output goes on with keeps an unfinished character; one of its own ends here. */
static bool text_fill(const struct sequence *sequence, int begin, int end, struct text *text)
{
    const struct request_spec *spec = sequence->job->spec;
    struct stream *stream = sequence->echo_stream;
    const char *piece;
    size_t length;
    int matched;
    if (!spec->text)
        return true;
    for (int i = begin; i < end; i++) {
        if (stream_push(stream, spec->prompt[i], &piece, &length, &matched) != STATUS_OK ||
            !text_append(text, piece, length))
            return false;
    }
    if (end < spec->prompt_tokens || stream == sequence->stream)
        return true;
    return stream_finish(stream, &piece, &length) == STATUS_OK && text_append(text, piece, length);
}

static void logprobs_fill(struct event *event, const struct sequence *sequence, int begin, int end,
                          const struct sample_result *results, int tops)
{
    if (begin == 0) /* nothing predicts the first token */
        event_add_logprob(event, &(struct sample_result){.token = sequence->job->spec->prompt[0]},
                          0);
    for (int i = begin == 0 ? 1 : begin; i < end; i++)
        event_add_logprob(event, results++, tops);
}

struct event *echo_create(const struct sequence *sequence, int begin, int end,
                          const struct sample_result *results)
{
    const struct request_spec *spec = sequence->job->spec;
    struct text text = {0};
    struct event *event = NULL;
    if (text_fill(sequence, begin, end, &text)) {
        size_t ids = (size_t)(end - begin);
        struct event_room room = {.ids = ids,
                                  .text = text.length,
                                  .logprobs = results != NULL ? ids : 0,
                                  .tops = spec->logprobs > 0 ? (size_t)spec->logprobs : 0};
        event = event_create(EVENT_DELTA, sequence->index, room);
        if (event != NULL) {
            event_add_ids(event, spec->prompt + begin, end - begin);
            event_add_text(event, text.bytes, text.length);
            if (results != NULL)
                logprobs_fill(event, sequence, begin, end, results, (int)room.tops);
        }
    }
    text_free(&text);
    return event;
}
