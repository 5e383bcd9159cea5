/* What the forms of a product of few rows share. Every multiprocessor owns an equal share of the
 * columns: the copy engine fills a ring in shared memory, in copies of kilobytes (it takes about
 * 40 ns to start one); eight warps share each stage's depth and feed mma.sync from it.
 *
 * The ring starts to fill before the kernel ahead has ended, and two blocks find room on a
 * multiprocessor: while one product is summed up and stored, the next one's weights arrive. */
#ifndef JETD_KERNELS_CUDA_GEMV_FUSED_CUH
#define JETD_KERNELS_CUDA_GEMV_FUSED_CUH

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/gemv_slab.cuh"
#include "kernels/cuda/launch.cuh"

enum { WARPS = 8, THREADS = WARPS * 32, STAGES_MAX = 16 };
enum { ROWS_MAX = 8 }; /* of x, as mma.sync takes them */
/* Shared memory of a block, and how many share a multiprocessor's 228 KB: 6 are left for the small
 * kernels between. */
enum { BLOCK_BYTES = 110 << 10, BLOCKS = 2 };

/* ---- the ring ------------------------------------------------------------------------------ */

/* Stages, which the block walks in step. */
struct ring {
    bf16 *data;
    uint64_t *full;
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

__device__ static inline bf16 *ring_at(const struct ring &ring, int stage)
{
    return ring.data + stage * ring.elements;
}

/* The stage is there to read. */
__device__ static inline void ring_take(const struct ring &ring)
{
    barrier_wait(shared_address(&ring.full[ring.stage]), ring.phase);
}

/* The warp that fills stages: it has the least to store. */
__device__ static inline bool ring_filler()
{
    return threadIdx.x / 32 == WARPS - 1;
}

/* By the filler: a stage, free since a barrier of the block, will hold `bytes`. */
__device__ static inline uint32_t ring_expect(const struct ring &ring, int stage, int bytes)
{
    uint32_t barrier = shared_address(&ring.full[stage]);
    if (threadIdx.x % 32 == 0)
        barrier_expect(barrier, bytes);
    __syncwarp();
    return barrier;
}

/* ---- a block's shared memory --------------------------------------------------------------- */

/* Warps' parts of the sums of COLUMNS columns, in TURNS; before the first, the norm's weight. */
template <int COLUMNS, int TURNS, int DEPTH>
struct stream_shared {
    union {
        float part[TURNS][WARPS][COLUMNS][ROWS_MAX + 1];
        float norm[DEPTH];
    };
    float squares[WARPS][ROWS_MAX];
    uint64_t full[STAGES_MAX];
};

/* Bytes left for the ring. */
template <typename Shared>
struct ring_of {
    enum { BYTES = (BLOCK_BYTES - (int)sizeof(Shared)) / 128 * 128 };
};

template <typename Shared>
__device__ static inline struct ring ring_open(Shared *shared, bf16 *data, int elements)
{
    int stages = ring_of<Shared>::BYTES / 2 / elements;
    struct ring ring = {data, shared->full, stages < STAGES_MAX ? stages : STAGES_MAX, elements, 0,
                        0};
    if (threadIdx.x == 0) {
        for (int i = 0; i < ring.stages; i++)
            barrier_init(shared_address(&ring.full[i]), 1);
        barrier_init_done();
    }
    __syncthreads();
    return ring;
}

/* ---- x and its products --------------------------------------------------------------------- */

/* Eight elements of x for a slab: row `group`; zeros beyond rows and depth. */
__device__ static inline uint4 x_of(const struct gemm_op &op, int slab)
{
    const int row = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    if (row >= op.rows || slab * SLAB >= op.depth)
        return make_uint4(0, 0, 0, 0);
    return __ldcg(
        (const uint4 *)((const bf16 *)op.x + (int64_t)row * op.ld_x + slab * SLAB + quad * 8));
}

/* Two chains of dependent products, of every other slab each. */
enum { CHAINS = 2 };

__device__ static inline void chains_join(float (*sums)[4])
{
#pragma unroll
    for (int e = 0; e < 4; e++)
        sums[0][e] += sums[1][e];
}

/* ---- the store ----------------------------------------------------------------------------- */

/* What one thread stores of a pass over STEP columns: STEP x rows are no more than threads. */
struct cell {
    int column, row;
    bool here;
    float bias, old; /* fetched before the sums are there */
};

template <int STEP>
__device__ static inline struct cell cell_of(const struct gemm_op &op, int column, int end)
{
    struct cell cell = {};
    cell.column = column + (int)threadIdx.x % STEP;
    cell.row = (int)threadIdx.x / STEP;
    cell.here = cell.row < op.rows && cell.column < end;
    if (cell.here && op.bias != NULL)
        cell.bias = op.bias[cell.column];
    if (cell.here && op.add)
        cell.old = __bfloat162float(
            __ldcg((const bf16 *)op.out + (int64_t)cell.row * op.ld_out + cell.column));
    return cell;
}

/* sums of 16 or 8 columns, as mma leaves them. */
template <int COLUMNS, int LD>
__device__ static inline void part_put(float (*part)[LD], const float *sums)
{
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int e = 0; e < (COLUMNS == 16 ? 4 : 2); e++)
        part[group + e / 2 * 8][quad * 2 + e % 2] = sums[e];
}

template <int COLUMNS, int LD>
__device__ static inline float parts_sum(const float (*part)[COLUMNS][LD], int c, int row,
                                         float sum)
{
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        sum += part[w][c][row];
    return sum;
}

/* As a product by itself would leave it. */
__device__ static inline float rounded(float value)
{
    return __bfloat162float(__float2bfloat16(value));
}

__device__ static inline void cell_store(const struct gemm_op &op, const struct cell &cell,
                                         float value)
{
    int64_t to = (int64_t)cell.row * op.ld_out + cell.column;
    if (op.float_out)
        ((float *)op.out)[to] = value;
    else
        ((bf16 *)op.out)[to] = __float2bfloat16(op.add ? cell.old + rounded(value) : value);
}

/* ---- launch -------------------------------------------------------------------------------- */

template <typename Shared>
static enum status stream_launch(struct device *device, const struct gemm_op *op,
                                 void (*kernel)(struct gemm_op))
{
    const size_t bytes = ring_of<Shared>::BYTES;
    enum status status = shared_raise(kernel, bytes, "gemv");
    if (status != STATUS_OK)
        return status;
    return launch_early(device, kernel, dim3(device->multiprocessors), dim3(THREADS), bytes, "gemv",
                        *op);
}

#endif
