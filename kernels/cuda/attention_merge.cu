/* The parts of split-KV decoding (attention_decode.cu) become one result. A chain of loads a split
 * would take longer than the attention itself with one sequence: maxima are found by all threads at
 * once, and groups of them take splits in turn. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor.cuh"

enum { DIM = 128, MERGERS = 4, THREADS = MERGERS * DIM };

/* The largest of the splits' maxima, to every thread of the block. */
__device__ static inline float splits_maximum(const float2 *mass, int splits, float *warps)
{
    float most = -INFINITY;
    for (int i = threadIdx.x; i < splits; i += THREADS)
        most = fmaxf(most, mass[i].x);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++)
        most = fmaxf(most, warps[w]);
    return most;
}

/* One block a (head, sequence): groups of DIM threads take every MERGERSth split. Empty splits add
 * zeros, so that their number changes no bits. */
__global__ __launch_bounds__(THREADS) static void attention_merge_kernel(struct attention_op op,
                                                                         int splits,
                                                                         const float *partial,
                                                                         const float2 *partial_mass)
{
    __shared__ float warps[THREADS / 32], values[MERGERS][DIM], masses[MERGERS];
    const int64_t row = (int64_t)blockIdx.y * op.heads + blockIdx.x;
    const int group = threadIdx.x / DIM, at = threadIdx.x % DIM;
    float mass = 0.0f, value = 0.0f;
    launch_next();
    launch_wait();
    const float most = splits_maximum(partial_mass + row * splits, splits, warps);
#pragma unroll 8
    for (int i = group; i < splits; i += MERGERS) {
        float2 part = partial_mass[row * splits + i];
        float factor = exp2f(part.x - most);
        mass += part.y * factor;
        value += partial[(row * splits + i) * DIM + at] * factor;
    }
    values[group][at] = value;
    masses[group] = mass;
    __syncthreads();
    if (group > 0)
        return;
    for (int g = 1; g < MERGERS; g++) {
        mass += masses[g];
        value += values[g][at];
    }
    ((bf16 *)op.out)[row * DIM + at] = __float2bfloat16(value / mass);
    if (op.lse != NULL && at == 0)
        op.lse[row] = (most + log2f(mass)) * 0.69314718f;
}

enum status attention_merge(struct device *device, const struct attention_op *op, int splits,
                            const float *partial, const float2 *partial_mass)
{
    return launch_early(device, attention_merge_kernel, dim3(op->heads, op->batch->decodes),
                        dim3(THREADS), 0, "attention merge", *op, splits, partial, partial_mass);
}
