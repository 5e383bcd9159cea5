/* The forms of the jet mixer; mixer.cu chooses. */
#ifndef JETD_KERNELS_CUDA_MIXER_H
#define JETD_KERNELS_CUDA_MIXER_H

#include "kernels/cuda/device.h"

/* The generator's product of all the batch's tokens, x its input after silu; both in scratch. */
struct gemm_op mixer_generator_product(const struct jet_mixer_op *op);
/* The most rows that it has in any step of up to so many tokens. */
int mixer_generator_rows(const struct device *device, const struct jet_mixer_op *op);

/* d_k 96 or 128, d_v in slabs of 64, four taps. */
bool mixer_step_fits(const struct jet_mixer_op *op);
/* The batch's leading sequences of one token; kernels: [decodes, heads * d_v, taps] generated. */
enum status mixer_step(struct device *device, const struct jet_mixer_op *op, const void *kernels);

/* d_k up to 128 in whole vectors of eight. */
bool mixer_inputs_fits(const struct jet_mixer_op *op);
/* Of the tokens from `first` on; rows of the whole step's arrays. */
enum status mixer_inputs(struct device *device, const struct jet_mixer_op *op, int first, void *q,
                         void *k);

/* Whether mixer_step takes mixer_head's form. */
bool mixer_step_heads(const struct jet_mixer_op *op, int multiprocessors, bool invariant);
/* mixer_step's form of a block a head: d_v 256. */
enum status mixer_head(struct device *device, const struct jet_mixer_op *op, const void *kernels);

#endif
