#include "daemon/base/arena.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"

enum { BLOCK_BYTES = 16384 };

struct block {
    struct block *next;
    size_t used, room;
    _Alignas(16) unsigned char bytes[];
};

struct arena {
    struct block *blocks; /* newest first */
    size_t used, limit;
};

struct arena *arena_create(size_t limit)
{
    struct arena *arena = calloc(1, sizeof *arena);
    if (arena != NULL)
        arena->limit = limit;
    return arena;
}

void arena_destroy(struct arena *arena)
{
    if (arena == NULL)
        return;
    for (struct block *block = arena->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    free(arena);
}

void *arena_allocate(struct arena *arena, size_t count, size_t size)
{
    uint64_t bytes;
    if (!checked_multiply(count, size, &bytes) || bytes > arena->limit - arena->used)
        return NULL;
    size_t need = (size_t)round_up(bytes ? bytes : 1, 16);
    struct block *block = arena->blocks;
    if (block == NULL || block->room - block->used < need) {
        size_t room = need > BLOCK_BYTES ? need : BLOCK_BYTES;
        block = calloc(1, sizeof *block + room);
        if (block == NULL)
            return NULL;
        block->room = room;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *memory = block->bytes + block->used;
    block->used += need;
    arena->used += bytes;
    return memory;
}

void *arena_copy(struct arena *arena, const void *from, size_t count, size_t size)
{
    void *memory = arena_allocate(arena, count, size);
    if (memory != NULL && count * size > 0)
        memcpy(memory, from, count * size);
    return memory;
}

char *arena_string(struct arena *arena, const char *text, size_t length)
{
    char *copy = length == SIZE_MAX ? NULL : arena_allocate(arena, length + 1, 1);
    if (copy != NULL && length > 0)
        memcpy(copy, text, length);
    return copy;
}
