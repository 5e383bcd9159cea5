/* Products of few rows as one stream of weights. Every multiprocessor owns an equal share of the
 * columns: one warp has the copy engine fill a ring in shared memory and keeps it full whatever the
 * others do, in copies of kilobytes (it takes about 40 ns to start one); eight warps share each
 * stage's depth and feed mma.sync from it, so that one to sixteen rows cost the same. The ring
 * starts to fill before the kernel ahead has ended.
 *
 * Two forms: a stage is whole columns, one copy, and x stays in registers (a depth of at most
 * 2048); or a stage is a piece of 16 columns, and x is read along with it. */
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_slab.cuh"
#include "kernels/cuda/launch.cuh"

enum { WARPS = 8, THREADS = (WARPS + 1) * 32, RING = 102 << 10, STAGES_MAX = 16 };
enum { PIECE = 1024, PIECE_COLUMNS = 16, PIECE_STRIDE = PIECE + SLAB };

/* A ring of stages; producer and consumers walk it in step. */
struct ring {
    bf16 *data;
    uint64_t *full, *empty;
    int stages, elements; /* of one stage */
    int stage, phase;
};

__device__ static inline void ring_next(struct ring *ring)
{
    if (++ring->stage == ring->stages) {
        ring->stage = 0;
        ring->phase ^= 1;
    }
}

__device__ static inline bf16 *ring_at(const struct ring &ring)
{
    return ring.data + ring.stage * ring.elements;
}

/* The stage is there to read. */
__device__ static inline void ring_take(const struct ring &ring)
{
    barrier_wait(shared_address(&ring.full[ring.stage]), ring.phase);
}

__device__ static inline void ring_give(struct ring *ring)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(shared_address(&ring->empty[ring->stage]));
    ring_next(ring);
}

/* The stage is free to fill, with `bytes` in all. */
__device__ static inline uint32_t ring_claim(const struct ring &ring, int bytes)
{
    uint32_t barrier = shared_address(&ring.full[ring.stage]);
    barrier_wait(shared_address(&ring.empty[ring.stage]), ring.phase ^ 1);
    if (threadIdx.x % 32 == 0)
        barrier_expect(barrier, bytes);
    __syncwarp();
    return barrier;
}

/* ---- x and the store ------------------------------------------------------------------------ */

/* Eight elements of x for a slab: row `group` + 8h; zeros beyond rows and depth. */
__device__ static inline uint4 x_of(const struct gemm_op &op, int h, int slab)
{
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    int row = group + 8 * h;
    if (row >= op.rows || slab * SLAB >= op.depth)
        return make_uint4(0, 0, 0, 0);
    return *(const uint4 *)((const bf16 *)op.x + (int64_t)row * op.ld_x + slab * SLAB + quad * 8);
}

/* Adds up the warps' parts [WARPS, COLUMNS, rows] of the columns from `column` on. */
template <int COLUMNS, int LD>
__device__ static inline void parts_store(const struct gemm_op &op, int column, int end,
                                          const float (*part)[COLUMNS][LD])
{
    threads_sync(1, WARPS * 32);
    for (int i = threadIdx.x; i < COLUMNS * op.rows; i += WARPS * 32) {
        int c = i % COLUMNS, row = i / COLUMNS;
        if (column + c >= end)
            continue;
        float sum = op.bias != NULL ? op.bias[column + c] : 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            sum += part[w][c][row];
        int64_t to = (int64_t)row * op.ld_out + column + c;
        if (op.float_out)
            ((float *)op.out)[to] = sum;
        else
            ((bf16 *)op.out)[to] = __float2bfloat16(sum);
    }
}

template <int COLUMNS, int HALVES>
struct stream_shared {
    float part[2][WARPS][COLUMNS][8 * HALVES + 1];
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
};

