/* The tensors that a model needs, as a list: what the checkpoint must hold, what the dummy makes
 * up, and what the loader asks for by name. Shapes from the architecture (arXiv 2508.15884).
 *
 *     struct weights weights = weights_begin(config);
 *     struct weight weight;
 *     while (weights_next(&weights, &weight)) ... */
#ifndef JETD_PARTITION_WEIGHTS_H
#define JETD_PARTITION_WEIGHTS_H

#include "partition/partition.h"

enum { WEIGHT_NAME_MAX = 96 };

enum weight_kind {
    WEIGHT_MATRIX,
    WEIGHT_NORM,      /* scale of an rms norm, near 1 */
    WEIGHT_BIAS,      /* of q, k, v */
    WEIGHT_TAPS_BIAS, /* of the generator: the convolution's mean kernels */
    WEIGHT_A_LOG,
    WEIGHT_DT_BIAS,
};

struct weight {
    char name[WEIGHT_NAME_MAX];
    enum weight_kind kind;
    int layer; /* -1: none */
    int dims;  /* 1 or 2 */
    uint64_t shape[2];
    bool ignored; /* may be absent, is checked and not used: lm_head.weight of a tied model */
};

struct weights {
    const struct model_config *config;
    int layer, index;
};

struct weights weights_begin(const struct model_config *config);
/* The next one, or false at the end. */
bool weights_next(struct weights *weights, struct weight *weight);

#endif
