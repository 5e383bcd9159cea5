/* The bytes are text (the first byte: options) for the demo model's tokenizer. Text that is ASCII
 * comes back as it was; ids through a stream give what decoding them at once gives. */
#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"
#include "daemon/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *tokenizer_once(void)
{
    static struct tokenizer *tokenizer;
    if (tokenizer == NULL &&
        tokenizer_load(JETD_TEST_DATA "/../../ops/demo-model", &tokenizer, NULL) != STATUS_OK)
        abort();
    return tokenizer;
}

/* The stream's whole text must be `expected`, or its beginning where a stop string ended it. */
static void stream_check(const int32_t *ids, size_t count, const char *expected, size_t length,
                         const struct stop_string *stop)
{
    struct stops *stops = stop == NULL ? NULL : stops_create(stop, 1);
    const struct stream_options options = {.tokenizer = tokenizer_once(), .stops = stops};
    struct stream *stream = stream_create(&options);
    const char *text;
    size_t total = 0, released;
    int matched = -1;
    if (stream == NULL || (stop != NULL && stops == NULL))
        abort();
    for (size_t i = 0; i <= count; ++i) {
        if (i < count)
            stream_push(stream, ids[i], &text, &released, &matched);
        else
            stream_finish(stream, &text, &released);
        if (released > length - total || memcmp(expected + total, text, released) != 0 ||
            utf8_invalid(text, released) != released)
            abort();
        total += released;
    }
    const char *found = stop == NULL ? NULL : memmem(expected, length, stop->text, stop->length);
    if (matched >= 0 && (found == NULL || total != (size_t)(found - expected)))
        abort();
    /* without a match: none, or only with the U+FFFD that the end itself added */
    if (matched < 0 &&
        (total != length || (found != NULL && found + stop->length != expected + length)))
        abort();
    stream_destroy(stream);
    stops_destroy(stops);
}

static void ids_check(const int32_t *ids, size_t count, struct arena *arena)
{
    char *text;
    size_t length;
    if (tokenizer_decode(tokenizer_once(), ids, count, true, arena, &text, &length, NULL) !=
        STATUS_OK)
        abort();
    if (utf8_invalid(text, length) != length)
        abort();
    stream_check(ids, count, text, length, NULL);
    size_t stop_length = length < 3 ? length : 3; /* text from the middle, whole characters */
    const struct stop_string stop = {.text = text + length / 2, .length = stop_length};
    if (length / 2 + stop_length <= length && stop_length > 0 &&
        utf8_invalid(stop.text, stop.length) == stop.length)
        stream_check(ids, count, text, length, &stop);
}

static void text_check(const char *text, size_t size, bool specials, struct arena *arena)
{
    int32_t *ids;
    size_t count, length;
    char *back;
    struct error error = {0};
    enum status status =
        tokenizer_encode(tokenizer_once(), text, size, specials, arena, &ids, &count, &error);
    if ((status == STATUS_OK) != (utf8_invalid(text, size) == size))
        abort();
    if (status != STATUS_OK)
        return;
    ids_check(ids, count, arena);
    for (size_t i = 0; i < size; ++i)
        if ((unsigned char)text[i] >= 0x80)
            return;
    if (tokenizer_decode(tokenizer_once(), ids, count, false, arena, &back, &length, NULL) !=
            STATUS_OK ||
        length != size || memcmp(back, text, size) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct arena *arena = arena_create((size_t)64 << 20);
    if (data[0] & 1) { /* pairs of bytes are ids */
        size_t count = (size - 1) / 2;
        int32_t *ids = arena_allocate(arena, count, sizeof *ids);
        for (size_t i = 0; i < count; ++i)
            ids[i] = (data[1 + 2 * i] << 8 | data[2 + 2 * i]) % 4200 - 2;
        ids_check(ids, count, arena);
    } else {
        text_check((const char *)data + 1, size - 1, data[0] & 2, arena);
    }
    arena_destroy(arena);
    return 0;
}
