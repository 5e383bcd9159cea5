/* Products of 17 to 128 rows as one stream of weights: out^T = W x^T, the weights as wgmma's M
 * operand and the rows of x as N. Every multiprocessor owns an equal share of the weights, whatever
 * its size in tiles of 64: a tile has as many columns of the product as make the shares equal (the
 * copy engine takes boxes of any height; what wgmma reads beyond a tile lands in results that
 * nobody stores).
 *
 * A ring of stages in shared memory, each two chunks of 64 of the depth: the tile's weights
 * [tile, 64], then x's rows [rows, 64]. One thread keeps it full; before the kernel ahead has ended
 * it fills it with weights, after that with x. A group of four warps holds 64 columns of the tile.
 *
 * Narrow weights: the blocks of a cluster share a tile by depth (`splits`) and add up in a fixed
 * order through each other's shared memory. */
#include "kernels/cuda/gemm_stream.cuh"
#include "kernels/cuda/tensor.cuh"

enum { UPS = TILE_MAX / 2 + 4 }; /* from row to row: no two lanes' banks meet */

/* ---- storing ------------------------------------------------------------------------------- */

/* A warp's part of the product: 16 columns from `column` on, 8 rows from `row` on, as wgmma leaves
 * them. Columns from `end` on, an even number, are not ours. */
__device__ static inline void part_store(const struct gemm_op &op, int column, int end, int row,
                                         float4 part)
{
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    float values[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int c = column + group + e / 2 * 8, r = row + quad * 2 + e % 2;
        if (op.bias != NULL && c < end)
            values[e] += op.bias[c];
        if (op.float_out && c < end && r < op.rows)
            ((float *)op.out)[(int64_t)r * op.ld_out + c] = values[e];
    }
    if (op.float_out)
        return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        /* Turned, a lane has two columns of one row. */
        uint32_t pair = transpose8(pack_bf16(values[2 * half], values[2 * half + 1]));
        int c = column + half * 8 + quad * 2, r = row + group;
        if (c < end && r < op.rows)
            *(uint32_t *)((bf16 *)op.out + (int64_t)r * op.ld_out + c) = pair;
    }
}

__device__ static inline float4 part_of(const float *sums, int j)
{
    return make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
}

template <int N>
__device__ static inline void tile_store(const struct gemm_op &op, int column, int end,
                                         const float (&sums)[N / 2])
{
#pragma unroll
    for (int j = 0; j < N / 8; j++)
        if (j * 8 < op.rows)
            part_store(op, column, end, j * 8, part_of(sums, j));
}

/* The cluster's blocks add up: each leaves its sums where the ring was and stores the rows that
 * fall to it, eight at a time, adding in the order of the depth. */
template <int N>
__device__ static inline void tile_reduce(const struct gemm_op &op, int column, int end,
                                          const float (&sums)[N / 2], float4 *parts, int threads)
{
    cg::cluster_group cluster = cg::this_cluster();
    const int splits = (int)cluster.num_blocks();
    threads_sync(1, threads); /* nobody reads the ring any more */
#pragma unroll
    for (int j = 0; j < N / 8; j++)
        parts[j * threads + threadIdx.x] = part_of(sums, j);
    cluster.sync();
    for (int j = (int)cluster.block_rank(); j * 8 < op.rows; j += splits) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
        for (int split = 0; split < splits; split++) {
            float4 part = cluster.map_shared_rank(parts, split)[j * threads + threadIdx.x];
            sum.x += part.x;
            sum.y += part.y;
            sum.z += part.z;
            sum.w += part.w;
        }
        part_store(op, column, end, j * 8, sum);
    }
}

/* The gated half of an MLP: ups pass through where the ring was, [row][column]. */
template <int N>
__device__ static inline void tile_gate(const struct gemm_op &op, const struct stream_shape &shape,
                                        int column, float (&sums)[N / 2], float *ups)
{
    const int lane = threadIdx.x % 32, place = threadIdx.x / 32 * 16 + lane / 4;
    const int threads = shape.groups * GROUP;
    auto up_of = [&](int i, int first) {
        return &ups[(i / 4 * 8 + lane % 4 * 2 + i % 2) * UPS + first + i % 4 / 2 * 8];
    };
    threads_sync(1, threads); /* nobody reads the ring any more */
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const int up = place + i % 4 / 2 * 8 - shape.half_rows;
        if (up >= 0 && up < shape.tile)
            *up_of(i, place - shape.half_rows) = sums[i];
    }
    threads_sync(1, threads);
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        if (place + i % 4 / 2 * 8 < shape.tile)
            sums[i] = silu_of(sums[i]) * *up_of(i, place);
    int end = column + shape.tile;
    tile_store<N>(op, column + threadIdx.x / 32 * 16, end < op.columns ? end : op.columns, sums);
}

/* ---- the kernel ---------------------------------------------------------------------------- */

template <int N>
__device__ static inline void stage_multiply(float (&sums)[N / 2], uint32_t weights, uint32_t x,
                                             int chunk_bytes, bool first)
{
    group_fence();
#pragma unroll
    for (int k = 0; k < DEEP * CHUNK / 16; k++) {
        const int at = k / (CHUNK / 16) * chunk_bytes + k % (CHUNK / 16) * 32;
        group_mma_shared(sums, tile_descriptor(weights + at), tile_descriptor(x + at),
                         k > 0 || !first);
    }
    group_commit();
    group_wait<0>();
    group_settle(sums);
}

