#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"

static size_t table_mask(size_t count)
{
    size_t slots = 16;
    while (slots < count * 2)
        slots *= 2;
    return slots - 1;
}

static uint64_t hash_mix(uint64_t value)
{
    value ^= value >> 32;
    value *= UINT64_C(0x9E3779B97F4A7C15);
    value ^= value >> 29;
    value *= UINT64_C(0xBF58476D1CE4E5B9);
    return value ^ value >> 32;
}

static uint64_t hash_bytes(const char *bytes, size_t length)
{
    uint64_t hash = length, part;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&part, bytes, 8);
        hash = hash_mix(hash ^ part);
    }
    part = 0;
    if (length > 0)
        memcpy(&part, bytes, length);
    return hash_mix(hash ^ part);
}

bool merges_create(struct tokenizer *tokenizer, size_t count)
{
    tokenizer->merge_mask = table_mask(count);
    tokenizer->merges = malloc((tokenizer->merge_mask + 1) * sizeof *tokenizer->merges);
    if (tokenizer->merges == NULL)
        return false;
    for (size_t i = 0; i <= tokenizer->merge_mask; ++i)
        tokenizer->merges[i].pair = MERGE_NONE;
    return true;
}

static struct merge *merge_slot(const struct tokenizer *tokenizer, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t at = hash_mix(pair) & tokenizer->merge_mask;
    while (tokenizer->merges[at].pair != MERGE_NONE && tokenizer->merges[at].pair != pair)
        at = (at + 1) & tokenizer->merge_mask;
    return &tokenizer->merges[at];
}

bool merges_add(struct tokenizer *tokenizer, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    struct merge *merge = merge_slot(tokenizer, left, right);
    if (merge->pair != MERGE_NONE)
        return false;
    merge->pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    merge->rank = rank;
    merge->id = id;
    return true;
}

const struct merge *merges_find(const struct tokenizer *tokenizer, int32_t left, int32_t right)
{
    const struct merge *merge = merge_slot(tokenizer, left, right);
    return merge->pair == MERGE_NONE ? NULL : merge;
}

bool words_create(struct tokenizer *tokenizer, size_t count)
{
    tokenizer->word_mask = table_mask(count);
    tokenizer->words = malloc((tokenizer->word_mask + 1) * sizeof *tokenizer->words);
    if (tokenizer->words == NULL)
        return false;
    memset(tokenizer->words, -1, (tokenizer->word_mask + 1) * sizeof *tokenizer->words);
    return true;
}

static size_t word_slot(const struct tokenizer *tokenizer, const char *bytes, size_t length)
{
    size_t at = hash_bytes(bytes, length) & tokenizer->word_mask;
    for (; tokenizer->words[at] >= 0; at = (at + 1) & tokenizer->word_mask) {
        const struct token *token = &tokenizer->tokens[tokenizer->words[at]];
        if (token->length == length &&
            memcmp(tokenizer->bytes.bytes + token->offset, bytes, length) == 0)
            break;
    }
    return at;
}

void words_add(struct tokenizer *tokenizer, int32_t id)
{
    const struct token *token = &tokenizer->tokens[id];
    tokenizer->words[word_slot(tokenizer, tokenizer->bytes.bytes + token->offset, token->length)] =
        id;
}

int32_t words_find(const struct tokenizer *tokenizer, const char *bytes, size_t length)
{
    return tokenizer->words[word_slot(tokenizer, bytes, length)];
}
