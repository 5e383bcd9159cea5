/* A product of few rows, and of any depth, added to what is there: a stage is a piece of 16
 * columns, and x is read along with it. */
#include "kernels/cuda/gemv_fused.cuh"

enum { PIECE = 1024, COLUMNS = 16, STRIDE = PIECE + SLAB };

typedef struct stream_shared<COLUMNS, 1, 1> pieces_shared;

/* Columns that a stage holds: of a narrow product fewer, so that more stages fit. */
__device__ static inline int stage_columns(int columns)
{
    int most = (columns + (int)gridDim.x - 1) / (int)gridDim.x;
    return most < COLUMNS ? most : COLUMNS;
}

/* The next piece to fetch. */
struct fetch {
    int column, at;
};

__device__ static inline void pieces_fill(const struct gemm_op &op, const struct share &share,
                                          const struct ring &ring, int stage, struct fetch *next)
{
    const int lane = threadIdx.x % 32;
    int count = share.end - next->column < COLUMNS ? share.end - next->column : COLUMNS;
    if (count <= 0)
        return;
    int bytes = (op.depth - next->at < PIECE ? op.depth - next->at : PIECE) * 2;
    uint32_t barrier = ring_expect(ring, stage, count * bytes);
    if (lane < count)
        copy_in(shared_address(ring_at(ring, stage) + lane * STRIDE),
                (const bf16 *)op.weight + (int64_t)(next->column + lane) * op.depth + next->at,
                bytes, barrier, policy_evict_first());
    next->at += PIECE;
    if (next->at >= op.depth) {
        next->at = 0;
        next->column += COLUMNS;
    }
}

__global__ __launch_bounds__(THREADS, BLOCKS) static void gemv_add_kernel(struct gemm_op op)
{
    enum { SLABS = PIECE / SLAB / WARPS };
    extern __shared__ __align__(128) bf16 data[];
    __shared__ pieces_shared shared;
    const int columns = stage_columns(op.columns);
    struct ring ring = ring_open(&shared, data, columns * STRIDE);
    const struct share share = share_of(op.columns);
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    const int row_low = group < columns ? group : 0;
    const int row_high = group + 8 < columns ? group + 8 : 0;
    struct fetch next = {share.begin, 0};
    launch_next();
    for (int stage = 0; stage < ring.stages && ring_filler(); stage++)
        pieces_fill(op, share, ring, stage, &next);
    launch_wait(); /* weights do not depend on the kernels before, x does */
    uint4 x[SLABS], x_next[SLABS];
    auto x_load = [&](int at, uint4 *to) {
#pragma unroll
        for (int i = 0; i < SLABS; i++)
            to[i] = x_of(op, at / SLAB + i * WARPS + warp);
    };
    x_load(0, x_next);
    for (int column = share.begin; column < share.end; column += COLUMNS) {
        const struct cell cell = cell_of<COLUMNS>(op, column, share.end);
        float sums[CHAINS][4] = {};
        for (int at = 0; at < op.depth; at += PIECE) {
#pragma unroll
            for (int i = 0; i < SLABS; i++)
                x[i] = x_next[i];
            x_load(at + PIECE < op.depth ? at + PIECE : 0, x_next);
            ring_take(ring);
            const bf16 *from = ring_at(ring, ring.stage) + warp * SLAB + quad * 8;
#pragma unroll
            for (int i = 0; i < SLABS; i++) {
                if (at + (i * WARPS + warp) * SLAB >= op.depth)
                    continue;
                uint4 low = *(const uint4 *)(from + row_low * STRIDE + i * WARPS * SLAB);
                uint4 high = *(const uint4 *)(from + row_high * STRIDE + i * WARPS * SLAB);
                slab_multiply(sums[i % CHAINS], low, high, x[i]);
            }
            __syncthreads();
            if (ring_filler())
                pieces_fill(op, share, ring, ring.stage, &next);
            ring_next(&ring);
        }
        chains_join(sums);
        part_put<COLUMNS>(shared.part[0][warp], sums[0]);
        __syncthreads();
        if (cell.here)
            cell_store(op, cell,
                       parts_sum(shared.part[0], cell.column - column, cell.row, cell.bias));
    }
}

enum status gemv_add(struct device *device, const struct gemm_op *op)
{
    return stream_launch<pieces_shared>(device, op, gemv_add_kernel);
}
