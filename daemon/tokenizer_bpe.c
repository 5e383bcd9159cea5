/* Merges within one word, lowest rank first, leftmost first among equals, exactly as HF does it:
 * symbols are a linked list, candidate merges a heap, so the cost is n log n. */
#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"

struct symbol {
    int32_t id; /* -1: merged into its left neighbour */
    uint32_t previous, next;
};

/* The heap's entries are rank << 32 | position of the left symbol. A word of n symbols starts with
 * n - 1 of them at most. A merge takes one out and adds two, and there are n - 1 merges at most, so
 * there are never more than 2 (n - 1). */
struct bpe {
    const struct tokenizer *tokenizer;
    struct symbol *symbols; /* [room] */
    uint64_t *heap;         /* [2 * room] */
    size_t room, count;
    uint64_t work;
};

#define NOTHING UINT32_MAX

enum { ROOM_MIN = 1024 };

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

/* No more than the word needs: one word can be all of a request. */
static bool bpe_reserve(struct bpe *bpe, size_t length)
{
    size_t room = length > ROOM_MIN ? length : ROOM_MIN;
    if (room <= bpe->room)
        return true;
    if (room >= NOTHING)
        return false;
    free(bpe->symbols);
    free(bpe->heap);
    bpe->symbols = malloc(room * sizeof *bpe->symbols);
    bpe->heap = malloc(2 * room * sizeof *bpe->heap);
    bpe->room = bpe->symbols == NULL || bpe->heap == NULL ? 0 : room;
    return bpe->room > 0;
}

static void heap_push(struct bpe *bpe, uint64_t order)
{
    size_t at = bpe->count++;
    while (at > 0 && bpe->heap[(at - 1) / 2] > order) {
        bpe->heap[at] = bpe->heap[(at - 1) / 2];
        at = (at - 1) / 2;
        ++bpe->work;
    }
    bpe->heap[at] = order;
    ++bpe->work;
}

static uint64_t heap_pop(struct bpe *bpe)
{
    uint64_t top = bpe->heap[0], last = bpe->heap[--bpe->count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < bpe->count; at = child) {
        if (child + 1 < bpe->count && bpe->heap[child + 1] < bpe->heap[child])
            ++child;
        if (bpe->heap[child] >= last)
            break;
        bpe->heap[at] = bpe->heap[child];
        ++bpe->work;
    }
    bpe->heap[at] = last;
    ++bpe->work;
    return top;
}

/* What the symbol and its right neighbour become; NULL: they do not merge. */
static const struct merge *pair_merge(const struct bpe *bpe, uint32_t left)
{
    const struct symbol *symbol = &bpe->symbols[left];
    if (symbol->id < 0 || symbol->next == NOTHING)
        return NULL;
    return merges_find(bpe->tokenizer, symbol->id, bpe->symbols[symbol->next].id);
}

static void pair_push(struct bpe *bpe, uint32_t left)
{
    const struct merge *merge = pair_merge(bpe, left);
    if (merge != NULL)
        heap_push(bpe, (uint64_t)merge->rank << 32 | left);
}

static void symbols_set(struct bpe *bpe, const char *word, size_t length)
{
    for (size_t i = 0; i < length; ++i)
        bpe->symbols[i] = (struct symbol){.id = bpe->tokenizer->byte_ids[(unsigned char)word[i]],
                                          .previous = i == 0 ? NOTHING : (uint32_t)(i - 1),
                                          .next = i + 1 == length ? NOTHING : (uint32_t)(i + 1)};
    bpe->count = 0;
    for (size_t i = 0; i + 1 < length; ++i)
        pair_push(bpe, (uint32_t)i);
}

static void symbols_merge(struct bpe *bpe)
{
    while (bpe->count > 0) {
        uint64_t top = heap_pop(bpe);
        uint32_t at = (uint32_t)top;
        const struct merge *merge = pair_merge(bpe, at);
        if (merge == NULL || merge->rank != top >> 32)
            continue; /* an earlier merge took one of the two */
        struct symbol *left = &bpe->symbols[at], *right = &bpe->symbols[left->next];
        left->id = merge->id;
        left->next = right->next;
        right->id = -1;
        if (right->next != NOTHING)
            bpe->symbols[right->next].previous = at;
        if (left->previous != NOTHING)
            pair_push(bpe, left->previous);
        pair_push(bpe, at);
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
