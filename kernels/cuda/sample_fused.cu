/* All of sampling without the host. The scan reads the raw logits once, in chunks: their maximum,
 * sum and fitness, the adjustment, and the winner of the race, so that rows without thresholds are
 * done with it. Rows with thresholds go on to sample_cut.cu, wishes for the k best to
 * sample_top.cu. */
#include <float.h>
#include <stddef.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample_fused.cuh"
#include "kernels/cuda/tensor.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, RESULT_WORDS = sizeof(struct sample_result) / 4 };
static_assert(offsetof(struct sample_result, token) == 0, "the word that is not cleared");

struct scan_shared {
    struct chunk_part part[WARPS];
    struct best best[WARPS];
    double sum[WARPS];
    bool last;
};

/* Columns of this thread: base + (i / 4 * THREADS + thread) * 4 + i % 4. */
__device__ static inline int column_of(int base, int i)
{
    return base + ((i / 4 * THREADS) + (int)threadIdx.x) * 4 + i % 4;
}

template <int COUNT>
__device__ static inline void chunk_load(const float *row, int columns, int base, bool wide,
                                         float *values)
{
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        int column = column_of(base, i);
        if (wide && column + 4 <= columns) {
            float4 four = *(const float4 *)(row + column);
            values[i] = four.x;
            values[i + 1] = four.y;
            values[i + 2] = four.z;
            values[i + 3] = four.w;
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            values[i + j] = column + j < columns ? row[column + j] : -INFINITY;
    }
}

/* The greatest value of the warp's share, with its lowest id; NaN is passed over. */
template <int COUNT>
__device__ static inline struct best share_best(const float *values, int base)
{
    float max = values[0];
#pragma unroll
    for (int i = 1; i < COUNT; i++)
        max = fmaxf(max, values[i]);
    uint32_t key = __reduce_max_sync(0xffffffffu, isnan(max) ? 0 : key_of(max));
    max = key == 0 ? -INFINITY : value_of(key);
    int id = INT32_MAX;
#pragma unroll
    for (int i = COUNT - 1; i >= 0; i--)
        id = values[i] == max ? column_of(base, i) : id;
    id = __reduce_min_sync(0xffffffffu, id);
    return (struct best){max, max > -INFINITY ? id : INT32_MAX};
}

/* The raw distribution of the warp's share. */
template <int COUNT>
__device__ static inline struct chunk_part share_summarise(const float *values, int base)
{
    bool bad = false;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        bad |= !(values[i] <= FLT_MAX);
    struct best best = share_best<COUNT>(values, base);
    float sum = 0.0f;
    if (best.value > -INFINITY)
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            sum += __expf(values[i] - best.value);
    struct chunk_part part = {};
    part.max = best.value;
    part.argmax = best.id;
    part.sum = warp_sum(sum);
    part.bad = __any_sync(0xffffffffu, bad);
    part.score = -INFINITY;
    part.id = INT32_MAX;
    return part;
}

/* Lists name ids: they reach the threads that hold them through shared memory. */
template <int COUNT, typename Apply>
__device__ static inline void chunk_lists(float *values, float *board, Apply apply)
{
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        board[column_of(0, i)] = values[i];
    __syncthreads();
    apply();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        values[i] = board[column_of(0, i)];
}

/* As logit_adjust. */
template <int COUNT>
__device__ static inline void chunk_adjust(const struct sample_batch &batch,
                                           const struct sample_row &row, int base, float *values,
                                           float *board)
{
    if (row.bias_count > 0)
        chunk_lists<COUNT>(values, board, [&] {
            for (int i = threadIdx.x; i < row.bias_count; i += THREADS) {
                struct logit_bias bias = batch.bias[row.bias_begin + i];
                int64_t at = (int64_t)bias.id - base;
                if (at >= 0 && at < COUNT * THREADS)
                    atomicAdd(&board[at], bias.value);
            }
        });
    if (row.flags & SAMPLE_COUNTED) {
        const uint32_t *counts = batch.counts + (int64_t)row.slot * batch.columns;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int column = column_of(base, i);
            uint32_t count = column < batch.columns ? counts[column] : 0;
            uint32_t given = count & ~COUNT_SEEN_IN_PROMPT;
            if (count != 0)
                values[i] =
                    values[i] > 0.0f ? values[i] / row.repetition : values[i] * row.repetition;
            if (given != 0)
                values[i] -= row.presence + row.frequency * (float)given;
        }
    }
    if (row.ban_count > 0)
        chunk_lists<COUNT>(values, board, [&] {
            for (int i = threadIdx.x; i < row.ban_count; i += THREADS) {
                int64_t at = (int64_t)batch.bans[row.ban_begin + i] - base;
                if (at >= 0 && at < COUNT * THREADS)
                    board[at] = -INFINITY;
            }
        });
    if (row.temperature > 0.0f && row.temperature != 1.0f)
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            values[i] /= row.temperature;
}

