/* What every line of kernels_bench stands on: memory, batches, time. After the first failure
 * everything is skipped. */
#ifndef JETD_TESTS_PERF_KERNELS_BENCH_CASE_H
#define JETD_TESTS_PERF_KERNELS_BENCH_CASE_H

#include "tests/perf/kernels_bench.h"

enum { BENCH_KEPT_MAX = 64, BENCH_NOISE = 32 << 20 };

struct bench {
    const struct kernels_bench *options;
    const struct backend *backend;
    struct device *device;
    double copy_rate, product_rate; /* GB/s, TFLOP/s: the ceilings */
    unsigned char *noise;           /* host, BENCH_NOISE bytes of bf16 normals */
    void *kept[BENCH_KEPT_MAX];
    int kept_count;
    void *host;         /* the batch's arrays */
    enum status status; /* the first failure */
};

void bench_must(struct bench *b, enum status status);

/* Device memory until bench_sweep(). */
void bench_noise_fill(unsigned char *noise);
void *bench_zeros(struct bench *b, size_t bytes);
void *bench_noise(struct bench *b, size_t bytes); /* bf16 */
void *bench_uploaded(struct bench *b, const void *from, size_t bytes);
float *bench_constant(struct bench *b, size_t count, float value);
void bench_sweep(struct bench *b);

/* `sequences` of `fresh` new tokens after `context`, slots in order. */
struct ragged bench_batch(struct bench *b, int sequences, int fresh, int context);

/* turn: which of the calls of a round. */
typedef enum status (*entry_call)(const struct bench *b, const void *op, int turn);
/* Seconds a call: median of rounds, each of `calls` calls, recorded and replayed if asked. */
double bench_time(struct bench *b, entry_call call, const void *op, int calls, bool recorded);

bool bench_wanted(const struct bench *b, const char *name);
/* One line: the larger of the two shares is what binds. */
void bench_report(struct bench *b, const char *name, double seconds, double bytes, double flops);

/* kernels_bench_dense.c: the ceilings, products, rows. */
void bench_copy(struct bench *b);
double bench_gemm(struct bench *b, const char *name, int rows, int columns, int depth);
void bench_products(struct bench *b);
void bench_gate_up(struct bench *b, const char *name, int rows, int columns, int depth);
void bench_rows(struct bench *b, int rows);

/* kernels_bench_mixers.c: attention and the jet block. Paged when window is 0, else rings. */
void bench_attention(struct bench *b, const char *name, int sequences, int fresh, int context,
                     int heads, int window);
/* `decay`: of a token, on average; a segment whose decays leave nothing takes less work. */
void bench_delta(struct bench *b, const char *name, int sequences, int fresh, int heads, int d_k,
                 double decay);
void bench_mixer(struct bench *b, const char *name, int sequences, int fresh, int heads, int d_k,
                 int generator);

#endif
