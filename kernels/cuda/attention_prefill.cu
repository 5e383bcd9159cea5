/* Causal and window attention of sequences with several new tokens, on tensor cores: head_dim 128.
 *
 * A block owns 128 query rows of one head: a warpgroup that fetches, and two that compute on 64
 * rows each. The computing warpgroups take turns: one's softmax runs under the other's products. A
 * turn is the sums of one tile and the scores of the next, and it passes when they are complete:
 * passed at their issue, the tensor cores would serve both warpgroups at half speed and stand
 * still during both softmaxes.
 *
 * Key tiles begin at multiples of 128 positions, from the newest down, and what a tile does to a
 * row depends on that row alone: a row's bits don't depend on the batch, nor on how its prompt was
 * cut. After arXiv 2205.14135 (tiled softmax) and 2407.08608 (turns). */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_fetch.cuh"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { CONSUMER_WARPS = 8 };
/* Of the 65536 registers: 2 x 128 x 232 + 128 x 40. */
enum { PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232 };

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
    to += (uint32_t)piece_at(row0, piece);
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
        *(uint32_t *)(place + piece_at(row, piece) + lane % 4 * 4) =
            pack_bf16(sums[i] * inverse[h], sums[i + 1] * inverse[h]);
    }
    __syncwarp();
    bf16 *out = (bf16 *)op.out + (token * op.heads + tile.head) * DIM;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = warp * 16 + i * 2 + lane / 16, piece = lane % 16;
        if (row < count)
            *(uint4 *)(out + (int64_t)row * op.heads * DIM + piece * 8) =
                *(const uint4 *)(place + piece_at(row, piece));
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
    /* Weights of tile n's scores; true: sums are to shrink. */
    auto weigh = [&](float(&scores)[64], float(&shrink)[2], struct softmax_rows *rows, int n,
                     uint32_t keys) {
        const int base = n * KEYS;
        const int low = position + warp * 16 + lane / 4 - base - lane % 4 * 2;
        const struct seen seen = {{low, low + 8}, reach};
        if (base + KEYS - 1 > position || base <= position + 63 - reach)
            scores_mask(scores, seen);
        return scores_weigh(scores, rows, scale, shrink, seen, queries + warp * 16 * 128, keys);
    };

    float scores[64], sums[64], shrink[2];
    uint32_t weights[KEYS / 16][4];
    struct softmax_rows rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < 64; i++)
        sums[i] = 0.0f;

    queries_load(op, tile, group, queries);
    struct stage_place place = {0, 0}; /* of the values; the keys are one tile ahead */
    barrier_wait(full_at(shared, 0, 0), 0);
    scores_issue(scores, queries, stage_at(shared, 0, 0));
    group_wait<0>();
    group_settle(scores);
    weigh(scores, shrink, &rows, tile.tile_high, stage_at(shared, 0, 0));
    release(0, 0);
    weights_pack(weights, scores);
    if (tile.tile_high * KEYS + KEYS > tile.total) {
        barrier_wait(full_at(shared, 0, 1), 0);
        values_clear(memory + STAGE + TILE, tile.total - tile.tile_high * KEYS, group);
    }
    if (group == 1 && tile.tile_high > tile.tile_low)
        threads_arrive(TURN, 2 * GROUP);
    for (int n = tile.tile_high - 1; n >= tile.tile_low; n--) {
        struct stage_place next = place;
        place_next(&next);
        barrier_wait(full_at(shared, next.stage, 0), next.parity);
        threads_sync(TURN + group, 2 * GROUP);
        scores_issue(scores, queries, stage_at(shared, next.stage, 0));
        barrier_wait(full_at(shared, place.stage, 1), place.parity);
        sums_issue(sums, weights, stage_at(shared, place.stage, 1));
        group_wait<0>();
        group_settle(scores);
        group_settle(sums);
        if (group == 0 || n > tile.tile_low)
            threads_arrive(TURN + (group ^ 1), 2 * GROUP);
        release(place.stage, 1);
        bool large = weigh(scores, shrink, &rows, n, stage_at(shared, next.stage, 0));
        release(next.stage, 0);
        if (large)
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
    /* Every key that a query sees is in the ring: the ring holds the window, or all there is. */
    bool held = op->window <= cache->ring || op->batch->max_context <= cache->ring;
    if (cache->ring > 0)
        return rows && held && cache->ring >= 8 && op->window > 0 && op->ld_kv % 8 == 0 &&
               aligned16(op->k) && aligned16(op->v);
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
    auto *kernel =
        op->cache.ring > 0 ? attention_prefill_kernel<true> : attention_prefill_kernel<false>;
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
