/* Ids of one output to text. `held` has decoded text that was not released yet: it may be the
 * beginning of a stop string. All memory is taken at creation. */
#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"
#include "daemon/tokenizer_private.h"
#include "daemon/utf8.h"

enum { REPLACEMENT_BYTES = 3, PARTIAL_MAX = 4 };

struct stops {
    const struct stop_string *strings; /* [count] */
    int count;
    size_t longest;
    uint16_t **border; /* [count][length] longest proper border of each prefix */
};

struct stream {
    const struct tokenizer *tokenizer;
    const struct stops *stops;       /* NULL: none */
    uint16_t *state;                 /* [stops] how much of the stop string the text ends with */
    int matched, min_tokens, tokens; /* tokens: pushed so far */
    bool include_stop;
    char partial[PARTIAL_MAX]; /* the beginning of a character */
    size_t partial_length;
    char *held;
    size_t held_length, released; /* held[0, released) went out with the last call */
};

/* ---- stop strings, by Knuth, Morris and Pratt's method ------------------------------------- */

static void border_fill(const struct stop_string *string, uint16_t *border)
{
    border[0] = 0;
    for (size_t i = 1, state = 0; i < string->length; ++i) {
        while (state > 0 && string->text[i] != string->text[state])
            state = border[state - 1];
        if (string->text[i] == string->text[state])
            ++state;
        border[i] = (uint16_t)state;
    }
}

/* One piece of memory: the struct, the pointers, the borders. */
struct stops *stops_create(const struct stop_string *strings, int count)
{
    size_t total = 0, longest = 0;
    for (int i = 0; i < count; ++i) {
        if (strings[i].length > UINT16_MAX)
            return NULL;
        total += strings[i].length;
        longest = strings[i].length > longest ? strings[i].length : longest;
    }
    struct stops *stops = malloc(sizeof *stops + (size_t)count * sizeof *stops->border +
                                 total * sizeof **stops->border);
    if (stops == NULL)
        return NULL;
    uint16_t **border = (uint16_t **)(void *)(stops + 1);
    uint16_t *values = (uint16_t *)(void *)(border + count);
    *stops =
        (struct stops){.strings = strings, .count = count, .longest = longest, .border = border};
    for (int i = 0; i < count; ++i) {
        border[i] = values;
        values += strings[i].length;
        if (strings[i].length > 0)
            border_fill(&strings[i], border[i]);
    }
    return stops;
}

void stops_destroy(struct stops *stops)
{
    free(stops);
}

/* Moves one search on by a byte; true: the stop string is complete. */
static bool search_byte(const struct stops *stops, int index, char byte, uint16_t *state)
{
    const struct stop_string *string = &stops->strings[index];
    const uint16_t *border = stops->border[index];
    if (string->length == 0)
        return false;
    while (*state > 0 && string->text[*state] != byte)
        *state = border[*state - 1];
    if (string->text[*state] == byte)
        ++*state;
    if (*state < string->length)
        return false;
    *state = border[*state - 1];
    return true;
}

/* ---- life ---------------------------------------------------------------------------------- */

struct stream *stream_create(const struct stream_options *options)
{
    const struct stops *stops = options->stops;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->tokenizer = options->tokenizer;
    stream->stops = stops;
    stream->include_stop = options->include_stop;
    stream->min_tokens = options->min_tokens;
    stream->matched = -1;
    /* held back + one token of broken bytes */
    size_t room = (options->tokenizer->longest + 2 * PARTIAL_MAX) * REPLACEMENT_BYTES;
    stream->held = malloc(room + (stops != NULL ? stops->longest : 0));
    stream->state = calloc((size_t)(stops != NULL ? stops->count : 0) + 1, sizeof *stream->state);
    if (stream->held != NULL && stream->state != NULL)
        return stream;
    stream_destroy(stream);
    return NULL;
}

void stream_destroy(struct stream *stream)
{
    if (stream == NULL)
        return;
    free(stream->held);
    free(stream->state);
    free(stream);
}

/* ---- decoding ------------------------------------------------------------------------------ */

/* Adds a byte of decoded text; the stop strings end the stream when one is complete and counts. */
static void held_add(struct stream *stream, char byte)
{
    const struct stops *stops = stream->stops;
    size_t longest = 0;
    stream->held[stream->held_length++] = byte;
    for (int i = 0; stops != NULL && i < stops->count; ++i) {
        bool complete = search_byte(stops, i, byte, &stream->state[i]);
        if (!complete || stream->tokens <= stream->min_tokens ||
            stops->strings[i].length <= longest)
            continue;
        stream->matched = i;
        longest = stops->strings[i].length;
    }
    if (stream->matched >= 0 && !stream->include_stop)
        stream->held_length -= longest;
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
    int count = stream->stops != NULL && stream->matched < 0 ? stream->stops->count : 0;
    for (int i = 0; i < count; ++i)
        most = stream->state[i] > most ? stream->state[i] : most;
    return most;
}

enum status stream_push(struct stream *stream, int32_t id, const char **text, size_t *length,
                        int *matched)
{
    held_trim(stream);
    ++stream->tokens;
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