template <typename Shared>
__device__ static inline struct ring ring_open(Shared *shared, bf16 *data, int elements)
{
    int stages = RING / 2 / elements;
    struct ring ring = {
        data, shared->full, shared->empty, stages < STAGES_MAX ? stages : STAGES_MAX, elements, 0,
        0};
    if (threadIdx.x == 0) {
        for (int i = 0; i < ring.stages; i++) {
            barrier_init(shared_address(&ring.full[i]), 1);
            barrier_init(shared_address(&ring.empty[i]), WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    return ring;
}

/* ---- whole columns ------------------------------------------------------------------------- */

/* GROUPS of eight columns a stage; a depth of at most SLABS x 256. */
template <int SLABS, int GROUPS, int HALVES>
__global__ __launch_bounds__(THREADS) static void gemv_whole_kernel(struct gemm_op op)
{
    enum { COLUMNS = GROUPS * 8 };
    extern __shared__ __align__(128) bf16 data[];
    __shared__ struct stream_shared<COLUMNS, HALVES> shared;
    struct ring ring = ring_open(&shared, data, COLUMNS * op.depth);
    const struct share share = share_of(op.columns);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / 4, quad = lane % 4;
    launch_next();
    if (warp == WARPS) {
        const uint64_t policy = policy_evict_first();
        for (int column = share.begin; column < share.end; column += COLUMNS) {
            int count = share.end - column < COLUMNS ? share.end - column : COLUMNS;
            int bytes = count * op.depth * 2;
            uint32_t barrier = ring_claim(ring, bytes);
            if (lane == 0)
                copy_in(shared_address(ring_at(ring)),
                        (const bf16 *)op.weight + (int64_t)column * op.depth, bytes, barrier,
                        policy);
            ring_next(&ring);
        }
        return;
    }
    launch_wait(); /* weights do not depend on the kernels before, x does */
    uint4 x[SLABS][HALVES];
#pragma unroll
    for (int i = 0; i < SLABS; i++)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
            x[i][h] = x_of(op, h, i * WARPS + warp);
    int turn = 0;
    for (int column = share.begin; column < share.end; column += COLUMNS) {
        float sums[GROUPS][HALVES][4] = {};
        ring_take(ring);
        const bf16 *from = ring_at(ring) + group * op.depth + warp * SLAB + quad * 8;
#pragma unroll
        for (int i = 0; i < SLABS; i++) {
            if ((i * WARPS + warp) * SLAB >= op.depth)
                continue;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                uint4 w = *(const uint4 *)(from + g * 8 * op.depth + i * WARPS * SLAB);
#pragma unroll
                for (int h = 0; h < HALVES; h++)
                    slab_multiply(sums[g][h], w, make_uint4(0, 0, 0, 0), x[i][h]);
            }
        }
        ring_give(&ring);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                shared.part[turn][warp][g * 8 + group][h * 8 + quad * 2] = sums[g][h][0];
                shared.part[turn][warp][g * 8 + group][h * 8 + quad * 2 + 1] = sums[g][h][1];
            }
        parts_store(op, column, share.end, shared.part[turn]);
        turn ^= 1;
    }
}

/* ---- pieces -------------------------------------------------------------------------------- */

__device__ static inline void pieces_fill(const struct gemm_op &op, const struct share &share,
                                          struct ring ring)
{
    const int lane = threadIdx.x % 32;
    const uint64_t policy = policy_evict_first();
    for (int column = share.begin; column < share.end; column += PIECE_COLUMNS)
        for (int at = 0; at < op.depth; at += PIECE) {
            int count = share.end - column < PIECE_COLUMNS ? share.end - column : PIECE_COLUMNS;
            int bytes = (op.depth - at < PIECE ? op.depth - at : PIECE) * 2;
            uint32_t barrier = ring_claim(ring, count * bytes);
            if (lane < count)
                copy_in(shared_address(ring_at(ring) + lane * PIECE_STRIDE),
                        (const bf16 *)op.weight + (int64_t)(column + lane) * op.depth + at, bytes,
                        barrier, policy);
            ring_next(&ring);
        }
}

template <int HALVES>
__global__ __launch_bounds__(THREADS) static void gemv_pieces_kernel(struct gemm_op op)
{
    enum { SLABS = PIECE / SLAB / WARPS };
    extern __shared__ __align__(128) bf16 data[];
    __shared__ struct stream_shared<PIECE_COLUMNS, HALVES> shared;
    struct ring ring = ring_open(&shared, data, PIECE_COLUMNS * PIECE_STRIDE);
    const struct share share = share_of(op.columns);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / 4, quad = lane % 4;
    launch_next();
    if (warp == WARPS) {
        pieces_fill(op, share, ring);
        return;
    }
    launch_wait();
    uint4 x[SLABS][HALVES], x_next[SLABS][HALVES];
    auto x_load = [&](int at, uint4(*to)[HALVES]) {
#pragma unroll
        for (int i = 0; i < SLABS; i++)
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                to[i][h] = x_of(op, h, at / SLAB + i * WARPS + warp);
    };
    x_load(0, x_next);
    int turn = 0;
    for (int column = share.begin; column < share.end; column += PIECE_COLUMNS) {
        float sums[HALVES][4] = {};
        for (int at = 0; at < op.depth; at += PIECE) {
#pragma unroll
            for (int i = 0; i < SLABS; i++)
#pragma unroll
                for (int h = 0; h < HALVES; h++)
                    x[i][h] = x_next[i][h];
            x_load(at + PIECE < op.depth ? at + PIECE : 0, x_next);
            ring_take(ring);
            const bf16 *from = ring_at(ring) + group * PIECE_STRIDE + warp * SLAB + quad * 8;
#pragma unroll
            for (int i = 0; i < SLABS; i++) {
                if (at + (i * WARPS + warp) * SLAB >= op.depth)
                    continue;
                uint4 low = *(const uint4 *)(from + i * WARPS * SLAB);
                uint4 high = *(const uint4 *)(from + i * WARPS * SLAB + 8 * PIECE_STRIDE);
#pragma unroll
                for (int h = 0; h < HALVES; h++)
                    slab_multiply(sums[h], low, high, x[i][h]);
            }
            ring_give(&ring);
        }
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                shared.part[turn][warp][group + e / 2 * 8][8 * h + quad * 2 + e % 2] = sums[h][e];
        parts_store(op, column, share.end, shared.part[turn]);
        turn ^= 1;
    }
}

/* ---- the entry ----------------------------------------------------------------------------- */

static enum status stream_launch(struct device *device, const struct gemm_op *op,
                                 void (*kernel)(struct gemm_op))
{
    enum status status = shared_raise(kernel, RING, "gemv");
    if (status != STATUS_OK)
        return status;
    return launch_early(device, kernel, dim3(device->multiprocessors), dim3(THREADS), RING, "gemv",
                        *op);
}

bool gemv_fits(const struct gemm_op *op, int form)
{
    const bool two = op->depth > 512 && op->depth <= 2048;
    return (form == 0 || two) && op->rows <= 16 && op->depth % SLAB == 0 && op->ld_x % 8 == 0 &&
           aligned16(op->x) && aligned16(op->weight);
}

enum status gemv_run(struct device *device, const struct gemm_op *op, int form)
{
    bool half = op->rows <= 8;
    if (op->depth > 2048 || form == 1)
        return stream_launch(device, op, half ? gemv_pieces_kernel<1> : gemv_pieces_kernel<2>);
    if (op->depth > 512)
        return stream_launch(device, op,
                             half ? gemv_whole_kernel<8, 1, 1> : gemv_whole_kernel<8, 1, 2>);
    return stream_launch(device, op,
                         half ? gemv_whole_kernel<2, 4, 1> : gemv_whole_kernel<2, 4, 2>);
}
