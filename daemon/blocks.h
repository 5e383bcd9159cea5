/* Host accounting of state slots and KV blocks. A sequence enters with a slot and a count of blocks
 * set aside for its whole possible length; block numbers are handed out only as its tokens come,
 * and are always there, because no more are set aside than exist. One thread. */
#ifndef JETD_DAEMON_BLOCKS_H
#define JETD_DAEMON_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

struct blocks;

struct blocks_usage {
    int slots, slots_used;
    int blocks, blocks_reserved, blocks_given;
};

/* kv_blocks 0: no layer keeps paged keys, sequences need slots only. NULL: out of memory. */
struct blocks *blocks_create(int slots, int kv_blocks, int block_tokens);
void blocks_destroy(struct blocks *blocks); /* NULL is fine */

/* Blocks that `tokens` tokens fill. */
int blocks_needed(const struct blocks *blocks, int64_t tokens);
/* Takes a slot and sets `count` blocks aside; false: not both are free, nothing was taken. */
bool blocks_reserve(struct blocks *blocks, int count, int *slot);
/* Hands out numbers until the slot's blocks cover `tokens` tokens: how many were added, their
 * numbers in `numbers`; -1: more than was set aside, a broken invariant. */
int blocks_grow(struct blocks *blocks, int slot, int tokens, int32_t *numbers);
/* Gives back the slot, its blocks and what was set aside. */
void blocks_release(struct blocks *blocks, int slot);
void blocks_usage(const struct blocks *blocks, struct blocks_usage *usage);

#endif
