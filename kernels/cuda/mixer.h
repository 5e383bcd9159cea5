/* The forms of the jet mixer; mixer.cu chooses. */
#ifndef JETD_KERNELS_CUDA_MIXER_H
#define JETD_KERNELS_CUDA_MIXER_H

#include "kernels/cuda/device.h"

/* d_k 96 or 128, d_v in slabs of 64, four taps. */
bool mixer_step_fits(const struct jet_mixer_op *op);
/* The batch's leading sequences of one token; kernels: [decodes, heads * d_v, taps] generated. */
enum status mixer_step(struct device *device, const struct jet_mixer_op *op, const void *kernels);

#endif
