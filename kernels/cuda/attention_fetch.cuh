/* Prefill attention: the warpgroup that fetches keys and values, from pages, or from a ring and the
 * fresh rows. */
#ifndef JETD_KERNELS_CUDA_ATTENTION_FETCH_CUH
#define JETD_KERNELS_CUDA_ATTENTION_FETCH_CUH

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/tensor_map.h"

/* Where the copy engine finds rows of 128. */
struct prefill_maps {
    CUtensorMap cache;    /* pages and rings as a matrix of rows */
    CUtensorMap fresh[2]; /* k and v of the batch, for rings */
};

/* 64 keys or values, the `half`th of a tile's. */
__device__ static inline void page_copy(uint32_t to, int half, const CUtensorMap *map, int column,
                                        int row, uint32_t full)
{
    copy_box(to + half * (HALF / 2), map, column, row, full);
    copy_box(to + half * (HALF / 2) + HALF, map, column + 64, row, full);
}

struct pages {
    int row[2]; /* of the cache as a matrix, for keys; -1: behind the sequence's end */
};

__device__ static inline struct pages pages_of(const struct kv_cache &cache,
                                               const struct query_tile &tile, int n)
{
    struct pages pages;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int p = n * KEYS + i * PAGE;
        pages.row[i] = -1;
        if (n >= 0 && p < tile.total) {
            int block = cache.table[(int64_t)tile.slot * cache.ld_table + p / cache.block_tokens];
            pages.row[i] = (block * 2 * cache.kv_heads + tile.kv_head) * cache.block_tokens +
                           p % cache.block_tokens;
        }
    }
    return pages;
}

/* One thread, by the copy engine. */
__device__ static inline void pages_produce(const struct attention_op &op, const CUtensorMap *map,
                                            const struct query_tile &tile, uint32_t shared)
{
    const int apart = op.cache.kv_heads * op.cache.block_tokens; /* rows from keys to values */
    struct stage_place place = {0, 0};
    struct pages pages = pages_of(op.cache, tile, tile.tile_high);
    for (int n = tile.tile_high; n >= tile.tile_low; n--) {
        struct pages next = pages_of(op.cache, tile, n - 1);
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const uint32_t full = full_at(shared, place.stage, which);
            const uint32_t to = stage_at(shared, place.stage, which);
            barrier_wait(empty_at(shared, place.stage, which), place.parity ^ 1);
            barrier_expect(full, pages.row[1] >= 0 ? TILE : TILE / 2);
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (pages.row[i] >= 0)
                    page_copy(to, i, map, 0, pages.row[i] + which * apart, full);
        }
        pages = next;
        place_next(&place);
    }
}

/* Keys or values at positions from `base` on, some in the ring, some fresh, zeros where nobody
 * looks; by the whole warpgroup. */
__device__ static inline void mixed_fetch(const struct attention_op &op,
                                          const struct query_tile &tile, int which, int base,
                                          uint32_t to)
{
    const int piece = threadIdx.x % 16, row0 = threadIdx.x / 16;
    const int column = tile.kv_head * DIM + piece * 8;
    const bf16 *fresh = (const bf16 *)(which == 0 ? op.k : op.v) + column;
    const bf16 *ring = (const bf16 *)op.cache.data +
                       (((int64_t)tile.slot * 2 + which) * op.cache.kv_heads + tile.kv_head) *
                           op.cache.ring * DIM +
                       piece * 8;
    to += (uint32_t)piece_at(row0, piece);
    for (int i = 0; i < KEYS / 8; i++) {
        int p = base + row0 + i * 8;
        bool inside = p >= tile.lowest && p < tile.total;
        const bf16 *from = fresh;
        if (inside)
            from = p >= tile.context ? fresh + (tile.start + p - tile.context) * op.ld_kv
                                     : ring + (int64_t)(p % op.cache.ring) * DIM;
        copy16_async(to + i * 8 * 128, from, inside ? 16 : 0);
    }
    copy_commit();
    copy_wait<0>();
    proxy_fence();
}

/* The warpgroup; its first thread alone where a tile lies in one piece. */
__device__ static inline void ring_produce(const struct attention_op &op,
                                           const struct prefill_maps *maps,
                                           const struct query_tile &tile, uint32_t shared)
{
    const bool leads = threadIdx.x == 0;
    const int ring = op.cache.ring;
    struct stage_place place = {0, 0};
    for (int n = tile.tile_high; n >= tile.tile_low; n--) {
        const int base = n * KEYS;
        const bool fresh = base >= tile.context;
        const bool whole = fresh || (base + KEYS <= tile.context && ring % KEYS == 0);
        for (int which = 0; which < 2; which++) {
            const uint32_t full = full_at(shared, place.stage, which);
            const uint32_t to = stage_at(shared, place.stage, which);
            if (leads)
                barrier_wait(empty_at(shared, place.stage, which), place.parity ^ 1);
            if (!whole) {
                threads_sync(FETCH, GROUP);
                mixed_fetch(op, tile, which, base, to);
                threads_sync(FETCH, GROUP);
                if (leads)
                    barrier_arrive(full);
            } else if (leads) {
                const CUtensorMap *map = fresh ? &maps->fresh[which] : &maps->cache;
                int column = fresh ? tile.kv_head * DIM : 0;
                int row =
                    fresh ? (int)tile.start + base - tile.context
                          : ((tile.slot * 2 + which) * op.cache.kv_heads + tile.kv_head) * ring +
                                base % ring;
                barrier_expect(full, TILE);
                page_copy(to, 0, map, column, row, full);
                page_copy(to, 1, map, column, row + PAGE, full);
            }
        }
        place_next(&place);
    }
}

#endif
