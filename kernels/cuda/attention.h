/* The forms of attention; attention.cu chooses. */
#ifndef JETD_KERNELS_CUDA_ATTENTION_H
#define JETD_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/device.h"

/* Any shape, tokens [from, to): a block per token and head, on the ordinary cores. */
enum status attention_any(struct device *device, const struct attention_op *op, int from, int to);

/* head_dim 128 and groups of up to 8 heads. */
bool attention_decode_fits(const struct attention_op *op);
/* The batch's leading sequences of one token. */
enum status attention_decode(struct device *device, const struct attention_op *op);
/* Of `splits` parts: partial [decodes, heads, splits, head_dim], their maxima (log2) and masses. */
enum status attention_merge(struct device *device, const struct attention_op *op, int splits,
                            const float *partial, const float2 *partial_mass);
int attention_decode_splits(int pairs, int tiles, int slots, int most);

/* head_dim 128, pages of a multiple of 64 positions or a ring that holds the window. */
bool attention_prefill_fits(const struct attention_op *op);
/* The sequences from `from` on. */
enum status attention_prefill(struct device *device, const struct attention_op *op, int from);

#endif
