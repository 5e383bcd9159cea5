/* x W^T by tiles, x [rows, depth] and W [columns, depth], for many rows: what every form shares.
 *
 * Blocks stay and take tile after tile. One warp of the first warpgroup keeps a ring of stages
 * filled by the copy engine, x boxes and two boxes of weights ("halves") 64 deep each; the other
 * warpgroups multiply, 64 rows each, and hand their sums to an epilogue while the ring fills for
 * the next tile. Two blocks of a cluster take the same columns of neighbouring rows: each fetches
 * one half of the weights for both.
 *
 * An element's products are summed in the order of the depth whatever the form, the tile and the
 * place in it, so a row has the same bits in any batch.
 *
 * Shared memory: the ring, the epilogue's bytes, barriers.
 *
 * An epilogue is a struct with
 *   FOLDED: the weight map has five dimensions, and a half is at (depth, 0, y, 0, 0);
 *   AHEAD: a warp runs ahead(place, bytes) for each tile, beside the products;
 *   store(sums, place, group, bytes), called by each consumer warp with its fragment (wgmma.cuh).
 */
#ifndef JETD_KERNELS_CUDA_GEMM_TILE_CUH
#define JETD_KERNELS_CUDA_GEMM_TILE_CUH

#include "kernels/cuda/device.h"
#include "kernels/cuda/tensor.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

enum { TILE_DEPTH = 64, TILE_GROUP = 128, TILE_GROUPED = 8 /* tiles down before one across */ };

template <int GROUPS_, int COLUMNS_, int CLUSTER_>
struct tile_form {
    enum {
        GROUPS = GROUPS_, /* consumer warpgroups */
        ROWS = GROUPS * 64,
        COLUMNS = COLUMNS_,
        CLUSTER = CLUSTER_,
        THREADS = TILE_GROUP + GROUPS * TILE_GROUP,
        X_BYTES = ROWS * TILE_DEPTH * 2,
        HALF_BYTES = COLUMNS / 2 * TILE_DEPTH * 2,
        STAGE = X_BYTES + 2 * HALF_BYTES,
        STAGES = (192 << 10) / STAGE,
        EXTRA = STAGES * STAGE,
        EXTRA_BYTES = 32 << 10,
        BARRIERS = EXTRA + EXTRA_BYTES,
        SHARED = BARRIERS + 2 * STAGES * 8 + 2 * 8
    };
};

struct tile_maps {
    CUtensorMap x, weight;
};

struct tile_problem {
    int steps;                    /* TILE_DEPTH each */
    int row_tiles, column_tiles;  /* a cluster's: CLUSTER * ROWS, COLUMNS */
    int column_apart, half_apart; /* of tiles and of halves, on the weight map's y */
    int x_bytes;                  /* of an x box, which may be shorter than ROWS */
};

/* Which tile: its first row and its column's number. */
struct tile_place {
    int row, column;
};

struct ring_place {
    int stage, parity;
};

template <class Form>
__device__ static inline void ring_next(struct ring_place *place)
{
    place->stage++;
    if (place->stage == Form::STAGES) {
        place->stage = 0;
        place->parity ^= 1;
    }
}

template <class Form>
__device__ static inline uint32_t ring_full(uint32_t shared, int stage)
{
    return shared + Form::BARRIERS + stage * 8;
}

template <class Form>
__device__ static inline uint32_t ring_empty(uint32_t shared, int stage)
{
    return shared + Form::BARRIERS + (Form::STAGES + stage) * 8;
}

/* Of what ahead() leaves for store(). */
template <class Form>
__device__ static inline uint32_t ahead_full(uint32_t shared)
{
    return shared + Form::BARRIERS + 2 * Form::STAGES * 8;
}

template <class Form>
__device__ static inline uint32_t ahead_empty(uint32_t shared)
{
    return ahead_full<Form>(shared) + 8;
}

/* Tiles at work at once form a patch, so that few rows and few columns serve them all from the
 * cache: TILE_GROUPED tiles of rows, then the next column. */
template <class Form>
__device__ static inline struct tile_place tile_at(const struct tile_problem &problem, int tile,
                                                   int rank)
{
    int first = tile / (TILE_GROUPED * problem.column_tiles) * TILE_GROUPED;
    int within = tile - first * problem.column_tiles;
    int height = min((int)TILE_GROUPED, problem.row_tiles - first);
    struct tile_place place;
    place.column = within / height;
    place.row = ((first + within - place.column * height) * Form::CLUSTER + rank) * Form::ROWS;
    return place;
}

