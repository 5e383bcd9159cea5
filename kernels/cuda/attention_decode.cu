/* Attention of one new token a sequence over a long cache: split-KV (flash-decoding) with the query
 * heads of a kv head packed into one tensor-core operand.
 *
 * A block owns (split, kv head, sequence). Tiles of 64 keys and values stream through STAGES shared
 * buffers by cp.async; each of the four warps takes 16 keys of a tile. Scores are computed as
 * K Q^T: m16n8k16 with 16 keys by 8 heads, so that a group of up to 8 heads pads nothing; the
 * output as V^T P, [128, 8]. In both fragments a thread's columns are the same two heads, so the
 * running maxima never cross lanes. P turns from result to operand by movmatrix.
 * The blocks' partial results are merged by a second kernel (attention_merge.cu). */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

enum { TILE = 64, DIM = 128, HEADS = 8, STAGES = 3, THREADS = 128, WARPS = 4 };
enum { TILE_ELEMENTS = TILE * DIM, STAGE_ELEMENTS = 2 * TILE_ELEMENTS };
enum { SHARED_BYTES = STAGES * STAGE_ELEMENTS * 2 };

struct decode_split {
    int splits;    /* blocks a (kv head, sequence) */
    int keys_each; /* > 0: keys a split, fixed; 0: each sequence's keys cut evenly */
};

/* 16-byte pieces of a row are permuted by the row's low bits: ldmatrix hits all banks. */
__device__ static inline int swizzled(int row, int piece)
{
    return row * DIM + ((piece ^ (row & 7)) * 8);
}

struct decode_range {
    int begin, end; /* keys of this block */
};

__device__ static inline struct decode_range range_of(struct decode_split split, int index,
                                                      int first, int position)
{
    int aligned = first / TILE * TILE;
    int tiles = (position + 1 - aligned + TILE - 1) / TILE;
    int each =
        split.keys_each > 0 ? split.keys_each / TILE : (tiles + split.splits - 1) / split.splits;
    struct decode_range range = {aligned + index * each * TILE,
                                 aligned + (index + 1) * each * TILE};
    range.begin = range.begin > first ? range.begin : first;
    range.end = range.end < position + 1 ? range.end : position + 1;
    return range;
}

/* Where a tile's keys come from. */
enum source {
    PAGE,  /* the tile lies in one block */
    PAGES, /* blocks of any size */
    RING   /* and the present token's own key */
};

/* Where a tile lies, looked up a tile early: its first row in the ring, or its block's number. */
template <enum source SOURCE>
__device__ static inline int tile_block(const struct attention_op &op, int base, int end, int slot)
{
    const struct kv_cache &cache = op.cache;
    if (SOURCE == RING)
        return base % cache.ring;
    if (SOURCE == PAGES || base >= end)
        return 0;
    return cache.table[(int64_t)slot * cache.ld_table + base / cache.block_tokens];
}

/* The keys' row of position p; the values' row lies kv_heads x (ring or block) rows on. */
template <enum source SOURCE>
__device__ static inline const bf16 *key_row(const struct attention_op &op, int block, int base,
                                             int row, int kv_head, int slot)
{
    const struct kv_cache &cache = op.cache;
    if (SOURCE == PAGES)
        return kv_row(cache, slot, 0, kv_head, base + row);
    if (SOURCE == PAGE)
        return (const bf16 *)cache.data +
               (((int64_t)block * 2 * cache.kv_heads + kv_head) * cache.block_tokens +
                base % cache.block_tokens + row) *
                   DIM;
    int at = block + row;
    at = at < cache.ring ? at : (at - cache.ring) % cache.ring;
    return (const bf16 *)cache.data +
           (((int64_t)slot * 2 * cache.kv_heads + kv_head) * cache.ring + at) * DIM;
}

