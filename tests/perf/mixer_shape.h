/* The jet mixer of a published shape, d_v 256 and four taps, without its memory: where the columns
 * of its merged projection lie. */
#ifndef JETD_TESTS_PERF_MIXER_SHAPE_H
#define JETD_TESTS_PERF_MIXER_SHAPE_H

#include "kernels/kernels.h"

enum { MIXER_D_V = 256, MIXER_TAPS = 4 };

static inline struct jet_mixer_op mixer_shape(int heads, int d_k, int generator)
{
    const int keys = heads * d_k, values = heads * MIXER_D_V;
    struct jet_mixer_op op = {.heads = heads,
                              .d_k = d_k,
                              .d_v = MIXER_D_V,
                              .taps = MIXER_TAPS,
                              .generator = generator,
                              .head_epsilon = 1e-6f,
                              .norm_epsilon = 1e-5f,
                              .k_at = keys,
                              .v_at = 2 * keys,
                              .gate_at = 2 * keys + values,
                              .w1_at = 2 * keys + 2 * values,
                              .a_at = 2 * keys + 2 * values + generator,
                              .b_at = 2 * keys + 2 * values + generator + heads};
    op.ld_projected = (op.b_at + heads + 7) / 8 * 8;
    return op;
}

#endif
