/* jetbench's parts. Each takes its own arguments, argv[0 .. own), and jetd's behind "--". */
#ifndef JETD_PERF_BENCH_H
#define JETD_PERF_BENCH_H

#include "kernels/kernels.h"

int bench_serve(int argc, char **argv, int own);
int bench_decode(int argc, char **argv, int own);
int bench_prefill(int argc, char **argv, int own);
int bench_kernels(int argc, char **argv, int own);

/* What the device can do, measured: the shares that lines state are of these. */
struct ceilings {
    double copy; /* bytes read and written a second, device to device */
    double gemm; /* operations a second of a large product of random numbers */
};

enum status ceilings_measure(const struct backend *backend, struct device *device,
                             struct ceilings *ceilings);

#endif
