/* Causal and window attention of sequences with several new tokens, on tensor cores: head_dim 128.
 *
 * A block owns 128 query rows of one head: a warpgroup that fetches, and two that compute on 64
 * rows each. Keys and values come in tiles of 128 by the copy engine, from pages, or from a ring and
 * the fresh rows; a tile's halves are [128 keys, 64 dims], as wgmma reads them. The
 * computing warpgroups take turns at issuing products, so that one's softmax runs under the other's
 * products, and each issues the next scores before the softmax of the present ones.
 *
 * Key tiles begin at multiples of 128 positions, from the newest down, and what a tile does to a
 * row depends on that row alone: a row's bits don't depend on the batch, nor on how its prompt was
 * cut. After arXiv 2205.14135 (tiled softmax) and 2407.08608 (turns, overlap). */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/tensor.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

enum { DIM = 128, ROWS = 128, KEYS = 128, PAGE = 64, STAGES = 2, GROUP = 128, THREADS = 3 * GROUP };
enum { HALF = KEYS * 64 * 2, TILE = 2 * HALF }; /* bytes */
/* Shared memory, bytes: queries, then keys and values of each stage, then barriers. */
enum { QUERIES = 0, STAGE = ROWS * DIM * 2, BARRIERS = STAGE + STAGES * 2 * TILE };
enum { SHARED_BYTES = BARRIERS + 4 * STAGES * 8 };
enum { CONSUMER_WARPS = 8 };
/* Named barriers. */
enum { TURN = 1, WITHIN = 3, FETCH = 5 };
/* Of the 65536 registers: 2 x 128 x 232 + 128 x 40. */
enum { PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232 };
/* A row's maximum follows only growth beyond this many powers of two; weights stay finite. */
#define SLACK 8.0f

/* What this block computes; the same in all its threads. */
struct query_tile {
    int sequence, slot, context, total; /* total: context + new tokens */
    int first, rows;                    /* new tokens of the sequence */
    int head, kv_head;
    int64_t start;         /* the sequence's first token in the batch */
    int lowest;            /* first position that the first row sees */
    int tile_low, tile_high;
};

__device__ static inline int sequence_tiles(const struct ragged &batch, int sequence)
{
    return sequence < batch.sequences
               ? (batch.starts[sequence + 1] - batch.starts[sequence] + ROWS - 1) / ROWS
               : 0;
}

/* Tile `index` of the sequences from `from` on; a sequence's last tile, the longest, comes first. */
__device__ static inline struct query_tile tile_find(const struct attention_op &op,
                                                     const struct ragged &batch, int from,
                                                     int index)
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
struct ring_place {
    int stage, parity;
};

__device__ static inline void place_next(struct ring_place *place)
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

/* ---- fetching ------------------------------------------------------------------------------ */

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
    struct ring_place place = {0, 0};
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
    to += (uint32_t)(piece / 8 * HALF + row0 * 128 + ((piece ^ row0) & 7) * 16);
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
    struct ring_place place = {0, 0};
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
                int row = fresh ? (int)tile.start + base - tile.context
                                : ((tile.slot * 2 + which) * op.cache.kv_heads + tile.kv_head) *
                                          ring +
                                      base % ring;
                barrier_expect(full, TILE);
                page_copy(to, 0, map, column, row, full);
                page_copy(to, 1, map, column, row + PAGE, full);
            }
        }
        place_next(&place);
    }
}

/* ---- computing ----------------------------------------------------------------------------- */

/* Two rows of a thread: its warp's lane/4 and 8 further. */
struct softmax_rows {
    float maximum[2], mass[2]; /* in powers of two; mass: this thread's columns only */
};

/* Sets what a row does not see to -inf: it sees columns (limit - reach, limit], counted from this
 * thread's first column. */
__device__ static inline void scores_mask(float (&scores)[64], const int limit[2], int reach)
{
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int column = i / 4 * 8 + i % 2, row = i % 4 / 2;
        bool seen = column <= limit[row] && column > limit[row] - reach;
        scores[i] = seen ? scores[i] : -INFINITY;
    }
}

