/* The bytes are tokenizer.json; an accepted tokenizer encodes and decodes a few words. */
#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const struct tokenizer *tokenizer)
{
    static const char text[] = " abc'S 12\n<x>\xC3\xA9";
    struct arena *arena = arena_create(1 << 20);
    struct error error = {0};
    int32_t *ids;
    size_t count, length;
    char *decoded;
    if (tokenizer_encode(tokenizer, text, sizeof text - 1, true, arena, &ids, &count, &error) ==
        STATUS_OK) {
        for (size_t i = 0; i < count; ++i)
            if (ids[i] < 0 || ids[i] >= tokenizer_size(tokenizer))
                abort();
        if (tokenizer_decode(tokenizer, ids, count, false, arena, &decoded, &length, &error) !=
                STATUS_OK ||
            utf8_invalid(decoded, length) != length)
            abort();
    } else if (error.text[0] == '\0') {
        abort();
    }
    arena_destroy(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer *tokenizer;
    struct error error = {0};
    enum status status =
        tokenizer_parse("tokenizer.json", (const char *)data, size, &tokenizer, &error);
    if (status != STATUS_OK) {
        if (error.status != status || error.text[0] == '\0')
            abort();
        return 0;
    }
    use(tokenizer);
    tokenizer_free(tokenizer);
    return 0;
}