/* The winner of the warp's share: the best value of a greedy row, else the best score. */
template <int COUNT>
__device__ static inline struct best share_race(const struct sample_row &row, const float *values,
                                                int base, struct best best)
{
    if (!(best.value > -INFINITY) || !(row.temperature > 0.0f))
        return best;
    const float max = best.value;
    float mine = INFINITY;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (values[i] > -INFINITY)
            mine = fminf(mine, race_time(row, column_of(base, i), values[i], max));
    /* Times are positive: their bits are in order. */
    float first = __uint_as_float(__reduce_min_sync(0xffffffffu, __float_as_uint(mine)));
    float limit = race_limit(first, max);
    best = (struct best){-INFINITY, INT32_MAX};
    if (mine <= limit) {
#pragma unroll 1
        for (int i = 0; i < COUNT; i++) {
            int32_t id = column_of(base, i);
            float value = -INFINITY;
#pragma unroll
            for (int j = 0; j < COUNT; j++)
                value = i == j ? values[j] : value;
            if (value > -INFINITY && race_time(row, id, value, max) <= limit)
                best = best_of(best, (struct best){race_score(row, id, value), id});
        }
    }
    __syncwarp();
    return warp_best(best);
}

/* The first warp: the shares of all warps together. */
__device__ static inline struct chunk_part chunk_join(const struct chunk_part *parts)
{
    const int lane = threadIdx.x % 32;
    struct chunk_part part = parts[lane % WARPS];
    struct best best = warp_best((struct best){part.max, part.argmax});
    struct best winner = warp_best((struct best){part.score, part.id});
    float sum =
        part.max > -INFINITY && lane < WARPS ? part.sum * __expf(part.max - best.value) : 0.0f;
    part.sum = warp_sum(sum);
    part.bad = __any_sync(0xffffffffu, part.bad);
    part.max = best.value;
    part.argmax = best.id;
    part.score = winner.value;
    part.id = winner.id;
    return part;
}

/* The last block of a row: its chunks together. */
__device__ static void row_merge(const struct sample_op &op, const struct sample_area &area,
                                 const struct sample_row &row, struct scan_shared *shared)
{
    const struct chunk_part *parts = area.part + (int64_t)blockIdx.y * area.chunks;
    struct best best = {-INFINITY, INT32_MAX}, winner = {-INFINITY, INT32_MAX};
    int bad = 0;
    for (int c = threadIdx.x; c < area.chunks; c += THREADS) {
        float4 raw = __ldcg((const float4 *)&parts[c]);
        float2 race = __ldcg((const float2 *)&parts[c].score);
        best = best_of(best, (struct best){raw.x, __float_as_int(raw.y)});
        winner = best_of(winner, (struct best){race.x, __float_as_int(race.y)});
        bad |= __float_as_int(raw.w);
    }
    bad = __syncthreads_or(bad);
    best = few_best<WARPS>(best, shared->best);
    winner = few_best<WARPS>(winner, shared->best);
    double sum = 0.0;
    for (int c = threadIdx.x; c < area.chunks; c += THREADS) {
        float4 raw = __ldcg((const float4 *)&parts[c]);
        if (raw.x > -INFINITY)
            sum += (double)raw.z * exp((double)raw.x - (double)best.value);
    }
    sum = few_sum<WARPS>(sum, shared->sum);
    if (threadIdx.x < RESULT_WORDS)
        ((uint32_t *)&op.out[blockIdx.y])[threadIdx.x] = threadIdx.x == 0 ? UINT32_MAX : 0;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    struct row_state state = {(double)best.value + log(sum), best.id,
                              !bad && best.value > -INFINITY};
    area.state[blockIdx.y] = state;
    area.counters[blockIdx.y] = 0;
    if (!op.thresholds || !row_is_cut(row, op.batch.limit))
        row_finish(op, blockIdx.y, row, state,
                   row.target >= 0          ? row.target
                   : winner.id == INT32_MAX ? -1
                                            : winner.id);
}

