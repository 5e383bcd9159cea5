/* Ids of one output to text. `held` has decoded text that was not released yet: it may be the
 * beginning of a stop string. All memory is taken at creation. */
#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"
#include "daemon/request.h"
#include "daemon/tokenizer_private.h"
#include "daemon/utf8.h"

enum { REPLACEMENT_BYTES = 3, PARTIAL_MAX = 4 };

/* One stop string being looked for by Knuth, Morris and Pratt's method. */
struct search {
    const char *text;
    size_t length;
    size_t *border; /* [length] longest proper border of each prefix */
    size_t state;   /* how much of the stop string the text ends with */
};

struct stream {
    const struct tokenizer *tokenizer;
    struct search *searches; /* [count] */
    size_t *borders;
    int count, matched;
    bool include_stop;
    char partial[PARTIAL_MAX]; /* the beginning of a character */
    size_t partial_length;
    char *held;
    size_t held_length, released; /* held[0, released) went out with the last call */
};

static void border_fill(struct search *search)
{
    search->border[0] = 0;
    for (size_t i = 1, state = 0; i < search->length; ++i) {
        while (state > 0 && search->text[i] != search->text[state])
            state = search->border[state - 1];
        if (search->text[i] == search->text[state])
            ++state;
        search->border[i] = state;
    }
}

static bool searches_create(struct stream *stream, const struct stream_options *options,
                            size_t total)
{
    stream->searches = calloc((size_t)options->stop_count + 1, sizeof *stream->searches);
    stream->borders = calloc(total + 1, sizeof *stream->borders);
    if (stream->searches == NULL || stream->borders == NULL)
        return false;
    size_t *border = stream->borders;
    for (int i = 0; i < options->stop_count; ++i) {
        struct search *search = &stream->searches[i];
        *search = (struct search){
            .text = options->stops[i].text, .length = options->stops[i].length, .border = border};
        border += search->length;
        if (search->length > 0)
            border_fill(search);
    }
    stream->count = options->stop_count;
    return true;
}

struct stream *stream_create(const struct stream_options *options)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->tokenizer = options->tokenizer;
    stream->include_stop = options->include_stop;
    stream->matched = -1;
    uint64_t total = 0, longest = 0, room;
    for (int i = 0; i < options->stop_count; ++i) {
        if (!checked_add(total, options->stops[i].length, &total))
            goto failed;
        if (options->stops[i].length > longest)
            longest = options->stops[i].length;
    }
    /* held back + one token of broken bytes */
    room = (options->tokenizer->longest + 2 * PARTIAL_MAX) * REPLACEMENT_BYTES;
    if (!checked_add(room, longest, &room))
        goto failed;
    stream->held = malloc(room);
    if (stream->held == NULL || !searches_create(stream, options, total))
        goto failed;
    return stream;
failed:
    stream_destroy(stream);
    return NULL;
}

void stream_destroy(struct stream *stream)
{
    if (stream == NULL)
        return;
    free(stream->held);
    free(stream->searches);
    free(stream->borders);
    free(stream);
}

/* Moves one search on by a byte; true: the stop string is complete. */
static bool search_byte(struct search *search, char byte)
{
    if (search->length == 0)
        return false;
    while (search->state > 0 && search->text[search->state] != byte)
        search->state = search->border[search->state - 1];
    if (search->text[search->state] == byte)
        ++search->state;
    return search->state == search->length;
}

/* Adds a byte of decoded text; the stop strings end the stream when one is complete. */
static void held_add(struct stream *stream, char byte)
{
    stream->held[stream->held_length++] = byte;
    for (int i = 0; i < stream->count; ++i)
        if (search_byte(&stream->searches[i], byte) &&
            (stream->matched < 0 ||
             stream->searches[i].length > stream->searches[stream->matched].length))
            stream->matched = i;
    if (stream->matched >= 0 && !stream->include_stop)
        stream->held_length -= stream->searches[stream->matched].length;
}

static void held_append(struct stream *stream, const char *text, size_t length)
{
    for (size_t i = 0; i < length && stream->matched < 0; ++i)
        held_add(stream, text[i]);
}

/* Decodes what is whole or broken; the beginning of a character stays in `partial`. */
static void bytes_add(struct stream *stream, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length && stream->matched < 0;) {
        stream->partial[stream->partial_length++] = bytes[i++];
        size_t taken;
        enum utf8_kind kind = utf8_next(stream->partial, stream->partial_length, &taken);
        if (kind == UTF8_WHOLE) {
            held_append(stream, stream->partial, taken);
            stream->partial_length = 0;
        } else if (kind == UTF8_BROKEN) {
            held_append(stream, UTF8_REPLACEMENT, REPLACEMENT_BYTES);
            if (taken < stream->partial_length)
                --i; /* the byte that broke it may begin another character */
            stream->partial_length = 0;
        }
    }
}

/* Forgets what the last call released. */
static void held_trim(struct stream *stream)
{
    stream->held_length -= stream->released;
    memmove(stream->held, stream->held + stream->released, stream->held_length);
    stream->released = 0;
}

/* The text that a stop string can still claim. */
static size_t held_back(const struct stream *stream)
{
    size_t most = 0;
    for (int i = 0; i < stream->count && stream->matched < 0; ++i)
        if (stream->searches[i].state > most)
            most = stream->searches[i].state;
    return most;
}

enum status stream_push(struct stream *stream, int32_t id, const char **text, size_t *length,
                        int *matched)
{
    held_trim(stream);
    if (stream->matched < 0) {
        size_t bytes;
        const char *token = tokenizer_bytes(stream->tokenizer, id, true, &bytes);
        bytes_add(stream, token, bytes);
    }
    stream->released = stream->held_length - held_back(stream);
    *text = stream->held;
    *length = stream->released;
    *matched = stream->matched;
    return STATUS_OK;
}

enum status stream_finish(struct stream *stream, const char **text, size_t *length)
{
    held_trim(stream);
    if (stream->matched < 0 && stream->partial_length > 0) {
        /* past the reach of stop strings: the output has ended already */
        memcpy(stream->held + stream->held_length, UTF8_REPLACEMENT, REPLACEMENT_BYTES);
        stream->held_length += REPLACEMENT_BYTES;
    }
    stream->partial_length = 0;
    stream->released = stream->held_length;
    *text = stream->held;
    *length = stream->released;
    return STATUS_OK;
}
