/* Thresholds of a row: top_k, then top_p of what it leaves, then min_p, and the race among what is
 * left. A cluster of eight blocks holds the adjusted row; each search narrows down the greatest
 * order-preserving key at or above which there is enough (count, or mass), three bits a round, and
 * the blocks exchange their sums of each round. Values equal to the border stay. */
#include <cooperative_groups.h>

#include "kernels/cuda/sample_fused.cuh"

namespace cg = cooperative_groups;

enum { BLOCKS = 8, THREADS = 512, WARPS = THREADS / 32, DIGITS = 8, SHARED_VALUES = 24 << 10 };

/* Sums over the values whose next digit is at least 1 .. 7 (entry 0: of all values). */
struct tally {
    double mass[DIGITS];
    uint32_t count[DIGITS];
};

struct cut_shared {
    struct tally peer[2][BLOCKS]; /* written by the blocks of the cluster, in turns */
    struct tally total;
    float mass[WARPS][DIGITS];
    uint32_t count[WARPS][DIGITS];
    struct best best[WARPS];
    struct best winner[BLOCKS];
    float number[WARPS];
    int turn;
};

struct cut_row {
    const float *values; /* this block's share */
    int first, columns;  /* id of the first, how many */
    float max;
};

/* The sums of a round over the whole cluster, in shared->total. */
__device__ static void tally_exchange(float *mass, uint32_t *count, struct cut_shared *shared)
{
    cg::cluster_group cluster = cg::this_cluster();
    const int t = threadIdx.x, turn = shared->turn;
#pragma unroll
    for (int d = 0; d < DIGITS; d++) {
        float sum = mass[d];
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        uint32_t items = __reduce_add_sync(0xffffffffu, count[d]);
        if (t % 32 == 0) {
            shared->mass[t / 32][d] = sum;
            shared->count[t / 32][d] = items;
        }
    }
    __syncthreads();
    if (t < DIGITS * BLOCKS) {
        int d = t % DIGITS;
        double sum = 0.0;
        uint32_t items = 0;
        for (int w = 0; w < WARPS; w++) {
            sum += (double)shared->mass[w][d];
            items += shared->count[w][d];
        }
        struct tally *peer = cluster.map_shared_rank(&shared->peer[turn][0], t / DIGITS);
        peer[cluster.block_rank()].mass[d] = sum;
        peer[cluster.block_rank()].count[d] = items;
    }
    cluster.sync();
    if (t < DIGITS) {
        double sum = 0.0;
        uint32_t items = 0;
        for (int b = 0; b < BLOCKS; b++) {
            sum += shared->peer[turn][b].mass[t];
            items += shared->peer[turn][b].count[t];
        }
        shared->total.mass[t] = sum;
        shared->total.count[t] = items;
    }
    if (t == 0)
        shared->turn = 1 - turn;
    __syncthreads();
}

/* One round: values that share the key's bits above the digit at `shift`. */
__device__ static void tally_round(const struct cut_row &row, uint32_t key, int shift,
                                   struct cut_shared *shared)
{
    float mass[DIGITS] = {};
    uint32_t count[DIGITS] = {};
    for (int i = threadIdx.x; i < row.columns; i += THREADS) {
        float value = row.values[i];
        uint32_t mine = key_of(value);
        if (((uint64_t)(mine ^ key) >> (shift + 3)) != 0)
            continue;
        float weight = value > -INFINITY ? __expf(value - row.max) : 0.0f;
        int digit = (int)(mine >> shift) & 7;
#pragma unroll
        for (int d = 0; d < DIGITS; d++)
            if (digit >= d) {
                mass[d] += weight;
                count[d]++;
            }
    }
    tally_exchange(mass, count, shared);
}

/* The greatest key at or above which there is `goal`; *left: the mass at or above it. */
__device__ static uint32_t key_search(const struct cut_row &row, bool by_count, double goal,
                                      double *left, struct cut_shared *shared)
{
    uint32_t key = 0;
    double above = 0.0, mass = 0.0;
    for (int shift = 30; shift >= 0; shift -= 3) {
        tally_round(row, key, shift, shared);
        const struct tally *total = &shared->total;
        int digit = DIGITS - 1;
        while (digit > 0 &&
               (total->count[digit] == 0 ||
                above + (by_count ? (double)total->count[digit] : total->mass[digit]) < goal))
            digit--;
        if (digit < DIGITS - 1) {
            above += by_count ? (double)total->count[digit + 1] : total->mass[digit + 1];
            mass += total->mass[digit + 1];
        }
        key |= (uint32_t)digit << shift;
        if (shift == 0)
            mass += total->mass[digit] - (digit < DIGITS - 1 ? total->mass[digit + 1] : 0.0);
        __syncthreads(); /* before the next round's totals */
    }
    *left = mass;
    return key;
}

