/* Products of few rows by whole columns: a stage is one copy of 8 columns or, where they are short,
 * 16, and x stays in registers (a depth of at most 2048). On its way there it may pass a norm or
 * silu. A gated product's stage holds half gate's columns, half up's. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemv_fused.cuh"

enum { DEPTH_SHORT = 512, DEPTH_MAX = 2048 };
enum input { PLAIN, NORMED, SILU };

template <int SLABS, enum input INPUT>
using whole_shared =
    struct stream_shared<SLABS == 2 ? 16 : 8, 2, INPUT == NORMED ? SLABS * WARPS * SLAB : 1>;

/* ---- x, as it comes into the product ------------------------------------------------------- */

/* The norm's weight, which waits for nobody. */
__device__ static inline void norm_fetch(const struct gemm_op &op, float *norm)
{
    for (int i = threadIdx.x * 4; i < op.depth; i += WARPS * 32 * 4)
        *(float4 *)(norm + i) = *(const float4 *)(op.norm + i);
}

__device__ static inline uint4 silu8(uint4 x)
{
    float values[8];
    unpack8(*(bf16x8 *)&x, values);
#pragma unroll
    for (int i = 0; i < 8; i++)
        values[i] = silu_of(values[i]);
    bf16x8 packed = pack8(values);
    return *(uint4 *)&packed;
}

/* Unpacked again when it is needed again: kept unpacked, x would take twice the registers. */
__device__ static inline void keep_packed(uint4 &x)
{
    asm volatile("" : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w));
}

/* What rms_norm would have written of the rows that the block holds. */
template <int SLABS>
__device__ static inline void x_norm(const struct gemm_op &op, const float *norm,
                                     float (*squares)[ROWS_MAX], uint4 *x)
{
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SLABS; i++) {
        float values[8];
        unpack8(*(bf16x8 *)&x[i], values);
        keep_packed(x[i]);
#pragma unroll
        for (int e = 0; e < 8; e++)
            sum += values[e] * values[e];
    }
    sum = warp_sum<4>(sum);
    if (quad == 0)
        squares[warp][group] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        sum += squares[w][group];
    const float factor = rsqrtf(sum / (float)op.depth + op.epsilon);
#pragma unroll
    for (int i = 0; i < SLABS; i++) {
        int at = (i * WARPS + warp) * SLAB + quad * 8;
        if (at >= op.depth)
            continue;
        const float4 low = *(const float4 *)(norm + at), high = *(const float4 *)(norm + at + 4);
        const float weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        float values[8];
        unpack8(*(bf16x8 *)&x[i], values);
#pragma unroll
        for (int e = 0; e < 8; e++)
            values[e] *= factor * weight[e];
        *(bf16x8 *)&x[i] = pack8(values);
    }
    __syncthreads(); /* the weight's memory is the parts' */
}

/* ---- the kernel ---------------------------------------------------------------------------- */

/* GATED: op.columns are pairs, up's weights op.columns behind gate's. */
template <int STEP, bool GATED>
__device__ static inline void whole_fill(const struct gemm_op &op, const struct ring &ring,
                                         int stage, int column, int end)
{
    const int lane = threadIdx.x % 32, count = end - column < STEP ? end - column : STEP;
    if (count <= 0)
        return;
    int bytes = count * op.depth * 2;
    uint32_t barrier = ring_expect(ring, stage, GATED ? 2 * bytes : bytes);
    if (lane < (GATED ? 2 : 1))
        copy_in(shared_address(ring_at(ring, stage) + lane * STEP * op.depth),
                (const bf16 *)op.weight + ((int64_t)lane * op.columns + column) * op.depth, bytes,
                barrier, policy_evict_first());
}