/* One thread. */
template <class Form, class Epilogue>
__device__ static inline void tiles_produce(const struct tile_maps *maps,
                                            const struct tile_problem &problem, uint32_t shared,
                                            int rank)
{
    const int bytes = problem.x_bytes + 2 * Form::HALF_BYTES;
    const int clusters = gridDim.x / Form::CLUSTER;
    struct ring_place ring = {0, 0};
    for (int tile = blockIdx.x / Form::CLUSTER; tile < problem.row_tiles * problem.column_tiles;
         tile += clusters) {
        const struct tile_place place = tile_at<Form>(problem, tile, rank);
        const int y = place.column * problem.column_apart;
        for (int step = 0; step < problem.steps; step++) {
            const uint32_t full = ring_full<Form>(shared, ring.stage);
            const uint32_t to = shared + ring.stage * Form::STAGE, weight = to + Form::X_BYTES;
            barrier_wait(ring_empty<Form>(shared, ring.stage), ring.parity ^ 1);
            barrier_expect(full, bytes);
            copy_box(to, &maps->x, step * TILE_DEPTH, place.row, full);
            if constexpr (Epilogue::FOLDED)
                copy_box5_shared(weight + rank * Form::HALF_BYTES, &maps->weight, step * TILE_DEPTH,
                                 y + rank * problem.half_apart, full, 3);
            else if constexpr (Form::CLUSTER == 2)
                copy_box_shared(weight + rank * Form::HALF_BYTES, &maps->weight, step * TILE_DEPTH,
                                y + rank * problem.half_apart, full, 3);
            else
                for (int half = 0; half < 2; half++)
                    copy_box(weight + half * Form::HALF_BYTES, &maps->weight, step * TILE_DEPTH,
                             y + half * problem.half_apart, full);
            ring_next<Form>(&ring);
        }
    }
}

/* One warp. */
template <class Form, class Epilogue>
__device__ static inline void tiles_go_ahead(const struct tile_problem &problem,
                                             const Epilogue &epilogue, unsigned char *memory,
                                             int rank)
{
    const uint32_t shared = shared_address(memory);
    const int clusters = gridDim.x / Form::CLUSTER;
    int parity = 1;
    for (int tile = blockIdx.x / Form::CLUSTER; tile < problem.row_tiles * problem.column_tiles;
         tile += clusters, parity ^= 1) {
        barrier_wait(ahead_empty<Form>(shared), parity);
        epilogue.ahead(tile_at<Form>(problem, tile, rank), memory + Form::EXTRA,
                       ahead_full<Form>(shared));
    }
}

/* The stage is read: both blocks of a cluster may write into it, so both are told. */
template <class Form>
__device__ static inline void ring_release(uint32_t shared, int stage)
{
    const int lane = threadIdx.x % 32;
    if (Form::CLUSTER == 1 && lane == 0)
        barrier_arrive(ring_empty<Form>(shared, stage));
    if (Form::CLUSTER > 1 && lane < Form::CLUSTER)
        barrier_arrive_at(ring_empty<Form>(shared, stage), lane);
}

/* A warpgroup's sums of one tile. */
template <class Form>
__device__ static inline void tile_multiply(float (&sums)[Form::COLUMNS / 2], int steps, int group,
                                            uint32_t shared, struct ring_place *ring)
{
    int before = 0;
    for (int step = 0; step < steps; step++) {
        const uint32_t at = shared + ring->stage * Form::STAGE;
        const uint64_t x = tile_descriptor(at + group * 64 * TILE_DEPTH * 2);
        const uint64_t weight = tile_descriptor(at + Form::X_BYTES);
        barrier_wait(ring_full<Form>(shared, ring->stage), ring->parity);
        group_fence();
#pragma unroll
        for (int k = 0; k < TILE_DEPTH / 16; k++)
            group_mma_shared(sums, x + 2 * k, weight + 2 * k, step + k > 0);
        group_commit();
        group_wait<1>();
        if (step > 0)
            ring_release<Form>(shared, before);
        before = ring->stage;
        ring_next<Form>(ring);
    }
    group_wait<0>();
    group_settle(sums);
    ring_release<Form>(shared, before);
}

