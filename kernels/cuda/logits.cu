/* What a row of logits says: summary, single values, the best few, digit histograms. One block of
 * a thousand threads a row. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/logits.cuh"

__global__ __launch_bounds__(ROW_THREADS) static void summary_kernel(struct logit_summary_op op)
{
    __shared__ struct best bests[32];
    __shared__ double sums[32];
    __shared__ int bad;
    const float *row = op.logits + (int64_t)blockIdx.x * op.columns;
    if (threadIdx.x == 0)
        bad = 0;
    __syncthreads();
    struct best best = {-INFINITY, INT32_MAX};
    for (int i = threadIdx.x; i < op.columns; i += ROW_THREADS) {
        float value = row[i];
        if (isnan(value) || value == INFINITY)
            bad = 1;
        best = best_of(best, (struct best){value, op.first + i});
    }
    best = block_best(best, bests);
    double sum = 0.0;
    if (best.value > -INFINITY)
        for (int i = threadIdx.x; i < op.columns; i += ROW_THREADS)
            sum += exp((double)row[i] - (double)best.value);
    sum = block_sum_double(sum, sums);
    if (threadIdx.x == 0)
        op.out[blockIdx.x] =
            (struct logit_summary){best.value, best.value > -INFINITY ? best.id : -1, sum, bad, 0};
}

__global__ static void pick_kernel(struct logit_pick_op op)
{
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= op.rows)
        return;
    int64_t column = (int64_t)op.targets[row] - op.first;
    op.values[row] = column >= 0 && column < op.columns
                         ? op.logits[(int64_t)row * op.columns + column]
                         : -INFINITY;
}

/* k rounds: the best of those after the previous best in the order (value down, id up). */
__global__ __launch_bounds__(ROW_THREADS) static void top_kernel(struct logit_top_op op)
{
    __shared__ struct best bests[32];
    const float *row = op.logits + (int64_t)blockIdx.x * op.columns;
    struct best previous = {INFINITY, -1};
    for (int rank = 0; rank < op.k; rank++) {
        struct best best = {-INFINITY, INT32_MAX};
        for (int i = threadIdx.x; i < op.columns; i += ROW_THREADS) {
            float value = row[i];
            int id = op.first + i;
            if (value > -INFINITY &&
                (value < previous.value || (value == previous.value && id > previous.id)))
                best = best_of(best, (struct best){value, id});
        }
        best = block_best(best, bests);
        if (threadIdx.x == 0)
            op.out[(int64_t)blockIdx.x * op.k + rank] =
                best.id == INT32_MAX ? (struct logit_candidate){-INFINITY, -1}
                                     : (struct logit_candidate){best.value, best.id};
        previous = best;
    }
}

/* Masses are summed as integers of 2^-40 and 2^-80, so that the order in which threads arrive does
 * not show in the result. */
__global__ __launch_bounds__(ROW_THREADS) static void histogram_kernel(struct logit_histogram_op op)
{
    __shared__ unsigned long long coarse[256], fine[256];
    __shared__ uint32_t counts[256];
    const float *row = op.logits + (int64_t)blockIdx.x * op.columns;
    const double maximum = (double)op.maxima[blockIdx.x];
    const uint64_t prefix = op.prefixes[blockIdx.x];
    for (int i = threadIdx.x; i < 256; i += ROW_THREADS) {
        coarse[i] = fine[i] = 0;
        counts[i] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < op.columns; i += ROW_THREADS) {
        uint64_t key = key_of(row[i]);
        if (key >> (op.shift + 8) != prefix >> (op.shift + 8))
            continue;
        int bin = (int)(key >> op.shift) & 255;
        double mass = exp((double)row[i] - maximum) * 0x1p40;
        double whole = floor(mass);
        atomicAdd(&coarse[bin], (unsigned long long)whole);
        atomicAdd(&fine[bin], (unsigned long long)((mass - whole) * 0x1p40));
        atomicAdd(&counts[bin], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += ROW_THREADS) {
        op.mass[(int64_t)blockIdx.x * 256 + i] =
            (double)coarse[i] * 0x1p-40 + (double)fine[i] * 0x1p-80;
        op.count[(int64_t)blockIdx.x * 256 + i] = counts[i];
    }
}

enum status cuda_logit_summary(struct device *device, const struct logit_summary_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0)
        return status;
    summary_kernel<<<op->rows, ROW_THREADS, 0, device->stream>>>(*op);
    return launch_check("logit_summary");
}

enum status cuda_logit_pick(struct device *device, const struct logit_pick_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0)
        return status;
    pick_kernel<<<blocks_for(op->rows, 128), 128, 0, device->stream>>>(*op);
    return launch_check("logit_pick");
}

enum status cuda_logit_top(struct device *device, const struct logit_top_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0 || op->k == 0)
        return status;
    top_kernel<<<op->rows, ROW_THREADS, 0, device->stream>>>(*op);
    return launch_check("logit_top");
}

enum status cuda_logit_histogram(struct device *device, const struct logit_histogram_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0)
        return status;
    histogram_kernel<<<op->rows, ROW_THREADS, 0, device->stream>>>(*op);
    return launch_check("logit_histogram");
}