template <int N, bool GATED>
__device__ static inline void multiply(const struct gemm_op &op, const struct stream_shape &shape,
                                       struct barriers *barriers, unsigned char *ring, int split)
{
    const int group = threadIdx.x / GROUP, warp = threadIdx.x / 32;
    struct walk walk = walk_begin(shape, split);
    float sums[N / 2];
    for (bool more = true; more;) {
        uint32_t at = shared_address(ring) + walk.stage * DEEP * shape.chunk_bytes;
        barrier_wait(shared_address(&barriers->full[walk.stage]), walk.phase);
        stage_multiply<N>(sums, at + group * 64 * LINE, at + shape.tile_bytes, shape.chunk_bytes,
                          walk.at == walk.begin);
        if (threadIdx.x % 32 == 0)
            barrier_arrive(shared_address(&barriers->empty[walk.stage]));
        const int column = walk.column;
        more = walk_next(&walk, shape);
        if (walk.at != walk.begin)
            continue;
        int end = column + shape.tile < op.columns ? column + shape.tile : op.columns;
        if (GATED)
            tile_gate<N>(op, shape, column, sums, (float *)ring);
        else if (shape.splits > 1)
            tile_reduce<N>(op, column + warp * 16, end, sums, (float4 *)ring, shape.groups * GROUP);
        else
            tile_store<N>(op, column + warp * 16, end, sums);
    }
}

/* Two blocks of products of at most 64 rows fit a multiprocessor. */
template <int N, bool GATED>
__global__ __launch_bounds__(GROUPS_MAX *GROUP + 32, N <= 64 ? 2 : 1) static void stream_kernel(
    const __grid_constant__ struct stream_maps maps, const struct gemm_op op,
    const struct stream_shape shape)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    struct barriers *barriers = (struct barriers *)shared;
    unsigned char *ring = shared + HEAD;
    const bool clustered = shape.splits > 1;
    const int split = clustered ? (int)cg::this_cluster().block_rank() : 0;
    const int fills = shape.groups * GROUP / 32, warp = threadIdx.x / 32;
    launch_next();
    if (threadIdx.x == 0) {
        for (int i = 0; i < shape.stages; i++) {
            barrier_init(shared_address(&barriers->full[i]), 1);
            barrier_init(shared_address(&barriers->empty[i]), fills);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (warp == fills) {
        if (threadIdx.x % 32 == 0)
            fill({maps, shape, barriers, shared_address(ring), split, op.columns,
                  policy_evict_first()});
        __syncwarp();
        if (clustered)
            cg::this_cluster().sync(); /* tile_reduce's */
    } else {
        launch_wait(); /* whoever reads what we write over */
        multiply<N, GATED>(op, shape, barriers, ring, split);
    }
    if (clustered)
        cg::this_cluster().sync(); /* nobody needs this block's shared memory any more */
}

/* ---- the entry ----------------------------------------------------------------------------- */

static bool stream_takes(const struct gemm_op *op)
{
    return op->rows > 16 && op->rows <= 128 && op->depth % 8 == 0 && op->ld_x % 8 == 0 &&
           op->columns % 2 == 0 && op->ld_out % 2 == 0 && aligned16(op->x) &&
           aligned16(op->weight) && aligned16(op->out);
}

bool stream_fits(const struct device *device, const struct gemm_op *op, int form)
{
    struct stream_shape shape;
    return stream_takes(op) && stream_shape_of(device->multiprocessors, op, 1, form, &shape);
}

template <int N, bool GATED>
static enum status stream_launch(struct device *device, const struct gemm_op *op,
                                 const struct stream_maps *maps, const struct stream_shape *shape)
{
    auto kernel = stream_kernel<N, GATED>;
    enum status status = shared_raise(kernel, shape->shared, "gemm stream");
    if (status != STATUS_OK)
        return status;
    return launch_early_clusters(device, kernel, dim3((unsigned)(shape->clusters * shape->splits)),
                                 (unsigned)shape->splits,
                                 dim3((unsigned)(shape->groups * GROUP + 32)), shape->shared,
                                 "gemm stream", *maps, *op, *shape);
}

template <bool GATED>
static enum status stream_start(struct device *device, const struct gemm_op *op, int form)
{
    const int halves = GATED ? 2 : 1;
    struct stream_shape shape;
    struct stream_maps maps;
    if (!stream_shape_of(device->multiprocessors, op, halves, form, &shape))
        return STATUS_INTERNAL;
    enum status status = tensor_map_rows(&maps.weight, op->weight, (int64_t)halves * op->columns,
                                         op->depth, op->depth, shape.tile);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps.x, op->x, op->rows, op->depth, op->ld_x, op->rows);
    if (status != STATUS_OK)
        return status;
    switch (stream_rows(op->rows)) {
    case 32:
        return stream_launch<32, GATED>(device, op, &maps, &shape);
    case 64:
        return stream_launch<64, GATED>(device, op, &maps, &shape);
    case 96:
        return stream_launch<96, GATED>(device, op, &maps, &shape);
    default:
        return stream_launch<128, GATED>(device, op, &maps, &shape);
    }
}

enum status stream_run(struct device *device, const struct gemm_op *op, int form)
{
    return stream_start<false>(device, op, form);
}

/* ---- gate and up --------------------------------------------------------------------------- */

/* Below so many columns a block reads more of x than of the weights. */
enum { GATE_UP_FORM = 1, GATE_UP_TILE_MIN = 32 };

bool stream_gate_up_fits(const struct device *device, const struct gate_up_op *op)
{
    struct gemm_op product = gate_up_product(op);
    struct stream_shape shape;
    return stream_takes(&product) &&
           stream_shape_of(device->multiprocessors, &product, 2, GATE_UP_FORM, &shape) &&
           shape.tile >= GATE_UP_TILE_MIN;
}

enum status stream_gate_up(struct device *device, const struct gate_up_op *op)
{
    struct gemm_op product = gate_up_product(op);
    return stream_start<true>(device, &product, GATE_UP_FORM);
}
