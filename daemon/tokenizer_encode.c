#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"

struct encoder {
    const struct tokenizer *tokenizer;
    struct splitter *splitter;
    struct bpe *bpe;
    struct text normal; /* NFC of the present piece */
    struct ids ids;
};

struct encoder *encoder_create(const struct tokenizer *tokenizer)
{
    struct encoder *encoder = calloc(1, sizeof *encoder);
    if (encoder == NULL)
        return NULL;
    encoder->tokenizer = tokenizer;
    encoder->splitter = splitter_create(tokenizer->split);
    encoder->bpe = bpe_create(tokenizer);
    if (encoder->splitter == NULL || encoder->bpe == NULL) {
        encoder_destroy(encoder);
        return NULL;
    }
    return encoder;
}

void encoder_destroy(struct encoder *encoder)
{
    if (encoder == NULL)
        return;
    splitter_destroy(encoder->splitter);
    bpe_destroy(encoder->bpe);
    text_free(&encoder->normal);
    free(encoder->ids.values);
    free(encoder);
}

static enum status no_memory(struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "text: out of memory");
}

/* Text without added tokens. */
static enum status piece_encode(struct encoder *encoder, const char *text, size_t length,
                                struct error *error)
{
    if (length == 0)
        return STATUS_OK;
    if (encoder->tokenizer->nfc) {
        encoder->normal.length = 0;
        enum status status = nfc_append(text, length, &encoder->normal, error);
        if (status != STATUS_OK)
            return status;
        text = encoder->normal.bytes;
        length = encoder->normal.length;
    }
    splitter_start(encoder->splitter, text, length);
    for (;;) {
        size_t start, end;
        enum status status = splitter_next(encoder->splitter, &start, &end, error);
        if (status != STATUS_OK || start == end)
            return status;
        if (!bpe_word(encoder->bpe, text + start, end - start, &encoder->ids))
            return no_memory(error);
    }
}

enum status encoder_text(struct encoder *encoder, const char *text, size_t length, bool specials,
                         struct error *error)
{
    size_t invalid = utf8_invalid(text, length);
    if (invalid < length)
        return error_set(error, STATUS_INVALID_ARGUMENT, "text: invalid UTF-8 at byte %zu",
                         invalid);
    while (specials && length > 0) {
        size_t offset = 0;
        const struct added *added = added_find(encoder->tokenizer, text, length, &offset);
        if (added == NULL)
            break;
        enum status status = piece_encode(encoder, text, offset, error);
        if (status != STATUS_OK)
            return status;
        if (!ids_append(&encoder->ids, added->id))
            return no_memory(error);
        text += offset + added->length;
        length -= offset + added->length;
    }
    return piece_encode(encoder, text, length, error);
}

enum status encoder_id(struct encoder *encoder, int32_t id, struct error *error)
{
    return ids_append(&encoder->ids, id) ? STATUS_OK : no_memory(error);
}

enum status encoder_finish(struct encoder *encoder, struct arena *arena, int32_t **ids,
                           size_t *count, struct error *error)
{
    *ids = arena_copy(arena, encoder->ids.values, encoder->ids.count, sizeof **ids);
    if (*ids == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "text: its %zu token ids do not fit the request's memory",
                         encoder->ids.count);
    *count = encoder->ids.count;
    return STATUS_OK;
}

uint64_t encoder_work(const struct encoder *encoder)
{
    return bpe_work(encoder->bpe);
}

/* An id stands for the bytes of its token in the normal form, or for an added token as written. */
size_t tokenizer_least_tokens(const struct tokenizer *tokenizer, size_t bytes)
{
    size_t most = tokenizer->longest * (tokenizer->nfc ? TOKENIZER_NFC_SHRINK : 1);
    if (tokenizer->longest_added > most)
        most = tokenizer->longest_added;
    return bytes / most + (bytes % most > 0);
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length,
                             bool specials, struct arena *arena, int32_t **ids, size_t *count,
                             struct error *error)
{
    struct encoder *encoder = encoder_create(tokenizer);
    if (encoder == NULL)
        return no_memory(error);
    enum status status = encoder_text(encoder, text, length, specials, error);
    if (status == STATUS_OK)
        status = encoder_finish(encoder, arena, ids, count, error);
    encoder_destroy(encoder);
    return status;
}