__device__ static inline float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* Scores become weights; `shrink` is what earlier sums are to be multiplied by. */
__device__ static inline void scores_weigh(float (&scores)[64], struct softmax_rows *rows,
                                           float scale, float shrink[2])
{
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float most = scores[2 * row];
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (i % 4 / 2 == row)
                most = fmaxf(most, scores[i]);
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2)) * scale;
        float before = rows->maximum[row];
        float now = most > before + SLACK ? most : before;
        float base = now == -INFINITY ? 0.0f : now; /* nothing seen yet */
        shrink[row] = power_of_two(before - base);
        rows->maximum[row] = now;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (i % 4 / 2 == row) {
                scores[i] = power_of_two(fmaf(scores[i], scale, -base));
                sum += scores[i];
            }
        rows->mass[row] = rows->mass[row] * shrink[row] + sum;
    }
}

__device__ static inline void sums_shrink(float (&sums)[64], const float shrink[2])
{
    if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f))
        return;
#pragma unroll
    for (int i = 0; i < 64; i++)
        sums[i] *= shrink[i % 4 / 2];
}

/* scores [64, 128] = Q K^T */
__device__ static inline void scores_issue(float (&scores)[64], uint32_t queries, uint32_t keys)
{
    const uint64_t q = tile_descriptor(queries), k = tile_descriptor(keys);
    group_fence();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
        group_mma_shared(scores, q + (i / 4 * HALF + i % 4 * 32) / 16,
                         k + (i / 4 * HALF + i % 4 * 32) / 16, i > 0);
    group_commit();
}

/* sums [64, 128] += weights V */
__device__ static inline void sums_issue(float (&sums)[64], const uint32_t (&weights)[KEYS / 16][4],
                                         uint32_t values)
{
    const uint64_t v = tile_descriptor(values, HALF);
    group_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        group_mma<1>(sums, weights[i], v + i * 2048 / 16, 1);
    group_commit();
}

__device__ static inline void weights_pack(uint32_t (&weights)[KEYS / 16][4],
                                           const float (&scores)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        weights[i / 4][i % 4] = pack_bf16(scores[2 * i], scores[2 * i + 1]);
}

/* A warpgroup's 64 rows, zeros behind the last. */
__device__ static inline void queries_load(const struct attention_op &op,
                                           const struct query_tile &tile, int group, uint32_t to)
{
    const int piece = threadIdx.x % 16, row0 = threadIdx.x % GROUP / 16;
    const bf16 *from = (const bf16 *)op.q + tile.head * DIM + piece * 8;
    to += (uint32_t)(piece / 8 * HALF + row0 * 128 + ((piece ^ row0) & 7) * 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = group * 64 + i * 8 + row0;
        bool inside = row < tile.rows;
        copy16_async(to + i * 8 * 128,
                     from + (tile.start + tile.first + (inside ? row : 0)) * op.ld_q,
                     inside ? 16 : 0);
    }
    copy_commit();
    copy_wait<0>();
    proxy_fence();
    threads_sync(WITHIN + group, GROUP);
}

/* Values behind the sequence's end may be anything, NaN too, and 0 x NaN is NaN. */
__device__ static inline void values_clear(unsigned char *values, int from, int group)
{
    for (int i = from * 8 + threadIdx.x % GROUP; i < KEYS * 8; i += GROUP) {
        *(uint4 *)(values + i * 16) = make_uint4(0, 0, 0, 0);
        *(uint4 *)(values + HALF + i * 16) = make_uint4(0, 0, 0, 0);
    }
    proxy_fence();
    threads_sync(WITHIN + group, GROUP);
}

