/* q and k of the merged projection through silu and the head norm, in one pass. Sixteen lanes a
 * head, eight values a lane. */
#include <cmath>

#include "kernels/cuda/mixer.h"
#include "kernels/cuda/tensor.cuh"

enum { LANES = 16, DIM_MAX = LANES * 8 };

struct input_places {
    bf16 *q, *k;
    float q_scale;
};

__global__ static void mixer_inputs_kernel(struct jet_mixer_op op, struct input_places out,
                                           int first, int items)
{
    int item = (int)(blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES);
    bool inside = item < items;
    item = inside ? item : items - 1;
    const int lane = threadIdx.x % LANES;
    const int head = item / 2 % op.heads;
    const bool key = item % 2 != 0;
    const int64_t token = first + item / 2 / op.heads;
    const bf16 *projected = (const bf16 *)op.projected + token * op.ld_projected;
    const int64_t row = token * op.heads + head;
    const bool has = lane * 8 < op.d_k;
    float values[8] = {};
    if (has)
        load8(projected + (key ? op.k_at : op.q_at) + head * op.d_k + lane * 8, values);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        values[i] = silu_of(values[i]);
        sum += values[i] * values[i];
    }
    float factor = rsqrtf(warp_sum<LANES>(sum) + op.head_epsilon) * (key ? 1.0f : out.q_scale);
#pragma unroll
    for (int i = 0; i < 8; i++)
        values[i] *= factor;
    if (has && inside)
        store8((key ? out.k : out.q) + row * op.d_k + lane * 8, values);
}

bool mixer_inputs_fits(const struct jet_mixer_op *op)
{
    return op->d_k % 8 == 0 && op->d_k <= DIM_MAX && op->q_at % 8 == 0 && op->k_at % 8 == 0 &&
           op->ld_projected % 8 == 0 && aligned16(op->projected) && aligned16(op->scratch);
}

enum status mixer_inputs(struct device *device, const struct jet_mixer_op *op, int first, void *q,
                         void *k)
{
    int items = (op->batch->tokens - first) * op->heads * 2;
    struct input_places out = {(bf16 *)q, (bf16 *)k, 1.0f / sqrtf((float)op->d_k)};
    mixer_inputs_kernel<<<blocks_for(items, 256 / LANES), 256, 0, device->stream>>>(*op, out, first,
                                                                                    items);
    return launch_check("jet mixer inputs");
}
