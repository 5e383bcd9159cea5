/* Best values with ids, shared by a block that owns a row of logits. */
#ifndef JETD_KERNELS_CUDA_LOGITS_CUH
#define JETD_KERNELS_CUDA_LOGITS_CUH

#include <stdint.h>

enum { ROW_THREADS = 1024 };

struct best {
    float value;
    int32_t id; /* INT32_MAX: none */
};

/* The larger, the lower id among equals; NaN never wins. */
__device__ static inline struct best best_of(struct best a, struct best b)
{
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ static inline struct best warp_best(struct best best)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        struct best other = {__shfl_xor_sync(0xffffffffu, best.value, offset),
                             __shfl_xor_sync(0xffffffffu, best.id, offset)};
        best = best_of(best, other);
    }
    return best;
}

/* All threads of a full block; `bests` has one entry a warp. */
__device__ static inline struct best block_best(struct best best, struct best *bests)
{
    best = warp_best(best);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        bests[threadIdx.x / 32] = best;
    __syncthreads();
    best = bests[threadIdx.x % 32];
    return warp_best(best);
}

__device__ static inline double block_sum_double(double value, double *sums)
{
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = sums[threadIdx.x % 32];
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

/* logit_key() */
__device__ static inline uint32_t key_of(float value)
{
    uint32_t bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

#endif
