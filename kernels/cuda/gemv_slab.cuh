/* What all products of few rows share: a block's columns, and mma.sync over a slab of the depth.
 * Since a product sums over the depth in any order, lane t of a group of four takes elements 8t ..
 * 8t + 7 of each 32 in both operands: every load is one of 16 bytes. */
#ifndef JETD_KERNELS_CUDA_GEMV_SLAB_CUH
#define JETD_KERNELS_CUDA_GEMV_SLAB_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"

enum { SLAB = 32 }; /* of the depth */

struct share {
    int begin, end; /* columns */
};

__device__ static inline struct share share_of(int columns)
{
    return {(int)((int64_t)columns * blockIdx.x / gridDim.x),
            (int)((int64_t)columns * (blockIdx.x + 1) / gridDim.x)};
}

/* sums [16 columns, 8 rows] += W x^T over a slab; `low` and `high` are columns `group`, + 8. */
__device__ static inline void slab_multiply(float *sums, uint4 low, uint4 high, uint4 x)
{
    uint32_t first[4] = {low.x, high.x, low.y, high.y};
    uint32_t second[4] = {low.z, high.z, low.w, high.w};
    mma_bf16(sums, first, x.x, x.y);
    mma_bf16(sums, second, x.z, x.w);
}

#endif
