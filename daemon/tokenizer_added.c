#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"

static int added_compare(const void *left, const void *right)
{
    const struct added *a = left, *b = right;
    unsigned char first_a = (unsigned char)a->text[0], first_b = (unsigned char)b->text[0];
    if (first_a != first_b)
        return first_a < first_b ? -1 : 1;
    return a->length > b->length ? -1 : a->length < b->length;
}

void added_order(struct tokenizer *tokenizer)
{
    if (tokenizer->added_count > 0)
        qsort(tokenizer->added, (size_t)tokenizer->added_count, sizeof *tokenizer->added,
              added_compare);
    int at = 0;
    for (int byte = 0; byte < 256; ++byte) {
        tokenizer->added_first[byte] = at;
        while (at < tokenizer->added_count && (unsigned char)tokenizer->added[at].text[0] == byte)
            ++at;
    }
    tokenizer->added_first[256] = at;
}

const struct added *added_find(const struct tokenizer *tokenizer, const char *text, size_t length,
                               size_t *offset)
{
    if (tokenizer->added_count == 0)
        return NULL;
    for (size_t at = 0; at < length; ++at) {
        unsigned char byte = (unsigned char)text[at];
        for (int i = tokenizer->added_first[byte]; i < tokenizer->added_first[byte + 1]; ++i) {
            const struct added *added = &tokenizer->added[i];
            if (added->length <= length - at &&
                memcmp(text + at, added->text, added->length) == 0) {
                *offset = at;
                return added;
            }
        }
    }
    return NULL;
}

int32_t added_id(const struct tokenizer *tokenizer, const char *text, size_t length)
{
    for (int i = 0; i < tokenizer->added_count; ++i)
        if (tokenizer->added[i].length == length &&
            memcmp(tokenizer->added[i].text, text, length) == 0)
            return tokenizer->added[i].id;
    return -1;
}

int32_t tokenizer_special(const struct tokenizer *tokenizer, const char *text)
{
    return added_id(tokenizer, text, strlen(text));
}
