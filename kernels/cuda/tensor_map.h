/* Maps that tell the copy engine where a matrix lies. */
#ifndef JETD_KERNELS_CUDA_TENSOR_MAP_H
#define JETD_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>

#include "kernels/cuda/device.h"

/* bf16 rows of `columns` elements, packed from `data` on, however many; a box is [box_rows, 64]
 * and arrives as wgmma reads it (128-byte swizzle). */
enum status tensor_map_rows(CUtensorMap *map, void *data, int columns, int box_rows);

#endif
