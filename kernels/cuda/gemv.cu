/* Products of few rows: weights are read once, straight from memory into the fragments of mma.sync,
 * so that one to sixteen rows cost the same. A block owns eight columns; its warps share the depth
 * in pieces of SLABS x 32 elements and add up at the end. Since a product sums over the depth in
 * any order, lane t of a group of four takes elements 8t .. 8t + 7 of each 32 in both operands,
 * which makes every load one of 16 bytes. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"

enum { COLUMNS = 8, SLAB = 32 };

__device__ static inline uint64_t stream_policy()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Weights: read once in the step, kept out of L1 and first to leave L2. */
__device__ static inline uint4 load_stream(const bf16 *from, uint64_t policy)
{
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;\n"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from), "l"(policy));
    return value;
}

/* WARPS of a block, SLABS loads in flight a lane, HALVES of eight rows. */
template <int WARPS, int SLABS, int HALVES>
__global__ __launch_bounds__(WARPS * 32) static void gemv_kernel(struct gemm_op op)
{
    __shared__ float partial[WARPS][8 * HALVES][COLUMNS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, quad = lane % 4;
    const int column = blockIdx.x * COLUMNS;
    const int step = WARPS * SLABS * SLAB;
    const bf16 *weight =
        (const bf16 *)op.weight + (int64_t)(column + group) * op.depth + quad * 8;
    const bf16 *x = (const bf16 *)op.x + (int64_t)group * op.ld_x + quad * 8;
    const uint64_t policy = stream_policy();
    const uint4 zero = {0, 0, 0, 0};
    float sums[4] = {};
    uint4 w[SLABS];
    int at = warp * SLABS * SLAB;
    auto fetch = [&](int from) {
#pragma unroll
        for (int i = 0; i < SLABS; i++)
            w[i] = from + i * SLAB < op.depth ? load_stream(weight + from + i * SLAB, policy)
                                              : zero;
    };
    fetch(at);
    launch_wait(); /* weights do not depend on the kernel before, x does */
    launch_next();
    while (at < op.depth) {
        uint4 now[SLABS];
#pragma unroll
        for (int i = 0; i < SLABS; i++)
            now[i] = w[i];
        if (at + step < op.depth)
            fetch(at + step);
#pragma unroll
        for (int i = 0; i < SLABS; i++) {
            bool inside = at + i * SLAB < op.depth;
            uint4 low = inside && group < op.rows ? *(const uint4 *)(x + at + i * SLAB) : zero;
            uint4 high = zero;
            if (HALVES == 2 && inside && group + 8 < op.rows)
                high = *(const uint4 *)(x + 8 * (int64_t)op.ld_x + at + i * SLAB);
            uint32_t first[4] = {low.x, high.x, low.y, high.y};
            uint32_t second[4] = {low.z, high.z, low.w, high.w};
            mma_bf16(sums, first, now[i].x, now[i].y);
            mma_bf16(sums, second, now[i].z, now[i].w);
        }
        at += step;
    }
    partial[warp][group][quad * 2] = sums[0];
    partial[warp][group][quad * 2 + 1] = sums[1];
    if (HALVES == 2) {
        partial[warp][8 + group][quad * 2] = sums[2];
        partial[warp][8 + group][quad * 2 + 1] = sums[3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < op.rows * COLUMNS; i += WARPS * 32) {
        int row = i / COLUMNS, c = i % COLUMNS;
        float sum = op.bias != NULL ? op.bias[column + c] : 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            sum += partial[w][row][c];
        int64_t to = (int64_t)row * op.ld_out + column + c;
        if (op.float_out)
            ((float *)op.out)[to] = sum;
        else
            ((bf16 *)op.out)[to] = __float2bfloat16(sum);
    }
}

bool gemv_fits(const struct gemm_op *op)
{
    return op->rows <= 16 && op->depth % SLAB == 0 && op->columns % COLUMNS == 0 &&
           op->ld_x % 8 == 0 && aligned16(op->x) && aligned16(op->weight);
}

template <int WARPS, int SLABS>
static enum status gemv_launch(struct device *device, const struct gemm_op *op)
{
    auto kernel = op->rows <= 8 ? gemv_kernel<WARPS, SLABS, 1> : gemv_kernel<WARPS, SLABS, 2>;
    return launch_early(device, kernel, dim3(op->columns / COLUMNS), dim3(WARPS * 32), 0, "gemv",
                        *op);
}

enum status gemv_run(struct device *device, const struct gemm_op *op, int form)
{
    switch (form) {
    case 0:
        return gemv_launch<4, 4>(device, op);
    case 1:
        return gemv_launch<8, 4>(device, op);
    case 2:
        return gemv_launch<8, 8>(device, op);
    case 3:
        return gemv_launch<16, 4>(device, op);
    default:
        return gemv_launch<4, 8>(device, op);
    }
}
