/* What the kernels of the chunked delta rule share: the chunk's size, what prepare leaves, and the
 * segments that long sequences are cut into. */
#ifndef JETD_KERNELS_CUDA_DELTA_CHUNK_CUH
#define JETD_KERNELS_CUDA_DELTA_CHUNK_CUH

#include "kernels/cuda/delta.h"
#include "kernels/cuda/tensor.cuh"
#include "kernels/cuda/tensor_map.h"

enum { CHUNK = 64, SLAB = 64, THREADS = 128, MATRIX = CHUNK * CHUNK };
enum { TILE = MATRIX * 2 }; /* bytes of [64, 64] bf16 */

/* What prepare leaves for the chain; chunk c of sequence s has row starts[s] / 64 + s + c. */
struct prepared {
    bf16 *matrices; /* [rows, heads, 2, 64, 64] T and P, as wgmma reads them (wgmma.cuh) */
    float *decay;   /* [rows, heads, 64] G / ln 2 */
};

__device__ static inline int64_t prepared_row(const struct ragged &batch, int sequence, int chunk)
{
    return batch.starts[sequence] / CHUNK + sequence + chunk;
}

/* Sequences cut every `chunks` chunks; a sequence that is no longer is whole and has no row.
 * Segment i of sequence s has row starts[s] / (64 chunks) + s + i, counted from sequence `from`. */
struct segments {
    int from;        /* the first sequence */
    int chunks;      /* of a segment */
    int count;       /* the most segments that a sequence has */
    float *entering; /* [rows, heads, d_k, d_v] the state before the segment */
    float *across;   /* [rows, heads, d_k, d_k] A: state after = A state before + B */
};

__device__ static inline int64_t segment_row(const struct segments &cut, const struct ragged &batch,
                                             int sequence, int segment)
{
    int tokens = batch.starts[sequence] - batch.starts[cut.from];
    return tokens / (CHUNK * cut.chunks) + sequence - cut.from + segment;
}

__device__ static inline int sequence_chunks(const struct ragged &batch, int sequence)
{
    return (batch.starts[sequence + 1] - batch.starts[sequence] + CHUNK - 1) / CHUNK;
}

/* Boxes of [64, 64] of what the kernels read. */
struct chain_maps {
    CUtensorMap keys, queries, values;
};

enum status delta_prepare(struct device *device, const struct delta_op *op,
                          const struct chain_maps *maps, const struct prepared *out, int from);
/* The states before each segment but a sequence's first; nothing to do when cut->count is 1. */
enum status delta_states(struct device *device, const struct delta_op *op,
                         const struct chain_maps *maps, const struct prepared *prepared,
                         const struct segments *cut);
/* Outputs and last states. */
enum status delta_scan(struct device *device, const struct delta_op *op,
                       const struct chain_maps *maps, const struct prepared *prepared,
                       const struct segments *cut);

#endif
