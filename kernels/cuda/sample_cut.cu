/* Thresholds of a row: top_k, then top_p of what it leaves, then min_p, and the race among what is
 * left. A cluster of eight blocks holds the adjusted row. What is too far below the maximum to be
 * at a border is dropped first; then each search narrows down the greatest order-preserving key at
 * or above which there is enough (count, or mass), three bits a round, and the blocks exchange
 * their sums of each round. Values equal to the border stay. */
#include <cooperative_groups.h>

#include "kernels/cuda/launch.cuh"
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
    const float *share; /* this block's part of the row */
    int first, columns; /* id of its first value, how many */
    float max;          /* of the whole row */
    float *values;      /* what searches look at: thread t's are t, t + THREADS, ... */
    int own;            /* how many are this thread's */
    float reach;        /* they are this close to the maximum */
    uint32_t key;       /* all values left have this key's bits */
    int shift;          /* above shift + 3 */
};

/* Distances from the maximum within which the borders may lie; digit d of the first round. */
__device__ static const float reach[DIGITS] = {INFINITY, 24.0f, 16.0f, 11.0f,
                                               7.0f,     4.0f,  2.0f,  1.0f};

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
    for (int i = 0; i < row.own; i++) {
        float value = row.values[i * THREADS + threadIdx.x];
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

/* The sums within each reach of the maximum. */
__device__ static void tally_reach(const struct cut_row &row, struct cut_shared *shared)
{
    float mass[DIGITS] = {};
    uint32_t count[DIGITS] = {};
#pragma unroll 4
    for (int i = 0; i < row.own; i++) {
        float value = row.values[i * THREADS + threadIdx.x];
        float weight = __expf(value - row.max);
#pragma unroll
        for (int d = 0; d < DIGITS; d++)
            if (row.max - value <= reach[d]) {
                mass[d] += weight;
                count[d]++;
            }
    }
    tally_exchange(mass, count, shared);
}

/* Keeps what is within the reach of digit `d`. */
__device__ static void row_narrow(struct cut_row *row, int d)
{
    int kept = 0;
#pragma unroll 4
    for (int i = 0; i < row->own; i++) {
        float value = row->values[i * THREADS + threadIdx.x];
        if (row->max - value <= reach[d])
            row->values[kept++ * THREADS + threadIdx.x] = value;
    }
    row->own = kept;
    row->reach = reach[d];
    uint32_t high = key_of(row->max);
    uint32_t low = key_of(row->max - 1.001f * reach[d] - 1e-5f * fabsf(row->max));
    if (high == low)
        return;
    row->shift = (31 - __clz(high ^ low)) / 3 * 3;
    row->key = row->shift == 30 ? 0 : high >> (row->shift + 3) << (row->shift + 3);
}

/* The greatest key at or above which there is `goal`; *left: the mass at or above it. A bin with
 * one value in it needs no further look (its range may hold values out of reach, which stay out).
 */
__device__ static uint32_t key_search(const struct cut_row &row, bool by_count, double goal,
                                      double *left, struct cut_shared *shared)
{
    uint32_t key = row.key, alone = 0;
    double above = 0.0, mass = 0.0;
    for (int shift = row.shift; shift >= 0 && alone != 1; shift -= 3) {
        tally_round(row, key, shift, shared);
        const struct tally *total = &shared->total;
        int digit = DIGITS - 1;
        while (digit > 0 &&
               (total->count[digit] == 0 ||
                above + (by_count ? (double)total->count[digit] : total->mass[digit]) < goal))
            digit--;
        double bin = total->mass[digit];
        alone = total->count[digit];
        if (digit < DIGITS - 1) {
            above += by_count ? (double)total->count[digit + 1] : total->mass[digit + 1];
            mass += total->mass[digit + 1];
            bin -= total->mass[digit + 1];
            alone -= total->count[digit + 1];
        }
        key |= (uint32_t)digit << shift;
        if (shift == 0 || alone == 1)
            mass += bin;
        __syncthreads(); /* before the next round's totals */
    }
    *left = mass;
    return key;
}

/* Copies the share to shared memory where it fits, and finds the row's maximum. */
__device__ static void row_load(struct cut_row *row, float *stage, struct cut_shared *shared)
{
    enum { AT_ONCE = 8 };
    cg::cluster_group cluster = cg::this_cluster();
    struct best best = {-INFINITY, 0};
    for (int i = threadIdx.x; i < row->columns; i += AT_ONCE * THREADS) {
        float values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            values[j] = i + j * THREADS < row->columns ? row->share[i + j * THREADS] : -INFINITY;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            best.value = fmaxf(best.value, values[j]);
            if (stage != NULL && i + j * THREADS < row->columns)
                stage[i + j * THREADS] = values[j];
        }
    }
    best = few_best<WARPS>(best, shared->best);
    cluster.sync(); /* the peers' shared memory is theirs from now on */
    if (threadIdx.x < BLOCKS)
        cluster.map_shared_rank(shared->winner, threadIdx.x)[cluster.block_rank()] = best;
    cluster.sync();
    row->max = -INFINITY;
    for (int b = 0; b < BLOCKS; b++)
        row->max = fmaxf(row->max, shared->winner[b].value);
    cluster.sync(); /* winner is used again */
}