__device__ static float row_max(const struct cut_row &row, struct cut_shared *shared)
{
    cg::cluster_group cluster = cg::this_cluster();
    struct best best = {-INFINITY, INT32_MAX};
    for (int i = threadIdx.x; i < row.columns; i += THREADS)
        best = best_of(best, (struct best){row.values[i], row.first + i});
    best = few_best<WARPS>(best, shared->best);
    if (threadIdx.x < BLOCKS)
        cluster.map_shared_rank(shared->winner, threadIdx.x)[cluster.block_rank()] = best;
    cluster.sync();
    float max = -INFINITY;
    for (int b = 0; b < BLOCKS; b++)
        max = fmaxf(max, shared->winner[b].value);
    cluster.sync(); /* winner is used again */
    return max;
}

__device__ static uint32_t floor_find(const struct cut_row &row, const struct sample_row &how,
                                      int limit, struct cut_shared *shared)
{
    uint32_t floor = 0;
    double mass = 0.0;
    if (how.top_k > 0 && how.top_k < limit) {
        floor = key_search(row, true, (double)how.top_k, &mass, shared);
    } else if (how.top_p < 1.0f) {
        tally_round(row, 0, 30, shared);
        mass = shared->total.mass[0];
        __syncthreads();
    }
    if (how.top_p < 1.0f) {
        double left;
        uint32_t key = key_search(row, false, (double)how.top_p * mass, &left, shared);
        floor = key > floor ? key : floor;
    }
    if (how.min_p > 0.0f) {
        uint32_t key = key_of(row.max + logf(how.min_p));
        floor = key > floor ? key : floor;
    }
    return floor;
}

/* The race among this block's values that the floor leaves. */
__device__ static struct best block_race(const struct cut_row &row, const struct sample_row &how,
                                         uint32_t floor, struct cut_shared *shared)
{
    float mine = INFINITY;
    for (int i = threadIdx.x; i < row.columns; i += THREADS) {
        float value = row.values[i];
        if (value > -INFINITY && key_of(value) >= floor)
            mine = fminf(mine, race_time(how, row.first + i, value, row.max));
    }
    float limit = race_limit(few_min<WARPS>(mine, shared->number), row.max);
    struct best best = {-INFINITY, INT32_MAX};
    if (mine <= limit) {
        for (int i = threadIdx.x; i < row.columns; i += THREADS) {
            float value = row.values[i];
            int32_t id = row.first + i;
            if (value > -INFINITY && key_of(value) >= floor &&
                race_time(how, id, value, row.max) <= limit)
                best = best_of(best, (struct best){race_score(how, id, value), id});
        }
    }
    return few_best<WARPS>(best, shared->best);
}

/* A cluster a row (y). `staged`: this block's share of the row fits its shared memory. */
__global__ __launch_bounds__(THREADS, 2) static void cut_kernel(struct sample_op op,
                                                                struct sample_area area,
                                                                bool staged)
{
    extern __shared__ float stage[];
    __shared__ struct cut_shared shared;
    const struct sample_row how = op.batch.row[blockIdx.y];
    if (!row_is_cut(how, op.batch.limit))
        return;
    const struct row_state state = area.state[blockIdx.y];
    if (!state.good)
        return;
    cg::cluster_group cluster = cg::this_cluster();
    const int share = (op.batch.columns + BLOCKS - 1) / BLOCKS;
    struct cut_row row = {};
    row.first = (int)cluster.block_rank() * share;
    row.columns = op.batch.columns - row.first < share ? op.batch.columns - row.first : share;
    row.values = op.work + (int64_t)blockIdx.y * op.batch.columns + row.first;
    if (threadIdx.x == 0)
        shared.turn = 0;
    if (staged) {
        for (int i = threadIdx.x; i < row.columns; i += THREADS)
            stage[i] = row.values[i];
        row.values = stage;
    }
    cluster.sync(); /* the peers' shared memory is theirs from now on */
    row.max = row_max(row, &shared);
    struct best best = {-INFINITY, INT32_MAX};
    if (row.max > -INFINITY) {
        uint32_t floor = floor_find(row, how, op.batch.limit, &shared);
        best = block_race(row, how, floor, &shared);
    }
    if (threadIdx.x == 0)
        cluster.map_shared_rank(shared.winner, 0)[cluster.block_rank()] = best;
    cluster.sync();
    if (cluster.block_rank() != 0 || threadIdx.x != 0)
        return;
    for (int b = 0; b < BLOCKS; b++)
        best = best_of(best, shared.winner[b]);
    row_finish(op, blockIdx.y, how, state, best.id == INT32_MAX ? -1 : best.id);
}

enum status sample_cut(struct device *device, const struct sample_op *op,
                       const struct sample_area *area)
{
    int share = blocks_for(op->batch.columns, BLOCKS);
    bool staged = share <= SHARED_VALUES;
    size_t bytes = staged ? (size_t)share * sizeof(float) : 0;
    enum status status = shared_raise(cut_kernel, bytes, "sample: thresholds");
    if (status != STATUS_OK)
        return status;
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = BLOCKS;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(BLOCKS, op->batch.rows);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = device->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return device_check(cudaLaunchKernelEx(&config, cut_kernel, *op, *area, staged),
                        "sample: thresholds");
}
