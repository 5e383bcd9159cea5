/* How gemm_stream.cu cuts a product, and how its ring is filled. */
#ifndef JETD_KERNELS_CUDA_GEMM_STREAM_CUH
#define JETD_KERNELS_CUDA_GEMM_STREAM_CUH

#include <cooperative_groups.h>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace cg = cooperative_groups;

/* A stage is DEEP chunks of the depth. */
enum { CHUNK = 64, DEEP = 2, LINE = CHUNK * 2, STAGES_MAX = 16 };
enum { GROUP = 128, GROUPS_MAX = 3, TILE_MAX = GROUPS_MAX * 64 };
/* Bytes of shared memory: of the barriers; in all, where two blocks share a multiprocessor, and
 * where one has it for itself. */
enum { HEAD = 1024, SHARED_HALF = 112 << 10, SHARED_WHOLE = 224 << 10 };

/* What is multiplied: a product, or a gated MLP's first half, whose weights are two matrices of
 * `columns`, gates and ups, of which a tile holds the same columns. */
struct stream_shape {
    int halves;      /* matrices */
    int tile, turns; /* columns of a tile, an even number; tiles a block, one after another */
    int splits;      /* blocks of a cluster, which share a tile by depth */
    int steps;       /* stages of the whole depth */
    int half_rows;   /* from a column's gate to its up in a tile: whole swizzles */
    int tile_bytes;  /* of a chunk's weights */
    int chunk_bytes; /* of a chunk's weights and x */
    int copied;      /* bytes of a stage that the copies count */
    int groups;      /* warpgroups that multiply */
    int clusters, stages, shared;
};

/* The choice: forms 0 .. STREAM_FORMS - 1 differ in clusters and shared memory. False: the form has
 * nothing for this product. */
bool stream_shape_of(int multiprocessors, const struct gemm_op *op, int halves, int form,
                     struct stream_shape *shape);
/* The rows that the product is computed with: a template's N. */
int stream_rows(int rows);

struct stream_maps {
    CUtensorMap weight, x;
};

/* ---- the walk: what a block multiplies, stage by stage ------------------------------------- */

struct walk {
    int stage, phase;  /* of the ring */
    int at;            /* stage of the depth */
    int begin, end;    /* the block's stages of the depth */
    int column, turns; /* the tile's first column; tiles left, this one too */
};

__device__ static inline struct walk walk_begin(const struct stream_shape &shape, int split)
{
    int begin = shape.steps * split / shape.splits;
    return {0,
            0,
            begin,
            begin,
            shape.steps * (split + 1) / shape.splits,
            (int)blockIdx.x / shape.splits * shape.tile,
            shape.turns};
}

/* False: that was the last stage. */
__device__ static inline bool walk_next(struct walk *walk, const struct stream_shape &shape)
{
    if (++walk->stage == shape.stages) {
        walk->stage = 0;
        walk->phase ^= 1;
    }
    if (++walk->at == walk->end) {
        walk->at = walk->begin;
        walk->column += shape.clusters * shape.tile;
        walk->turns--;
    }
    return walk->turns > 0;
}

struct barriers {
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
};

/* ---- filling ------------------------------------------------------------------------------- */

struct filler {
    const struct stream_maps &maps;
    const struct stream_shape &shape;
    struct barriers *barriers;
    uint32_t ring;
    int split, columns;
    uint64_t policy;
};

__device__ static inline void fill_weights(const struct filler &f, const struct walk &walk)
{
    uint32_t barrier = shared_address(&f.barriers->full[walk.stage]);
    uint32_t to = f.ring + walk.stage * DEEP * f.shape.chunk_bytes;
    barrier_expect(barrier, f.shape.copied);
#pragma unroll
    for (int c = 0; c < DEEP; c++) {
        int at = (walk.at * DEEP + c) * CHUNK;
        copy_box_once(to + c * f.shape.chunk_bytes, &f.maps.weight, at, walk.column, barrier,
                      f.policy);
        if (f.shape.halves > 1)
            copy_box_once(to + c * f.shape.chunk_bytes + f.shape.half_rows * LINE, &f.maps.weight,
                          at, walk.column + f.columns, barrier, f.policy);
    }
}

__device__ static inline void fill_x(const struct filler &f, const struct walk &walk)
{
    uint32_t barrier = shared_address(&f.barriers->full[walk.stage]);
    uint32_t to = f.ring + walk.stage * DEEP * f.shape.chunk_bytes + f.shape.tile_bytes;
#pragma unroll
    for (int c = 0; c < DEEP; c++)
        copy_box(to + c * f.shape.chunk_bytes, &f.maps.x, (walk.at * DEEP + c) * CHUNK, 0, barrier);
}

/* One thread. What the ring takes of the weights does not wait for the kernels before; x does. */
__device__ static inline void fill(const struct filler &f)
{
    struct walk early = walk_begin(f.shape, f.split), walk = early;
    bool more = true, another = true;
    for (int i = 0; i < f.shape.stages && more; i++) {
        fill_weights(f, walk);
        more = walk_next(&walk, f.shape);
    }
    launch_wait();
    for (int i = 0; i < f.shape.stages && another; i++) {
        fill_x(f, early);
        another = walk_next(&early, f.shape);
    }
    for (; more; more = walk_next(&walk, f.shape)) {
        barrier_wait(shared_address(&f.barriers->empty[walk.stage]), walk.phase ^ 1);
        fill_weights(f, walk);
        fill_x(f, walk);
    }
}

#endif
