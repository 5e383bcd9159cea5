/* Kernel timings of one back end at the shapes of the two published models, each beside the
 * ceiling measured on the same device: copy bandwidth and the matrix-product rate. */
#ifndef JETD_TESTS_PERF_KERNELS_BENCH_H
#define JETD_TESTS_PERF_KERNELS_BENCH_H

#include <stdio.h>

#include "kernels/kernels.h"

/* One shape instead of the published list: `batch` sequences with `tokens` new ones (1: decode)
 * after `context`. tokens x batch <= KERNELS_TOKENS_MAX. */
enum { KERNELS_TOKENS_MAX = 65536 };
struct kernels_shape {
    const char *config; /* "jet-nemotron-2b" or "jet-nemotron-4b" */
    int batch, tokens, context;
};

struct kernels_bench {
    const struct backend *backend;
    const struct kernels_shape *shape; /* NULL: the published list */
    int ordinal;
    bool batch_invariant;
    const char *only; /* a part of the lines' names, or NULL for all */
    bool json;        /* one object a line */
    FILE *out;
};

/* STATUS_CONFIG when the device cannot be opened: `error` says why. */
enum status kernels_bench_run(const struct kernels_bench *options, struct error *error);

#endif
