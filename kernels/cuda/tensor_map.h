/* Maps that tell the copy engine where a matrix lies. */
#ifndef JETD_KERNELS_CUDA_TENSOR_MAP_H
#define JETD_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>

#include "kernels/cuda/device.h"

/* A bf16 matrix [rows, columns] with `pitch` elements from row to row; rows < 0: however many. A
 * box is [box_rows, 64], arrives as wgmma reads it (128-byte swizzle), zeros outside the matrix. */
enum status tensor_map_rows(CUtensorMap *map, const void *data, int64_t rows, int columns,
                            int64_t pitch, int box_rows);

/* bf16 of up to five dimensions, the contiguous one first. */
struct tensor_shape {
    int rank;
    cuuint64_t extents[5];
    cuuint64_t pitches[4]; /* bytes from one to the next in dimensions 1 .. rank - 1 */
    cuuint32_t box[5];
    bool swizzled; /* as wgmma reads it: box[0] is 64; else boxes are packed */
};
enum status tensor_map_make(CUtensorMap *map, const void *data, const struct tensor_shape *shape);

#endif
