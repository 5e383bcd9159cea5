/* Device-side helpers: bf16 vectors of eight (16 bytes) and reductions. The suffix says who shares
 * the work. */
#ifndef JETD_KERNELS_CUDA_TENSOR_CUH
#define JETD_KERNELS_CUDA_TENSOR_CUH

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

struct alignas(16) bf16x8 {
    __nv_bfloat162 pair[4];
};

__device__ static inline void unpack8(const bf16x8 &packed, float *values)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = __bfloat1622float2(packed.pair[i]);
        values[2 * i] = two.x;
        values[2 * i + 1] = two.y;
    }
}

__device__ static inline bf16x8 pack8(const float *values)
{
    bf16x8 packed;
#pragma unroll
    for (int i = 0; i < 4; i++)
        packed.pair[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    return packed;
}

__device__ static inline void load8(const bf16 *from, float *values)
{
    unpack8(*(const bf16x8 *)from, values);
}

__device__ static inline void store8(bf16 *to, const float *values)
{
    *(bf16x8 *)to = pack8(values);
}

__device__ static inline float silu_of(float x)
{
    return __fdividef(x, 1.0f + __expf(-x));
}

template <int WIDTH = 32>
__device__ static inline float warp_sum(float value)
{
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <int WIDTH = 32>
__device__ static inline float warp_max(float value)
{
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

/* Every thread gets the sum; `buffer` holds 33 floats; all threads of the block call it. */
__device__ static inline float block_sum(float value, float *buffer)
{
    int warps = (int)blockDim.x / 32;
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        buffer[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x < 32) {
        float partial = (int)threadIdx.x < warps ? buffer[threadIdx.x] : 0.0f;
        partial = warp_sum(partial);
        if (threadIdx.x == 0)
            buffer[32] = partial;
    }
    __syncthreads();
    return buffer[32];
}

#endif