/* The warpgroup's rows through its queries' place to global memory. */
__device__ static inline void rows_store(const struct attention_op &op,
                                         const struct query_tile &tile, int group,
                                         const float (&sums)[64], struct softmax_rows *rows,
                                         unsigned char *place)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32;
    const int64_t token = tile.start + tile.first + group * 64;
    const int count = tile.rows - group * 64;
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mass = rows->mass[h];
        mass += __shfl_xor_sync(0xffffffffu, mass, 1);
        mass += __shfl_xor_sync(0xffffffffu, mass, 2);
        inverse[h] = 1.0f / mass;
        int row = warp * 16 + h * 8 + lane / 4;
        if (op.lse != NULL && lane % 4 == 0 && row < count)
            op.lse[(token + row) * op.heads + tile.head] =
                (rows->maximum[h] + log2f(mass)) * 0.69314718f;
    }
    threads_sync(WITHIN + group, GROUP); /* every warp's products have read the queries */
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
        int h = i % 4 / 2, row = warp * 16 + h * 8 + lane / 4, piece = i / 4;
        *(uint32_t *)(place + piece / 8 * HALF + row * 128 + ((piece ^ row) & 7) * 16 +
                      lane % 4 * 4) = pack_bf16(sums[i] * inverse[h], sums[i + 1] * inverse[h]);
    }
    __syncwarp();
    bf16 *out = (bf16 *)op.out + (token * op.heads + tile.head) * DIM;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = warp * 16 + i * 2 + lane / 16, piece = lane % 16;
        if (row < count)
            *(uint4 *)(out + (int64_t)row * op.heads * DIM + piece * 8) = *(
                const uint4 *)(place + piece / 8 * HALF + row * 128 + ((piece ^ row) & 7) * 16);
    }
}

/* group: 0 or 1. */
__device__ static inline void rows_consume(const struct attention_op &op,
                                           const struct query_tile &tile, int group,
                                           unsigned char *memory)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32;
    const uint32_t shared = shared_address(memory);
    const uint32_t queries = shared + QUERIES + group * (HALF / 2);
    const int position = tile.context + tile.first + group * 64; /* of the warpgroup's first row */
    const int reach = op.window > 0 ? op.window : 1 << 30;
    const float scale = op.scale * 1.44269504f;
    auto release = [&](int stage, int which) {
        if (lane == 0)
            barrier_arrive(empty_at(shared, stage, which));
    };
    auto mask = [&](float(&scores)[64], int n) {
        const int base = n * KEYS;
        if (base + KEYS - 1 <= position && base > position + 63 - reach)
            return;
        int low = position + warp * 16 + lane / 4 - base - lane % 4 * 2;
        const int limit[2] = {low, low + 8};
        scores_mask(scores, limit, reach);
    };

    float scores[64], sums[64], shrink[2];
    uint32_t weights[KEYS / 16][4];
    struct softmax_rows rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < 64; i++)
        sums[i] = 0.0f;

    queries_load(op, tile, group, queries);
    struct ring_place place = {0, 0}; /* of the values; the keys are one tile ahead */
    barrier_wait(full_at(shared, 0, 0), 0);
    scores_issue(scores, queries, stage_at(shared, 0, 0));
    group_wait<0>();
    group_settle(scores);
    release(0, 0);
    mask(scores, tile.tile_high);
    scores_weigh(scores, &rows, scale, shrink);
    weights_pack(weights, scores);
    if (tile.tile_high * KEYS + KEYS > tile.total) {
        barrier_wait(full_at(shared, 0, 1), 0);
        values_clear(memory + STAGE + TILE, tile.total - tile.tile_high * KEYS, group);
    }
    if (group == 1 && tile.tile_high > tile.tile_low)
        threads_arrive(TURN, 2 * GROUP);
    for (int n = tile.tile_high - 1; n >= tile.tile_low; n--) {
        struct ring_place next = place;
        place_next(&next);
        barrier_wait(full_at(shared, next.stage, 0), next.parity);
        threads_sync(TURN + group, 2 * GROUP);
        scores_issue(scores, queries, stage_at(shared, next.stage, 0));
        barrier_wait(full_at(shared, place.stage, 1), place.parity);
        sums_issue(sums, weights, stage_at(shared, place.stage, 1));
        if (group == 0 || n > tile.tile_low)
            threads_arrive(TURN + (group ^ 1), 2 * GROUP);
        group_wait<1>();
        group_settle(scores);
        release(next.stage, 0);
        mask(scores, n);
        scores_weigh(scores, &rows, scale, shrink);
        group_wait<0>();
        group_settle(sums);
        release(place.stage, 1);
        sums_shrink(sums, shrink);
        weights_pack(weights, scores);
        place = next;
    }
    barrier_wait(full_at(shared, place.stage, 1), place.parity);
    sums_issue(sums, weights, stage_at(shared, place.stage, 1));
    group_wait<0>();
    group_settle(sums);
    rows_store(op, tile, group, sums, &rows, memory + QUERIES + group * (HALF / 2));
}

