#include "daemon/blocks.h"

#include <stdlib.h>

#include "daemon/base/checked.h"

/* Free blocks and each slot's blocks are lists through `next`: every block is in exactly one. */
struct slot {
    int32_t first_block; /* newest, -1: none */
    int given, reserved;
    bool used;
};

struct blocks {
    int slots, slots_used, kv_blocks, block_tokens;
    int reserved, given;
    int32_t free_block;
    int free_slots;
    int32_t *next;      /* [kv_blocks] */
    int32_t *slot_free; /* [slots] stack of the free_slots free ones */
    struct slot *slot;  /* [slots] */
};

struct blocks *blocks_create(int slots, int kv_blocks, int block_tokens)
{
    struct blocks *blocks = calloc(1, sizeof *blocks);
    if (blocks == NULL)
        return NULL;
    *blocks = (struct blocks){.slots = slots,
                              .kv_blocks = kv_blocks,
                              .block_tokens = block_tokens,
                              .free_block = kv_blocks > 0 ? 0 : -1,
                              .free_slots = slots};
    blocks->next = calloc((size_t)kv_blocks + 1, sizeof *blocks->next);
    blocks->slot_free = calloc((size_t)slots, sizeof *blocks->slot_free);
    blocks->slot = calloc((size_t)slots, sizeof *blocks->slot);
    if (blocks->next == NULL || blocks->slot_free == NULL || blocks->slot == NULL) {
        blocks_destroy(blocks);
        return NULL;
    }
    for (int i = 0; i < kv_blocks; i++)
        blocks->next[i] = i + 1 < kv_blocks ? i + 1 : -1;
    for (int i = 0; i < slots; i++)
        blocks->slot_free[i] = slots - 1 - i; /* the lowest comes first */
    return blocks;
}

void blocks_destroy(struct blocks *blocks)
{
    if (blocks == NULL)
        return;
    free(blocks->next);
    free(blocks->slot_free);
    free(blocks->slot);
    free(blocks);
}

int blocks_needed(const struct blocks *blocks, int64_t tokens)
{
    if (blocks->kv_blocks == 0 || tokens <= 0)
        return 0;
    uint64_t needed = divide_up((uint64_t)tokens, (uint64_t)blocks->block_tokens);
    return needed > INT32_MAX ? INT32_MAX : (int)needed;
}

bool blocks_reserve(struct blocks *blocks, int count, int *slot)
{
    if (blocks->free_slots == 0 || count > blocks->kv_blocks - blocks->reserved)
        return false;
    *slot = blocks->slot_free[--blocks->free_slots];
    blocks->slot[*slot] = (struct slot){.first_block = -1, .reserved = count, .used = true};
    blocks->slots_used++;
    blocks->reserved += count;
    return true;
}

static int growth(const struct blocks *blocks, int slot, int tokens)
{
    int needed = blocks_needed(blocks, tokens);
    return needed > blocks->slot[slot].given ? needed - blocks->slot[slot].given : 0;
}

int blocks_grow(struct blocks *blocks, int slot, int tokens, int32_t *numbers)
{
    struct slot *at = &blocks->slot[slot];
    int more = growth(blocks, slot, tokens);
    if (more > at->reserved - at->given)
        return -1;
    for (int i = 0; i < more; i++) {
        int32_t number = blocks->free_block;
        blocks->free_block = blocks->next[number];
        blocks->next[number] = at->first_block;
        at->first_block = number;
        numbers[i] = number;
    }
    at->given += more;
    blocks->given += more;
    return more;
}

void blocks_release(struct blocks *blocks, int slot)
{
    struct slot *at = &blocks->slot[slot];
    if (!at->used)
        return;
    while (at->first_block >= 0) {
        int32_t number = at->first_block;
        at->first_block = blocks->next[number];
        blocks->next[number] = blocks->free_block;
        blocks->free_block = number;
    }
    blocks->given -= at->given;
    blocks->reserved -= at->reserved;
    blocks->slots_used--;
    *at = (struct slot){.first_block = -1};
    blocks->slot_free[blocks->free_slots++] = slot;
}

void blocks_usage(const struct blocks *blocks, struct blocks_usage *usage)
{
    *usage = (struct blocks_usage){.slots = blocks->slots,
                                   .slots_used = blocks->slots_used,
                                   .blocks = blocks->kv_blocks,
                                   .blocks_reserved = blocks->reserved,
                                   .blocks_given = blocks->given};
}
