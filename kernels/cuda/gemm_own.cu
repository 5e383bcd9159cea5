/* A matrix product of our own for shapes and alignments that neither the library nor our large
 * tiles (gemm_tile.cuh) take. Every row is summed in the same order whatever the batch. Tiles of 64
 * x 64, 32 deep, four warps of 32 x 32. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"

enum { TILE = 64, DEPTH = 32, STRIDE = DEPTH + 8, THREADS = 128 };

/* 64 x 32 of a row-major matrix into shared memory; zeros beyond its edges. */
template <bool WIDE>
__device__ static inline void tile_load(bf16 *to, const bf16 *from, int64_t ld, int row, int rows,
                                        int column, int columns)
{
    if (WIDE) {
        for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS) {
            int r = i / (DEPTH / 8), c = i % (DEPTH / 8) * 8;
            bool inside = row + r < rows && column + c < columns;
            copy16_async(shared_address(to + r * STRIDE + c),
                         inside ? from + (row + r) * ld + column + c : from, inside ? 16 : 0);
        }
    } else {
        for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
            int r = i / DEPTH, c = i % DEPTH;
            bool inside = row + r < rows && column + c < columns;
            to[r * STRIDE + c] =
                inside ? from[(row + r) * ld + column + c] : __float2bfloat16(0.0f);
        }
    }
}

template <bool WIDE>
__global__ __launch_bounds__(THREADS) static void gemm_own_kernel(struct gemm_op op)
{
    __shared__ alignas(16) bf16 x_tile[2][TILE * STRIDE], w_tile[2][TILE * STRIDE];
    const int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const int steps = (op.depth + DEPTH - 1) / DEPTH;
    float sums[2][4][4] = {};

    auto fetch = [&](int step) {
        if (step < steps) {
            tile_load<WIDE>(x_tile[step & 1], (const bf16 *)op.x, op.ld_x, row, op.rows,
                            step * DEPTH, op.depth);
            tile_load<WIDE>(w_tile[step & 1], (const bf16 *)op.weight, op.depth, column, op.columns,
                            step * DEPTH, op.depth);
        }
        copy_commit();
    };
    fetch(0);
    for (int step = 0; step < steps; step++) {
        fetch(step + 1);
        copy_wait<1>();
        __syncthreads();
        const bf16 *x = x_tile[step & 1], *w = w_tile[step & 1];
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                load_matrices(a[i], shared_address(x + (warp_row + i * 16 + lane % 16) * STRIDE +
                                                   k + lane / 16 * 8));
                load_matrices(b[i], shared_address(w + (warp_column + i * 16 + lane % 16) * STRIDE +
                                                   k + lane / 16 * 8));
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma_bf16(sums[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int r = row + warp_row + i * 16 + lane / 4 + e / 2 * 8;
                int c = column + warp_column + j * 8 + lane % 4 * 2 + e % 2;
                if (r >= op.rows || c >= op.columns)
                    continue;
                float value = sums[i][j][e] + (op.bias != NULL ? op.bias[c] : 0.0f);
                int64_t at = (int64_t)r * op.ld_out + c;
                if (op.float_out)
                    ((float *)op.out)[at] = value;
                else
                    ((bf16 *)op.out)[at] = __float2bfloat16(value);
            }
}

/* Adds the bias to what the library wrote without one. */
__global__ static void bias_kernel(struct gemm_op op)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= op.columns)
        return;
    float bias = op.bias[column];
    for (int64_t row = blockIdx.y; row < op.rows; row += gridDim.y)
        ((float *)op.out)[row * op.ld_out + column] += bias;
}

__global__ static void bias_wide_kernel(struct gemm_op op)
{
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= op.columns)
        return;
    float bias[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        bias[i] = op.bias[column + i];
    for (int64_t row = blockIdx.y; row < op.rows; row += gridDim.y) {
        bf16 *at = (bf16 *)op.out + row * op.ld_out + column;
        float values[8];
        load8(at, values);
#pragma unroll
        for (int i = 0; i < 8; i++)
            values[i] += bias[i];
        store8(at, values);
    }
}

enum status gemm_own(struct device *device, const struct gemm_op *op)
{
    bool wide =
        op->depth % 8 == 0 && op->ld_x % 8 == 0 && aligned16(op->x) && aligned16(op->weight);
    auto kernel = wide ? gemm_own_kernel<true> : gemm_own_kernel<false>;
    const int rows_max = 65535 * TILE; /* grid.y */
    struct gemm_op part = *op;
    for (int done = 0; done < op->rows; done += rows_max) {
        part.rows = op->rows - done < rows_max ? op->rows - done : rows_max;
        part.x = (const bf16 *)op->x + (int64_t)done * op->ld_x;
        part.out = (char *)op->out + (int64_t)done * op->ld_out * (op->float_out ? 4 : 2);
        kernel<<<dim3(blocks_for(op->columns, TILE), blocks_for(part.rows, TILE)), THREADS, 0,
                 device->stream>>>(part);
    }
    return launch_check("gemm");
}

/* The library wrote: bf16 comes in whole vectors of eight. */
enum status gemm_bias(struct device *device, const struct gemm_op *op)
{
    dim3 grid(blocks_for(op->columns, op->float_out ? 128 : 1024),
              op->rows < 4096 ? op->rows : 4096);
    if (op->float_out)
        bias_kernel<<<grid, 128, 0, device->stream>>>(*op);
    else
        bias_wide_kernel<<<grid, 128, 0, device->stream>>>(*op);
    return launch_check("gemm bias");
}