/* A depth of at most SLABS x 256. */
template <int SLABS, enum input INPUT, bool GATED>
__global__ __launch_bounds__(THREADS, BLOCKS) static void gemv_fused_kernel(struct gemm_op op)
{
    enum { COLUMNS = SLABS == 2 ? 16 : 8, STEP = GATED ? COLUMNS / 2 : COLUMNS };
    extern __shared__ __align__(128) bf16 data[];
    __shared__ whole_shared<SLABS, INPUT> shared;
    struct ring ring = ring_open(&shared, data, COLUMNS * op.depth);
    const struct share share = share_of(op.columns);
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    launch_next();
    for (int stage = 0; stage < ring.stages && ring_filler(); stage++)
        whole_fill<STEP, GATED>(op, ring, stage, share.begin + stage * STEP, share.end);
    if (INPUT == NORMED)
        norm_fetch(op, shared.norm);
    launch_wait(); /* weights do not depend on the kernels before, x does */
    uint4 x[SLABS];
#pragma unroll
    for (int i = 0; i < SLABS; i++) {
        x[i] = x_of(op, i * WARPS + warp);
        if (INPUT == SILU)
            x[i] = silu8(x[i]);
    }
    if (INPUT == NORMED)
        x_norm<SLABS>(op, shared.norm, shared.squares, x);
    int turn = 0;
    for (int column = share.begin; column < share.end; column += STEP) {
        const struct cell cell = cell_of<STEP>(op, column, share.end);
        float sums[CHAINS][4] = {};
        ring_take(ring);
        const bf16 *from = ring_at(ring, ring.stage) + group * op.depth + warp * SLAB + quad * 8;
#pragma unroll
        for (int i = 0; i < SLABS; i++) {
            if ((i * WARPS + warp) * SLAB >= op.depth)
                continue;
            uint4 low = *(const uint4 *)(from + i * WARPS * SLAB), high = {};
            if (COLUMNS == 16)
                high = *(const uint4 *)(from + 8 * op.depth + i * WARPS * SLAB);
            slab_multiply(sums[i % CHAINS], low, high, x[i]);
        }
        chains_join(sums);
        auto part = shared.part[turn];
        part_put<COLUMNS>(part[warp], sums[0]);
        __syncthreads();
        if (ring_filler())
            whole_fill<STEP, GATED>(op, ring, ring.stage, column + ring.stages * STEP, share.end);
        ring_next(&ring);
        turn ^= 1;
        if (!cell.here)
            continue;
        float value = parts_sum(part, cell.column - column, cell.row, cell.bias);
        if (GATED)
            value = silu_of(rounded(value)) *
                    rounded(parts_sum(part, STEP + cell.column - column, cell.row, 0.0f));
        cell_store(op, cell, value);
    }
}

/* ---- the entries --------------------------------------------------------------------------- */

template <int SLABS, enum input INPUT, bool GATED>
static enum status whole_launch(struct device *device, const struct gemm_op *op)
{
    return stream_launch<whole_shared<SLABS, INPUT>>(device, op,
                                                     gemv_fused_kernel<SLABS, INPUT, GATED>);
}

template <enum input INPUT, bool GATED>
static enum status whole_fused(struct device *device, const struct gemm_op *op)
{
    return op->depth <= DEPTH_SHORT ? whole_launch<2, INPUT, GATED>(device, op)
                                    : whole_launch<8, INPUT, GATED>(device, op);
}

bool gemv_fused_fits(const struct gemm_op *op)
{
    return op->rows <= GEMV_FUSED_ROWS && op->depth % SLAB == 0 && op->ld_x % 8 == 0 &&
           aligned16(op->x) && aligned16(op->weight) && !(op->add && op->float_out) &&
           (op->norm == NULL || (op->depth <= DEPTH_MAX && aligned16(op->norm)));
}

enum status gemv_fused(struct device *device, const struct gemm_op *op)
{
    return op->norm != NULL ? whole_fused<NORMED, false>(device, op) : gemv_add(device, op);
}

bool gemv_silu_fits(const struct gemm_op *op)
{
    return gemv_fused_fits(op) && op->depth <= DEPTH_SHORT && op->norm == NULL;
}

enum status gemv_silu(struct device *device, const struct gemm_op *op)
{
    return whole_launch<2, SILU, false>(device, op);
}

bool gemv_gate_up_fits(const struct gate_up_op *op)
{
    const struct gemm_op product = gate_up_product(op);
    return gemv_fused_fits(&product) && op->depth <= DEPTH_MAX;
}

enum status gemv_gate_up(struct device *device, const struct gate_up_op *op)
{
    const struct gemm_op product = gate_up_product(op);
    return op->norm != NULL ? whole_fused<NORMED, true>(device, &product)
                            : whole_fused<PLAIN, true>(device, &product);
}
