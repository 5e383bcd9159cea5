/* The forms of attention; attention.cu chooses. */
#ifndef JETD_KERNELS_CUDA_ATTENTION_H
#define JETD_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/device.h"

/* Any shape, tokens [from, to): a block per token and head, on the ordinary cores. */
enum status attention_any(struct device *device, const struct attention_op *op, int from, int to);

#endif