/* One block a (head, tile); the heads of a tile run together and share its keys in the cache. */
template <bool RING>
__global__ __launch_bounds__(THREADS, 1) static void attention_prefill_kernel(
    struct attention_op op, struct ragged batch, int from,
    const __grid_constant__ struct prefill_maps maps)
{
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const uint32_t shared = shared_address(shared_bytes);
    const int group = threadIdx.x / GROUP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            barrier_init(full_at(shared, 0, i), 1);
            barrier_init(empty_at(shared, 0, i), CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    const struct query_tile tile = tile_find(op, batch, from, blockIdx.y);
    __syncthreads();
    if (group == 0) {
        registers_release<PRODUCER_REGISTERS>();
        if (RING)
            ring_produce(op, &maps, tile, shared);
        else if (threadIdx.x == 0)
            pages_produce(op, &maps.cache, tile, shared);
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        rows_consume(op, tile, group - 1, shared_bytes);
    }
}

bool attention_prefill_fits(const struct attention_op *op)
{
    const struct kv_cache *cache = &op->cache;
    bool rows = op->ld_q % 8 == 0 && aligned16(op->q) && aligned16(op->out) &&
                aligned16(cache->data) && cache->head_dim == DIM && op->scale > 0.0f;
    if (cache->ring > 0)
        return rows && cache->ring >= 8 && op->window > 0 && op->window <= cache->ring &&
               op->ld_kv % 8 == 0 && aligned16(op->k) && aligned16(op->v);
    return rows && cache->block_tokens % PAGE == 0;
}

static int tiles_count(const struct ragged *batch, int from)
{
    int tiles = 0;
    for (int s = from; s < batch->sequences; s++)
        tiles += (batch->host_starts[s + 1] - batch->host_starts[s] + ROWS - 1) / ROWS;
    return tiles;
}

static enum status maps_make(const struct attention_op *op, struct prefill_maps *maps)
{
    const int64_t tokens = op->batch->tokens;
    const int columns = op->cache.kv_heads * DIM;
    enum status status = tensor_map_rows(&maps->cache, op->cache.data, -1, DIM, DIM, PAGE);
    if (op->cache.ring == 0)
        return status;
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps->fresh[0], op->k, tokens, columns, op->ld_kv, PAGE);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps->fresh[1], op->v, tokens, columns, op->ld_kv, PAGE);
    return status;
}

enum status attention_prefill(struct device *device, const struct attention_op *op, int from)
{
    const int tiles = tiles_count(op->batch, from);
    if (tiles == 0 || op->heads == 0)
        return STATUS_OK;
    auto *kernel = op->cache.ring > 0 ? attention_prefill_kernel<true>
                                      : attention_prefill_kernel<false>;
    struct prefill_maps maps = {};
    enum status status = maps_make(op, &maps);
    if (status == STATUS_OK)
        status = shared_raise(kernel, SHARED_BYTES, "attention prefill");
    if (status != STATUS_OK)
        return status;
    kernel<<<dim3(op->heads, tiles), THREADS, SHARED_BYTES, device->stream>>>(*op, *op->batch, from,
                                                                              maps);
    return launch_check("attention prefill");
}
