/* Kernel timings of one back end at the shapes of the two published models, each beside the
 * ceiling measured on the same device: copy bandwidth and the matrix-product rate. */
#ifndef JETD_TESTS_PERF_KERNELS_BENCH_H
#define JETD_TESTS_PERF_KERNELS_BENCH_H

#include <stdio.h>

#include "kernels/kernels.h"

struct kernels_bench {
    const struct backend *backend;
    int ordinal;
    bool batch_invariant;
    const char *only; /* a part of the lines' names, or NULL for all */
    bool json;        /* one object a line */
    FILE *out;
};

/* STATUS_CONFIG when the device cannot be opened: `error` says why. */
enum status kernels_bench_run(const struct kernels_bench *options, struct error *error);

#endif
