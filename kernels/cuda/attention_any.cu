/* Attention of any head size, group, window and cache: a block per token and head, 32 keys a warp
 * and turn. Right first; the tensor-core forms serve the shapes that matter. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv.cuh"

enum { WARPS = 4, DIM_MAX = CUDA_HEAD_DIM_MAX, PER_LANE = DIM_MAX / 32 };

__global__ __launch_bounds__(WARPS * 32) static void attention_any_kernel(struct attention_op op,
                                                                          struct ragged batch,
                                                                          int from)
{
    __shared__ float query[DIM_MAX];
    __shared__ float sums[WARPS][DIM_MAX];
    __shared__ float maxima[WARPS], masses[WARPS];
    const int dim = op.cache.head_dim;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t token = from + blockIdx.x;
    const int head = blockIdx.y;
    const int kv_head = (op.group_offset + head) / op.group;
    const int sequence = batch.token_sequence[token];
    const int slot = batch.slots[sequence];
    const int context = batch.contexts[sequence];
    const int64_t start = batch.starts[sequence];
    const int position = context + (int)(token - start);
    const int begin = op.window > 0 && position - op.window + 1 > 0 ? position - op.window + 1 : 0;

    for (int i = threadIdx.x; i < dim; i += blockDim.x)
        query[i] =
            op.scale * __bfloat162float(((const bf16 *)op.q)[token * op.ld_q + head * dim + i]);
    __syncthreads();

    auto row_of = [&](int which, int p) -> const bf16 * {
        if (op.cache.ring > 0 && p >= context)
            return (const bf16 *)(which == 0 ? op.k : op.v) + (start + p - context) * op.ld_kv +
                   kv_head * dim;
        return kv_row(op.cache, slot, which, kv_head, p);
    };

    float maximum = -INFINITY, mass = 0.0f;
    float sum[PER_LANE] = {};
    for (int base = begin + warp * 32; base <= position; base += WARPS * 32) {
        int p = base + lane;
        float score = -INFINITY;
        if (p <= position) {
            const bf16 *key = row_of(0, p);
            score = 0.0f;
            for (int i = 0; i < dim; i++)
                score += query[i] * __bfloat162float(key[i]);
        }
        float highest = fmaxf(maximum, warp_max(score));
        float rescale = __expf(maximum - highest);
        float weight = p <= position ? __expf(score - highest) : 0.0f;
        maximum = highest;
        mass = mass * rescale + warp_sum(weight);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            sum[i] *= rescale;
        int keys = position - base + 1 < 32 ? position - base + 1 : 32;
        for (int j = 0; j < keys; j++) {
            const bf16 *value = row_of(1, base + j);
            float share = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (i * 32 + lane < dim)
                    sum[i] += share * __bfloat162float(value[i * 32 + lane]);
        }
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        sums[warp][i * 32 + lane] = sum[i];
    if (lane == 0) {
        maxima[warp] = maximum;
        masses[warp] = mass;
    }
    __syncthreads();
    float highest = maxima[0];
    for (int w = 1; w < WARPS; w++)
        highest = fmaxf(highest, maxima[w]);
    float total = 0.0f;
    for (int w = 0; w < WARPS; w++)
        total += masses[w] * __expf(maxima[w] - highest);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float value = 0.0f;
        for (int w = 0; w < WARPS; w++)
            value += sums[w][i] * __expf(maxima[w] - highest);
        ((bf16 *)op.out)[(token * op.heads + head) * dim + i] = __float2bfloat16(value / total);
    }
    if (op.lse != NULL && threadIdx.x == 0)
        op.lse[token * op.heads + head] = highest + logf(total);
}

enum status attention_any(struct device *device, const struct attention_op *op, int from, int to)
{
    if (from >= to || op->heads == 0)
        return STATUS_OK;
    if (op->cache.head_dim > DIM_MAX) {
        log_error("cuda: attention: head_dim %d is over %d", op->cache.head_dim, (int)DIM_MAX);
        return STATUS_INTERNAL;
    }
    attention_any_kernel<<<dim3(to - from, op->heads), WARPS * 32, 0, device->stream>>>(
        *op, *op->batch, from);
    return launch_check("attention");
}