/* A block a chunk (x) of a row (y); COUNT values a thread. */
template <int COUNT>
__global__ __launch_bounds__(THREADS, 4) static void scan_kernel(struct sample_op op,
                                                                 struct sample_area area, bool wide)
{
    __shared__ struct scan_shared shared;
    __shared__ float board[COUNT * THREADS];
    const struct sample_batch &batch = op.batch;
    const int base = blockIdx.x * COUNT * THREADS;
    const int64_t start = (int64_t)blockIdx.y * batch.columns;
    float values[COUNT];
    launch_next();
    launch_wait();
    chunk_load<COUNT>(op.logits + start, batch.columns, base, wide, values);
    const struct sample_row row = batch.row[blockIdx.y];
    struct chunk_part part = share_summarise<COUNT>(values, base);
    if (row.target < 0) {
        struct best best = {part.max, part.argmax};
        if (op.adjusted)
            chunk_adjust<COUNT>(batch, row, base, values, board);
        if (base + COUNT * THREADS > batch.limit) {
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                if (column_of(base, i) >= batch.limit)
                    values[i] = -INFINITY;
        }
        if (op.thresholds && row_is_cut(row, batch.limit)) {
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                if (column_of(base, i) < batch.columns)
                    op.work[start + column_of(base, i)] = values[i];
        } else {
            if (op.adjusted || base + COUNT * THREADS > batch.limit)
                best = share_best<COUNT>(values, base);
            best = share_race<COUNT>(row, values, base, best);
            part.score = best.value;
            part.id = best.id;
        }
    }
    if (threadIdx.x % 32 == 0)
        shared.part[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x < 32) {
        part = chunk_join(shared.part);
        if (threadIdx.x == 0) {
            area.part[(int64_t)blockIdx.y * area.chunks + blockIdx.x] = part;
            __threadfence();
            shared.last = atomicAdd(&area.counters[blockIdx.y], 1u) == (uint32_t)area.chunks - 1;
        }
    }
    __syncthreads();
    if (shared.last) {
        __threadfence();
        row_merge(op, area, row, &shared);
    }
}

/* ---- the entry ----------------------------------------------------------------------------- */

enum { NARROW = 8, BROAD = 16 }; /* values of a thread: for few rows, for many */

static size_t round_256(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Bytes of scratch of one row. */
static size_t area_row(const struct sample_area *area)
{
    return sizeof(struct row_state) + (size_t)area->chunks * sizeof(struct chunk_part) +
           (size_t)area->lists * SAMPLE_TOP_MAX * sizeof(struct logit_candidate);
}

static void area_place(struct device *device, int rows, struct sample_area *area)
{
    unsigned char *at = device->scratch;
    area->state = (struct row_state *)at;
    at += round_256((size_t)rows * sizeof(struct row_state));
    area->part = (struct chunk_part *)at;
    at += round_256((size_t)rows * area->chunks * sizeof(struct chunk_part));
    area->top = (struct logit_candidate *)at;
    area->counters = device->counters;
}

static enum status sample_tile(struct device *device, const struct sample_op *op,
                               struct sample_area *area, bool broad)
{
    area_place(device, op->batch.rows, area);
    bool wide = op->batch.columns % 4 == 0 && aligned16(op->logits);
    auto kernel = broad ? scan_kernel<BROAD> : scan_kernel<NARROW>;
    enum status status = launch_early(device, kernel, dim3(area->chunks, op->batch.rows),
                                      dim3(THREADS), 0, "sample", *op, *area, wide);
    if (status == STATUS_OK && op->thresholds)
        status = sample_cut(device, op, area);
    if (status == STATUS_OK && op->tops)
        status = sample_top(device, op, area);
    return status;
}

enum status cuda_sample(struct device *device, const struct sample_op *op)
{
    enum status status = device_enter(device);
    const int64_t columns = op->batch.columns;
    bool broad = op->batch.rows > 8 || device->options.batch_invariant;
    struct sample_area area = {};
    area.chunks = blocks_for(columns, (broad ? BROAD : NARROW) * THREADS);
    area.lists = op->tops ? blocks_for(columns, 4096) * 8 : 0;
    size_t room = (device->scratch_bytes - 1024) / area_row(&area);
    int most = room < DEVICE_COUNTERS ? (int)room : DEVICE_COUNTERS;
    for (int done = 0; done < op->batch.rows && status == STATUS_OK; done += most) {
        struct sample_op part = *op;
        part.batch.rows = op->batch.rows - done < most ? op->batch.rows - done : most;
        part.batch.row += done;
        part.logits += done * columns;
        part.work += done * columns;
        part.out += done;
        status = sample_tile(device, &part, &area, broad);
    }
    return status;
}
