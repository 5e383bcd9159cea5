/* Products of many rows by our own tiles (gemm_tile.cuh). */
#ifndef JETD_KERNELS_CUDA_GEMM_TILE_H
#define JETD_KERNELS_CUDA_GEMM_TILE_H

#include "kernels/cuda/device.h"

/* The plain product. A row has the same bits in any batch; what fits does not depend on the rows
 * or on the columns, so a column has the same bits in any shard too. */
bool gemm_tile_fits(const struct gemm_op *op);
enum status gemm_tile(struct device *device, const struct gemm_op *op);

#endif