/* A tile's keys and values; rows outside [range.begin, range.end) become zeros. */
template <enum source SOURCE>
__device__ static inline void tile_fetch(const struct attention_op &op, bf16 *stage, int block,
                                         int base, struct decode_range range, int kv_head, int slot,
                                         int position, int64_t token)
{
    const int piece = threadIdx.x % 16;
    const struct kv_cache &cache = op.cache;
    const int64_t beside =
        (int64_t)cache.kv_heads * (SOURCE == RING ? cache.ring : cache.block_tokens) * DIM;
    const uint32_t to = shared_address(stage);
#pragma unroll
    for (int i = 0; i < TILE / (THREADS / 16); i++) {
        int row = i * (THREADS / 16) + threadIdx.x / 16;
        int p = base + row;
        bool inside = p >= range.begin && p < range.end;
        row = inside ? row : range.begin > base ? range.begin - base : 0;
        const bf16 *key = key_row<SOURCE>(op, block, base, row, kv_head, slot);
        const bf16 *value = key + beside;
        if (SOURCE == RING && p == position) {
            int64_t at = token * op.ld_kv + kv_head * DIM;
            key = (const bf16 *)op.k + at;
            value = (const bf16 *)op.v + at;
        }
        uint32_t place = to + swizzled(i * (THREADS / 16) + threadIdx.x / 16, piece) * 2;
        copy16_async(place, key + piece * 8, inside ? 16 : 0);
        copy16_async(place + TILE_ELEMENTS * 2, value + piece * 8, inside ? 16 : 0);
    }
}

/* Q^T as B operands: thread holds head lane/4, dims 16s + 2(lane%4) +{0,1} and +8. */
__device__ static inline void load_query(const struct attention_op &op, int64_t token, int head0,
                                         int heads, uint32_t query[DIM / 16][2])
{
    const int lane = threadIdx.x % 32;
    bool inside = lane / 4 < heads;
    const bf16 *row = (const bf16 *)op.q + token * op.ld_q +
                      (head0 + (inside ? lane / 4 : 0)) * DIM + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) {
        query[s][0] = inside ? *(const uint32_t *)(row + s * 16) : 0u;
        query[s][1] = inside ? *(const uint32_t *)(row + s * 16 + 8) : 0u;
    }
}

struct running {
    float maximum[2], mass[2]; /* of this thread's two heads, in units of log2 */
    float sum[DIM / 16][4];    /* [16 dims, 8 heads] fragments */
};

/* 16 keys of a tile, of which those in [begin, end) count. */
__device__ static inline void tile_attend(const bf16 *stage, int warp, int begin, int end,
                                          float scale, const uint32_t query[DIM / 16][2],
                                          struct running *running)
{
    const int lane = threadIdx.x % 32;
    const int row = warp * 16 + lane % 16;
    float score[4] = {};
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) {
        uint32_t key[4];
        load_matrices(key, shared_address(stage + swizzled(row, s * 2 + lane / 16)));
        mma_bf16(score, key, query[s][0], query[s][1]);
    }
    int low = warp * 16 + lane / 4, high = low + 8;
    bool low_inside = low >= begin && low < end, high_inside = high >= begin && high < end;
    float weight[4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float a = low_inside ? score[h] * scale : -INFINITY;
        float b = high_inside ? score[2 + h] * scale : -INFINITY;
        float most = fmaxf(a, b);
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 4));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 8));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 16));
        most = fmaxf(most, running->maximum[h]);
        float base = most == -INFINITY ? 0.0f : most;
        float rescale = exp2f(running->maximum[h] - base);
        weight[h] = exp2f(a - base);
        weight[2 + h] = exp2f(b - base);
        running->maximum[h] = most;
        running->mass[h] = running->mass[h] * rescale + weight[h] + weight[2 + h];
#pragma unroll
        for (int s = 0; s < DIM / 16; s++) {
            running->sum[s][h] *= rescale;
            running->sum[s][2 + h] *= rescale;
        }
    }
    uint32_t share_low = transpose8(pack_bf16(weight[0], weight[1]));
    uint32_t share_high = transpose8(pack_bf16(weight[2], weight[3]));
    const bf16 *values = stage + TILE_ELEMENTS;
    /* V^T as A operand: matrices (dims 0-7, keys 0-7), (dims 8-15, keys 0-7), (0-7, 8-15), ... */
    const int key = warp * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) {
        uint32_t value[4];
        load_matrices_transposed(value,
                                 shared_address(values + swizzled(key, s * 2 + lane / 8 % 2)));
        mma_bf16(running->sum[s], value, share_low, share_high);
    }
}

