#include <string.h>

#include "daemon/tokenizer_private.h"
#include "daemon/utf8.h"

int tokenizer_size(const struct tokenizer *tokenizer)
{
    return tokenizer->size;
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t id, bool skip_special,
                            size_t *length)
{
    *length = 0;
    if (id < 0 || id >= tokenizer->size || !tokenizer->tokens[id].present ||
        (skip_special && tokenizer->tokens[id].special))
        return "";
    *length = tokenizer->tokens[id].length;
    return tokenizer->bytes.bytes + tokenizer->tokens[id].offset;
}

size_t tokenizer_raw_bytes(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                           bool skip_special)
{
    size_t total = 0;
    for (size_t i = 0, bytes; i < count; ++i) {
        tokenizer_bytes(tokenizer, ids[i], skip_special, &bytes);
        total += bytes;
    }
    return total;
}

/* `from` with U+FFFD for broken parts into `to`; its length. to NULL: the length alone. */
static size_t replace_broken(const char *from, size_t length, char *to)
{
    size_t written = 0;
    for (size_t at = 0, taken; at < length; at += taken) {
        bool whole = utf8_next(from + at, length - at, &taken) == UTF8_WHOLE;
        size_t bytes = whole ? taken : strlen(UTF8_REPLACEMENT);
        if (to != NULL)
            memcpy(to + written, whole ? from + at : UTF8_REPLACEMENT, bytes);
        written += bytes;
    }
    return written;
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                             bool skip_special, struct arena *arena, char **text, size_t *length,
                             struct error *error)
{
    struct text raw = {0};
    bool fine = text_reserve(&raw, tokenizer_raw_bytes(tokenizer, ids, count, skip_special));
    for (size_t i = 0; fine && i < count; ++i) {
        size_t bytes;
        const char *token = tokenizer_bytes(tokenizer, ids[i], skip_special, &bytes);
        fine = text_append(&raw, token, bytes);
    }
    if (fine) {
        *length = replace_broken(raw.bytes, raw.length, NULL);
        *text = arena_allocate(arena, *length + 1, 1);
        fine = *text != NULL;
    }
    if (fine)
        replace_broken(raw.bytes, raw.length, *text);
    text_free(&raw);
    return fine ? STATUS_OK
                : error_set(error, STATUS_RESOURCE_EXHAUSTED,
                            "the text of %zu token ids does not fit the request's memory", count);
}
