/* The forms of the gated delta rule; delta.cu chooses. */
#ifndef JETD_KERNELS_CUDA_DELTA_H
#define JETD_KERNELS_CUDA_DELTA_H

#include "kernels/cuda/device.h"

/* Any shape, sequences [from, to): the recurrence, token by token, state in shared memory. */
enum status delta_any(struct device *device, const struct delta_op *op, int from, int to);

/* The fastest form for the sequences from `sequence` on. */
enum status delta_from(struct device *device, const struct delta_op *op, int sequence);

/* In chunks on tensor cores: d_k 96 or 128, d_v in slabs of 64, scratch for the whole step. */
bool delta_chunk_fits(const struct device *device, const struct delta_op *op);
enum status delta_chunk(struct device *device, const struct delta_op *op, int from);

#endif