/* The four warps' results into one; then to global memory. */
__device__ static inline void block_merge(const struct attention_op &op, float *shared,
                                          struct running *running, struct decode_split split,
                                          int64_t token, int head0, int heads, float *partial,
                                          float2 *partial_mass)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *sums = shared;                             /* [WARPS][HEADS][DIM + 4] */
    float *maxima = sums + WARPS * HEADS * (DIM + 4); /* [WARPS][HEADS] */
    float *masses = maxima + WARPS * HEADS;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mass = running->mass[h];
        mass += __shfl_xor_sync(0xffffffffu, mass, 4);
        mass += __shfl_xor_sync(0xffffffffu, mass, 8);
        mass += __shfl_xor_sync(0xffffffffu, mass, 16);
        int head = lane % 4 * 2 + h;
        if (lane < 4) {
            maxima[warp * HEADS + head] = running->maximum[h];
            masses[warp * HEADS + head] = mass;
        }
        float *to = sums + (warp * HEADS + head) * (DIM + 4);
#pragma unroll
        for (int s = 0; s < DIM / 16; s++) {
            to[s * 16 + lane / 4] = running->sum[s][h];
            to[s * 16 + lane / 4 + 8] = running->sum[s][2 + h];
        }
    }
    __syncthreads();
    for (int head = 0; head < heads; head++) {
        float most = -INFINITY, mass = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            most = fmaxf(most, maxima[w * HEADS + head]);
        float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float factor = exp2f(maxima[w * HEADS + head] - base);
            mass += masses[w * HEADS + head] * factor;
            value += sums[(w * HEADS + head) * (DIM + 4) + threadIdx.x] * factor;
        }
        int64_t row = token * op.heads + head0 + head;
        if (split.splits == 1) {
            ((bf16 *)op.out)[row * DIM + threadIdx.x] = __float2bfloat16(value / mass);
            if (op.lse != NULL && threadIdx.x == 0)
                op.lse[row] = (most + log2f(mass)) * 0.69314718f;
        } else {
            int64_t at = row * split.splits + blockIdx.x;
            partial[at * DIM + threadIdx.x] = value;
            if (threadIdx.x == 0)
                partial_mass[at] = make_float2(most, mass);
        }
    }
}

