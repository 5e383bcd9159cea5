/* The dynamic convolution of the sequences from `sequence` on. */
#ifndef JETD_KERNELS_CUDA_CONVOLUTION_H
#define JETD_KERNELS_CUDA_CONVOLUTION_H

#include "kernels/cuda/device.h"

/* Sequences before it have one token each (or there are none). `bias` [channels, taps] is added to
 * every token's kernels; NULL: none. */
enum status convolution_from(struct device *device, const struct convolution_op *op,
                             const float *bias, int sequence);
/* Only what it leaves behind: the last taps - 1 inputs of each sequence, into `rows`. */
enum status convolution_carry(struct device *device, const struct convolution_op *op, int sequence);

#endif
