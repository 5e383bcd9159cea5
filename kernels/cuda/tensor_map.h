/* Maps that tell the copy engine where a matrix lies. */
#ifndef JETD_KERNELS_CUDA_TENSOR_MAP_H
#define JETD_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>

#include "kernels/cuda/device.h"

/* A bf16 matrix [rows, columns] with `pitch` elements from row to row; rows < 0: however many. A
 * box is [box_rows, 64], arrives as wgmma reads it (128-byte swizzle), zeros outside the matrix. */
enum status tensor_map_rows(CUtensorMap *map, const void *data, int64_t rows, int columns,
                            int64_t pitch, int box_rows);

#endif