template <enum source SOURCE>
__global__ __launch_bounds__(THREADS, 2) static void attention_decode_kernel(
    struct attention_op op, struct ragged batch, struct decode_split split, float *partial,
    float2 *partial_mass)
{
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    bf16 *stages = (bf16 *)shared_bytes;
    const int warp = threadIdx.x / 32;
    const int kv_head = blockIdx.y;
    const int64_t token = blockIdx.z; /* decodes lead, one token each */
    launch_next();
    launch_wait();
    const int slot = batch.slots[token];
    const int position = batch.contexts[token];
    const int first = op.window > 0 && position - op.window + 1 > 0 ? position - op.window + 1 : 0;
    const struct decode_range range = range_of(split, blockIdx.x, first, position);
    /* Local query heads of this kv head. */
    int head0 = kv_head * op.group - op.group_offset;
    int head_end = head0 + op.group < op.heads ? head0 + op.group : op.heads;
    head0 = head0 > 0 ? head0 : 0;
    const int heads = head_end - head0;
    const float scale = op.scale * 1.44269504f;

    struct running running = {};
    running.maximum[0] = running.maximum[1] = -INFINITY;
    const int base = range.begin / TILE * TILE;
    const int tiles = range.end > range.begin ? (range.end - base + TILE - 1) / TILE : 0;
    int block = tile_block<SOURCE>(op, base, range.end, slot);
    auto fetch = [&](int tile) {
        if (tile < tiles)
            tile_fetch<SOURCE>(op, stages + tile % STAGES * STAGE_ELEMENTS, block,
                               base + tile * TILE, range, kv_head, slot, position, token);
        block = tile_block<SOURCE>(op, base + (tile + 1) * TILE, range.end, slot);
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        fetch(i);
    uint32_t query[DIM / 16][2];
    load_query(op, token, head0, heads, query);
    for (int tile = 0; tile < tiles; tile++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        fetch(tile + STAGES - 1);
        int at = base + tile * TILE;
        tile_attend(stages + tile % STAGES * STAGE_ELEMENTS, warp, range.begin - at, range.end - at,
                    scale, query, &running);
    }
    copy_wait<0>();
    __syncthreads();
    block_merge(op, (float *)shared_bytes, &running, split, token, head0, heads, partial,
                partial_mass);
}

bool attention_decode_fits(const struct attention_op *op)
{
    return op->cache.head_dim == DIM && op->group <= HEADS && op->ld_q % 8 == 0 &&
           op->ld_kv % 8 == 0 && aligned16(op->q) && aligned16(op->cache.data) &&
           (op->cache.ring == 0 || (aligned16(op->k) && aligned16(op->v)));
}

/* The number of splits that ends soonest when `slots` blocks run at a time: each block costs its
 * tiles and about two more for its start and its end. */
int attention_decode_splits(int pairs, int tiles, int slots, int most)
{
    int best = 1;
    int64_t best_cost = INT64_MAX;
    for (int splits = 1; splits <= tiles && splits <= most; splits++) {
        int64_t waves = ((int64_t)pairs * splits + slots - 1) / slots;
        int64_t cost = waves * ((tiles + splits - 1) / splits + 2);
        if (cost < best_cost) {
            best = splits;
            best_cost = cost;
        }
    }
    return best;
}

/* Cuts where the batch has no say: every 1024 keys, or as many more as a full batch of the longest
 * sequences needs to fit the scratch. */
static int keys_invariant(const struct device *device, const struct attention_op *op)
{
    int sequences = device->options.max_sequences > op->batch->decodes
                        ? device->options.max_sequences
                        : op->batch->decodes;
    int64_t rows = (int64_t)sequences * op->heads;
    int64_t room = (int64_t)(device->scratch_bytes / (size_t)(rows * (DIM + 2) * 4));
    int64_t longest =
        op->window > 0 ? op->window + TILE : (int64_t)op->cache.ld_table * op->cache.block_tokens;
    int keys = 16 * TILE;
    while ((longest + keys - 1) / keys + 1 > room && keys < 1 << 20)
        keys *= 2;
    return keys;
}

static struct decode_split split_choose(const struct device *device, const struct attention_op *op)
{
    const struct ragged *batch = op->batch;
    struct decode_split split = {1, 0};
    int64_t rows = (int64_t)batch->decodes * op->heads;
    int64_t room = (int64_t)(device->scratch_bytes / (size_t)(rows * (DIM + 2) * 4));
    int longest = batch->max_context > 0 ? batch->max_context : 1;
    if (op->window > 0 && longest > op->window)
        longest = op->window + TILE;
    int tiles = (longest + TILE - 1) / TILE;
    int most = room < 256 ? (int)room : 256;
    if (device->options.batch_invariant) {
        split.keys_each = keys_invariant(device, op);
        split.splits = (tiles * TILE + split.keys_each - 1) / split.keys_each + 1;
        return split;
    }
    split.splits = attention_decode_splits(batch->decodes * op->cache.kv_heads, tiles,
                                           2 * device->multiprocessors, most);
    return split;
}

enum status attention_decode(struct device *device, const struct attention_op *op)
{
    const struct decode_split split = split_choose(device, op);
    const int decodes = op->batch->decodes;
    float *partial = (float *)device->scratch;
    float2 *partial_mass = (float2 *)(partial + (int64_t)decodes * op->heads * split.splits * DIM);
    auto kernel = op->cache.ring > 0                   ? attention_decode_kernel<RING>
                  : op->cache.block_tokens % TILE == 0 ? attention_decode_kernel<PAGE>
                                                       : attention_decode_kernel<PAGES>;
    enum status status = shared_raise(kernel, SHARED_BYTES, "attention decode");
    if (status != STATUS_OK)
        return status;
    dim3 grid(split.splits, op->cache.kv_heads, decodes);
    status = launch_early(device, kernel, grid, dim3(THREADS), SHARED_BYTES, "attention decode",
                          *op, *op->batch, split, partial, partial_mass);
    if (status != STATUS_OK || split.splits == 1)
        return status;
    return attention_merge(device, op, split.splits, partial, partial_mass);
}
