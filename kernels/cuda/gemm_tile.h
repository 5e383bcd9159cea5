/* Products of many rows by our own tiles (gemm_tile.cuh), and what they are fused with. */
#ifndef JETD_KERNELS_CUDA_GEMM_TILE_H
#define JETD_KERNELS_CUDA_GEMM_TILE_H

#include "kernels/cuda/device.h"

/* The plain product. A row has the same bits in any batch; what fits does not depend on the rows
 * or on the columns, so a column has the same bits in any shard too. */
bool gemm_tile_fits(const struct gemm_op *op);
enum status gemm_tile(struct device *device, const struct gemm_op *op);

/* gate_up at once; scratch is not used. */
bool gate_up_tile_fits(const struct gate_up_op *op);
enum status gate_up_tile(struct device *device, const struct gate_up_op *op);

/* The jet mixer's generator product and the convolution with it, of the tokens from `first` on,
 * which begin a sequence. The carried rows stay as they are. */
bool convolution_tile_fits(const struct jet_mixer_op *op);
/* generated: [tokens, generator] of the whole step; out: [tokens, heads * d_v] likewise. */
enum status convolution_tile(struct device *device, const struct jet_mixer_op *op, int first,
                             const void *generated, void *out);

#endif