template <class Form, class Epilogue>
__device__ static inline void tiles_consume(const struct tile_problem &problem,
                                            const Epilogue &epilogue, unsigned char *memory,
                                            int group, int rank)
{
    const uint32_t shared = shared_address(memory);
    const int clusters = gridDim.x / Form::CLUSTER;
    struct ring_place ring = {0, 0};
    int parity = 0;
    for (int tile = blockIdx.x / Form::CLUSTER; tile < problem.row_tiles * problem.column_tiles;
         tile += clusters, parity ^= 1) {
        float sums[Form::COLUMNS / 2];
        tile_multiply<Form>(sums, problem.steps, group, shared, &ring);
        if (Epilogue::AHEAD)
            barrier_wait(ahead_full<Form>(shared), parity);
        epilogue.store(sums, tile_at<Form>(problem, tile, rank), group, memory + Form::EXTRA);
        if (Epilogue::AHEAD) {
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                barrier_arrive(ahead_empty<Form>(shared));
        }
    }
}

template <class Form, class Epilogue>
__global__ __launch_bounds__(Form::THREADS, 1) static void gemm_tile_kernel(
    const __grid_constant__ struct tile_maps maps, struct tile_problem problem,
    const __grid_constant__ Epilogue epilogue)
{
    enum { CONSUMER_WARPS = Form::GROUPS * 4 };
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const uint32_t shared = shared_address(shared_bytes);
    const int rank = Form::CLUSTER > 1 ? cluster_rank() : 0;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Form::STAGES; i++) {
            barrier_init(ring_full<Form>(shared, i), 1);
            barrier_init(ring_empty<Form>(shared, i), CONSUMER_WARPS * Form::CLUSTER);
        }
        barrier_init(ahead_full<Form>(shared), 1);
        barrier_init(ahead_empty<Form>(shared), CONSUMER_WARPS);
        barrier_init_done();
    }
    if (Form::CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    if (warp < 4) {
        if (Form::GROUPS == 2)
            registers_release<40>();
        if (threadIdx.x == 0)
            tiles_produce<Form, Epilogue>(&maps, problem, shared, rank);
        if constexpr (Epilogue::AHEAD)
            if (warp == 1)
                tiles_go_ahead<Form>(problem, epilogue, shared_bytes, rank);
    } else {
        if (Form::GROUPS == 2)
            registers_claim<232>();
        tiles_consume<Form>(problem, epilogue, shared_bytes, warp / 4 - 1, rank);
    }
    __syncwarp();
    if (Form::CLUSTER > 1)
        cluster_sync(); /* the other block writes here until its own end */
}

/* ---- epilogues' common part: a warp's rows as bf16 ------------------------------------------- */

/* Sixteen rows of WIDTH columns in a warp's share of shared memory, its 16-byte pieces
 * turned by the row, then to memory in whole pieces, PER rows at once. `pairs`: of fragment column
 * block j, rows lane/4 and + 8. */
template <int WIDTH, typename Pairs>
__device__ static inline void rows_store(unsigned char *place, bf16 *out, int64_t ld, int rows,
                                         int columns, Pairs pairs)
{
    enum { PIECES = WIDTH / 8, TURN = PIECES < 8 ? PIECES - 1 : 7, PER = 32 / PIECES };
    const int lane = threadIdx.x % 32;
    auto piece_at = [&](int row, int piece) {
        return place + row * WIDTH * 2 + ((piece & ~TURN) | ((piece ^ row) & TURN)) * 16;
    };
    __syncwarp();
#pragma unroll
    for (int j = 0; j < PIECES; j += 2) {
        uint32_t four[4];
        pairs(j, four);
        pairs(j + 1, four + 2);
        store_matrices(shared_address(piece_at(lane % 16, j + lane / 16)), four);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 / PER; i++) {
        int row = i * PER + lane / PIECES, piece = lane % PIECES;
        if (row < rows && piece * 8 < columns)
            *(uint4 *)(out + row * ld + piece * 8) = *(const uint4 *)piece_at(row, piece);
    }
}

/* ---- launch ---------------------------------------------------------------------------------- */

template <class Form, class Epilogue>
static enum status tiles_launch(struct device *device, const struct tile_maps &maps,
                                const struct tile_problem &problem, const Epilogue &epilogue,
                                const char *what)
{
    auto *kernel = gemm_tile_kernel<Form, Epilogue>;
    enum status status = shared_raise(kernel, Form::SHARED, what);
    if (status != STATUS_OK)
        return status;
    int64_t blocks = (int64_t)problem.row_tiles * problem.column_tiles * Form::CLUSTER;
    int most = device->multiprocessors / Form::CLUSTER * Form::CLUSTER;
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = Form::CLUSTER;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(blocks < most ? (unsigned)blocks : (unsigned)most);
    config.blockDim = dim3(Form::THREADS);
    config.dynamicSmemBytes = Form::SHARED;
    config.stream = device->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return device_check(cudaLaunchKernelEx(&config, kernel, maps, problem, epilogue), what);
}

#endif