/* Drops what a search cannot need: the mass or the count that it looks for lies above. Returns the
 * row's mass. */
__device__ static double row_prepare(struct cut_row *row, const struct sample_row &how,
                                     bool by_count, struct cut_shared *shared)
{
    tally_reach(*row, shared);
    const struct tally *total = &shared->total;
    double mass = total->mass[0], goal = by_count ? (double)how.top_k : (double)how.top_p * mass;
    int d = DIGITS - 1;
    while (d > 0 && (by_count ? (double)total->count[d] : total->mass[d]) < goal)
        d--;
    __syncthreads();
    if (d > 0 && row->values != row->share)
        row_narrow(row, d);
    return mass;
}

__device__ static uint32_t floor_find(struct cut_row *row, const struct sample_row &how, int limit,
                                      struct cut_shared *shared)
{
    const bool by_count = how.top_k > 0 && how.top_k < limit;
    uint32_t floor = 0;
    if (by_count || how.top_p < 1.0f) {
        double mass = row_prepare(row, how, by_count, shared);
        if (by_count)
            floor = key_search(*row, true, (double)how.top_k, &mass, shared);
        if (how.top_p < 1.0f) {
            double left;
            uint32_t key = key_search(*row, false, (double)how.top_p * mass, &left, shared);
            floor = key > floor ? key : floor;
        }
    }
    if (how.min_p > 0.0f) {
        uint32_t key = key_of(row->max + logf(how.min_p));
        floor = key > floor ? key : floor;
    }
    return floor;
}

__device__ static inline bool value_stays(const struct cut_row &row, float value, uint32_t floor)
{
    return value > -INFINITY && key_of(value) >= floor && row.max - value <= row.reach;
}

/* The race among this block's values that the floor leaves. */
__device__ static struct best block_race(const struct cut_row &row, const struct sample_row &how,
                                         uint32_t floor, struct cut_shared *shared)
{
    float mine = INFINITY;
#pragma unroll 4
    for (int i = threadIdx.x; i < row.columns; i += THREADS) {
        float value = row.share[i];
        if (value_stays(row, value, floor))
            mine = fminf(mine, race_time(how, row.first + i, value, row.max));
    }
    float limit = race_limit(few_min<WARPS>(mine, shared->number), row.max);
    struct best best = {-INFINITY, INT32_MAX};
    if (mine <= limit) {
        for (int i = threadIdx.x; i < row.columns; i += THREADS) {
            float value = row.share[i];
            int32_t id = row.first + i;
            if (value_stays(row, value, floor) && race_time(how, id, value, row.max) <= limit)
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
    launch_next();
    launch_wait();
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
    row.columns = row.columns > 0 ? row.columns : 0;
    float *work = op.work + (int64_t)blockIdx.y * op.batch.columns + row.first;
    row.share = work;
    row.values = staged ? stage : work;
    row.own = (row.columns - (int)threadIdx.x + THREADS - 1) / THREADS;
    row.own = row.own > 0 ? row.own : 0;
    row.shift = 30;
    row.reach = INFINITY;
    if (threadIdx.x == 0)
        shared.turn = 0;
    row_load(&row, staged ? stage : NULL, &shared);
    struct best best = {-INFINITY, INT32_MAX};
    if (row.max > -INFINITY) {
        uint32_t floor = floor_find(&row, how, op.batch.limit, &shared);
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
    return launch_early_clusters(device, cut_kernel, dim3(BLOCKS, op->batch.rows), BLOCKS,
                                 dim3(THREADS), bytes, "sample: thresholds", *op, *area, staged);
}
