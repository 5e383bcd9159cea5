/* Prefill attention: what a block computes, and its shared memory. */
#ifndef JETD_KERNELS_CUDA_ATTENTION_TILE_CUH
#define JETD_KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"
#include "kernels/kernels.h"

enum { DIM = 128, ROWS = 128, KEYS = 128, PAGE = 64, STAGES = 2, GROUP = 128, THREADS = 3 * GROUP };
/* Bytes. A tile of 128 rows lies as two halves of [128 rows, 64 dims], as wgmma reads them. */
enum { HALF = KEYS * 64 * 2, TILE = 2 * HALF };
/* Shared memory, bytes: queries, then keys and values of each stage, then barriers. */
enum { QUERIES = 0, STAGE = ROWS * DIM * 2, BARRIERS = STAGE + STAGES * 2 * TILE };
enum { SHARED_BYTES = BARRIERS + 4 * STAGES * 8 };
/* Named barriers. */
enum { TURN = 1, WITHIN = 3, FETCH = 5 };

/* Byte of a 16-byte piece (8 dims) of a row in a tile. */
__device__ static inline int piece_at(int row, int piece)
{
    return piece / 8 * HALF + row * 128 + ((piece ^ row) & 7) * 16;
}

/* What this block computes; the same in all its threads. */
struct query_tile {
    int sequence, slot, context, total; /* total: context + new tokens */
    int first, rows;                    /* new tokens of the sequence */
    int head, kv_head;
    int64_t start;           /* the sequence's first token in the batch */
    int lowest;              /* first position that the first row sees */
    int tile_low, tile_high; /* tiles of keys, by position / 128 */
};

__device__ static inline int sequence_tiles(const struct ragged &batch, int sequence)
{
    return sequence < batch.sequences
               ? (batch.starts[sequence + 1] - batch.starts[sequence] + ROWS - 1) / ROWS
               : 0;
}

/* Tile `index` of the sequences from `from` on; a sequence's last tile, the longest, comes first.
 */
__device__ static inline struct query_tile
tile_find(const struct attention_op &op, const struct ragged &batch, int from, int index)
{
    const int lane = threadIdx.x % 32;
    struct query_tile tile = {};
    for (int base = from; base < batch.sequences; base += 32) {
        int own = sequence_tiles(batch, base + lane), sum = own;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            int before = __shfl_up_sync(0xffffffffu, sum, offset);
            sum += lane >= offset ? before : 0;
        }
        unsigned beyond = __ballot_sync(0xffffffffu, index < sum);
        if (beyond != 0) {
            int which = __ffs((int)beyond) - 1;
            tile.sequence = base + which;
            tile.first = (__shfl_sync(0xffffffffu, sum, which) - 1 - index) * ROWS;
            break;
        }
        index -= __shfl_sync(0xffffffffu, sum, 31);
    }
    tile.slot = batch.slots[tile.sequence];
    tile.context = batch.contexts[tile.sequence];
    tile.start = batch.starts[tile.sequence];
    int tokens = batch.starts[tile.sequence + 1] - (int)tile.start;
    tile.total = tile.context + tokens;
    tile.rows = tokens - tile.first < ROWS ? tokens - tile.first : ROWS;
    tile.head = blockIdx.x;
    tile.kv_head = (op.group_offset + tile.head) / op.group;
    int position = tile.context + tile.first;
    tile.lowest = op.window > 0 && position >= op.window ? position - op.window + 1 : 0;
    tile.tile_low = tile.lowest / KEYS;
    tile.tile_high = (position + tile.rows - 1) / KEYS;
    return tile;
}

/* Stages in the order in which both sides go through them. */
struct stage_place {
    int stage, parity;
};

__device__ static inline void place_next(struct stage_place *place)
{
    place->stage++;
    if (place->stage == STAGES) {
        place->stage = 0;
        place->parity ^= 1;
    }
}

/* which: 0 keys, 1 values. */
__device__ static inline uint32_t stage_at(uint32_t shared, int stage, int which)
{
    return shared + STAGE + (uint32_t)(stage * 2 + which) * TILE;
}

__device__ static inline uint32_t full_at(uint32_t shared, int stage, int which)
{
    return shared + BARRIERS + (uint32_t)(stage * 2 + which) * 8;
}

__device__ static inline uint32_t empty_at(uint32_t shared, int stage, int which)
{
    return full_at(shared, stage, which) + STAGES * 2 * 8;
}

#endif
