/* From logits to a token: adjustment, the race, counts. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/logits.cuh"
#include "kernels/philox.h"

__device__ static float penalised(float value, uint32_t count, const struct sample_row &row)
{
    uint32_t given = count & ~COUNT_SEEN_IN_PROMPT;
    if (count != 0 && row.repetition != 1.0f)
        value = value > 0.0f ? value / row.repetition : value * row.repetition;
    if (given != 0)
        value -= row.presence + row.frequency * (float)given;
    return value;
}

__global__ __launch_bounds__(ROW_THREADS) static void adjust_kernel(struct logit_adjust_op op)
{
    const struct sample_batch &batch = op.batch;
    const struct sample_row row = batch.row[blockIdx.x];
    float *logits = op.logits + (int64_t)blockIdx.x * batch.columns;
    if (threadIdx.x == 0) {
        for (int i = 0; i < row.bias_count; i++) {
            struct logit_bias bias = batch.bias[row.bias_begin + i];
            int64_t column = (int64_t)bias.id - batch.first;
            if (column >= 0 && column < batch.columns)
                logits[column] += bias.value;
        }
    }
    __syncthreads();
    bool counted = (row.flags & SAMPLE_COUNTED) != 0;
    const uint32_t *counts = batch.counts + (counted ? (int64_t)row.slot * batch.columns : 0);
    if (counted || row.temperature > 0.0f || batch.first + batch.columns > batch.limit)
        for (int i = threadIdx.x; i < batch.columns; i += ROW_THREADS) {
            float value = logits[i];
            if (counted)
                value = penalised(value, counts[i], row);
            if (batch.first + i >= batch.limit)
                value = -INFINITY;
            logits[i] = row.temperature > 0.0f ? value / row.temperature : value;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < row.ban_count; i += ROW_THREADS) {
        int64_t column = (int64_t)batch.bans[row.ban_begin + i] - batch.first;
        if (column >= 0 && column < batch.columns)
            logits[column] = -INFINITY;
    }
}

__global__ __launch_bounds__(ROW_THREADS) static void draw_kernel(struct logit_draw_op op)
{
    __shared__ struct best bests[32];
    const struct sample_batch &batch = op.batch;
    const struct sample_row row = batch.row[blockIdx.x];
    const float *logits = op.logits + (int64_t)blockIdx.x * batch.columns;
    const uint32_t floor = op.floors[blockIdx.x];
    struct best best = {-INFINITY, INT32_MAX};
    for (int i = threadIdx.x; i < batch.columns; i += ROW_THREADS) {
        float value = logits[i];
        int32_t id = batch.first + i;
        if (!(value > -INFINITY) || key_of(value) < floor)
            continue;
        if (row.temperature > 0.0f) {
            double uniform =
                ((double)philox_draw(row.seed, row.draw, (uint32_t)id) + 0.5) * 0x1p-32;
            value = (float)((double)value - log(-log(uniform)));
        }
        best = best_of(best, (struct best){value, id});
    }
    best = block_best(best, bests);
    if (threadIdx.x == 0)
        op.out[blockIdx.x] = best.id == INT32_MAX ? (struct logit_candidate){-INFINITY, -1}
                                                  : (struct logit_candidate){best.value, best.id};
}

/* One block a slot. */
__global__ static void reset_kernel(struct count_op op)
{
    uint32_t *counts = op.counts + (int64_t)op.reset[blockIdx.x] * op.columns;
    for (int i = threadIdx.x; i < op.columns; i += blockDim.x)
        counts[i] = 0;
}

__global__ static void count_kernel(struct count_op op)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= op.entries)
        return;
    struct count_entry entry = op.entry[i];
    int32_t id = entry.id >= 0 ? entry.id : op.last[-1 - entry.id];
    int64_t column = (int64_t)id - op.first;
    if (id < 0 || column < 0 || column >= op.columns)
        return;
    uint32_t *count = op.counts + (int64_t)entry.slot * op.columns + column;
    if (entry.prompt)
        atomicOr(count, COUNT_SEEN_IN_PROMPT);
    else
        atomicAdd(count, 1u);
}

enum status cuda_logit_adjust(struct device *device, const struct logit_adjust_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->batch.rows == 0)
        return status;
    adjust_kernel<<<op->batch.rows, ROW_THREADS, 0, device->stream>>>(*op);
    return launch_check("logit_adjust");
}

enum status cuda_logit_draw(struct device *device, const struct logit_draw_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->batch.rows == 0)
        return status;
    draw_kernel<<<op->batch.rows, ROW_THREADS, 0, device->stream>>>(*op);
    return launch_check("logit_draw");
}

enum status cuda_count(struct device *device, const struct count_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    if (op->resets > 0)
        reset_kernel<<<op->resets, 256, 0, device->stream>>>(*op);
    if (op->entries > 0)
        count_kernel<<<blocks_for(op->entries, 128), 128, 0, device->stream>>>(*op);
    return launch_check("count");
}
