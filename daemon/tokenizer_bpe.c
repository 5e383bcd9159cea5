/* Merges within one word, lowest rank first, leftmost first among equals, exactly as HF does it:
 * symbols are a linked list, candidate merges a heap, so the cost is n log n. */
#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"

struct symbol {
    int32_t id; /* -1: merged into its left neighbour */
    uint32_t previous, next;
};

struct candidate {
    uint64_t order; /* rank << 32 | position of the left symbol */
    int32_t left, right, id;
};

struct bpe {
    const struct tokenizer *tokenizer;
    struct symbol *symbols; /* [room] */
    struct candidate *heap; /* [2 * room]: n - 1 pairs at first, two more a merge at most */
    size_t room, count;
    uint64_t work;
};

#define NOTHING UINT32_MAX

struct bpe *bpe_create(const struct tokenizer *tokenizer)
{
    struct bpe *bpe = calloc(1, sizeof *bpe);
    if (bpe != NULL)
        bpe->tokenizer = tokenizer;
    return bpe;
}

void bpe_destroy(struct bpe *bpe)
{
    if (bpe == NULL)
        return;
    free(bpe->symbols);
    free(bpe->heap);
    free(bpe);
}

uint64_t bpe_work(const struct bpe *bpe)
{
    return bpe->work;
}

bool ids_append(struct ids *ids, int32_t id)
{
    if (ids->count == ids->room) {
        size_t room = ids->room * 2 + 64;
        if (room > SIZE_MAX / sizeof *ids->values)
            return false;
        int32_t *values = realloc(ids->values, room * sizeof *values);
        if (values == NULL)
            return false;
        ids->values = values;
        ids->room = room;
    }
    ids->values[ids->count++] = id;
    return true;
}

static bool bpe_reserve(struct bpe *bpe, size_t length)
{
    if (length <= bpe->room)
        return true;
    if (length >= NOTHING / 4)
        return false;
    size_t room = length * 2;
    struct symbol *symbols = realloc(bpe->symbols, room * sizeof *symbols);
    if (symbols != NULL)
        bpe->symbols = symbols;
    struct candidate *heap = realloc(bpe->heap, room * 3 * sizeof *heap);
    if (heap != NULL)
        bpe->heap = heap;
    if (symbols == NULL || heap == NULL)
        return false;
    bpe->room = room;
    return true;
}

static void heap_push(struct bpe *bpe, struct candidate candidate)
{
    size_t at = bpe->count++;
    while (at > 0 && bpe->heap[(at - 1) / 2].order > candidate.order) {
        bpe->heap[at] = bpe->heap[(at - 1) / 2];
        at = (at - 1) / 2;
        ++bpe->work;
    }
    bpe->heap[at] = candidate;
    ++bpe->work;
}

static struct candidate heap_pop(struct bpe *bpe)
{
    struct candidate top = bpe->heap[0], last = bpe->heap[--bpe->count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < bpe->count; at = child) {
        if (child + 1 < bpe->count && bpe->heap[child + 1].order < bpe->heap[child].order)
            ++child;
        if (bpe->heap[child].order >= last.order)
            break;
        bpe->heap[at] = bpe->heap[child];
        ++bpe->work;
    }
    bpe->heap[at] = last;
    ++bpe->work;
    return top;
}

static void pair_push(struct bpe *bpe, uint32_t left, uint32_t right)
{
    int32_t left_id = bpe->symbols[left].id, right_id = bpe->symbols[right].id;
    const struct merge *merge = merges_find(bpe->tokenizer, left_id, right_id);
    if (merge != NULL)
        heap_push(bpe, (struct candidate){.order = (uint64_t)merge->rank << 32 | left,
                                          .left = left_id,
                                          .right = right_id,
                                          .id = merge->id});
}

static void symbols_set(struct bpe *bpe, const char *word, size_t length)
{
    for (size_t i = 0; i < length; ++i)
        bpe->symbols[i] = (struct symbol){.id = bpe->tokenizer->byte_ids[(unsigned char)word[i]],
                                          .previous = i == 0 ? NOTHING : (uint32_t)(i - 1),
                                          .next = i + 1 == length ? NOTHING : (uint32_t)(i + 1)};
    bpe->count = 0;
    for (size_t i = 0; i + 1 < length; ++i)
        pair_push(bpe, (uint32_t)i, (uint32_t)(i + 1));
}

static void symbols_merge(struct bpe *bpe)
{
    while (bpe->count > 0) {
        struct candidate top = heap_pop(bpe);
        uint32_t at = (uint32_t)top.order;
        struct symbol *left = &bpe->symbols[at];
        if (left->id != top.left || left->next == NOTHING ||
            bpe->symbols[left->next].id != top.right)
            continue; /* an earlier merge took one of the two */
        struct symbol *right = &bpe->symbols[left->next];
        left->id = top.id;
        left->next = right->next;
        right->id = -1;
        if (right->next != NOTHING)
            bpe->symbols[right->next].previous = at;
        if (left->previous != NOTHING)
            pair_push(bpe, left->previous, at);
        if (left->next != NOTHING)
            pair_push(bpe, at, left->next);
    }
}

bool bpe_word(struct bpe *bpe, const char *word, size_t length, struct ids *ids)
{
    if (length == 0)
        return true;
    ++bpe->work;
    int32_t id = words_find(bpe->tokenizer, word, length);
    if (id >= 0 && bpe->tokenizer->tokens[id].whole)
        return ids_append(ids, id);
    if (!bpe_reserve(bpe, length))
        return false;
    symbols_set(bpe, word, length);
    symbols_merge(bpe);
    for (uint32_t at = 0; at != NOTHING; at = bpe->symbols[at].next)
        if (!ids_append(ids, bpe->symbols[at].id))
            return false;
    return true;
}
