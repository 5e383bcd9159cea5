/* kernel_dense: times dense products, norms and sampling at the models' shapes, replayed from a
 * recording, over weights that no cache holds. kernel_dense [dense|sample|rows] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "kernels/kernels.h"

enum { VOCABULARY = 151936, ROWS_MAX = 256, REPEATS = 24, REPLAYS = 4 };
static const size_t POOL = (size_t)3 << 30; /* bytes of weights to walk through */

struct bench {
    const struct backend *backend;
    struct device *device;
    unsigned char *pool, *x, *out;
    size_t at; /* next weight */
};

static void must(enum status status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernel_dense: %s\n", status_name(status));
    exit(1);
}

static void *memory(struct bench *b, size_t bytes)
{
    void *made;
    must(b->backend->allocate(b->device, bytes, &made));
    return made;
}

/* bf16 near 1e-2, of either sign. */
static void fill_random(struct bench *b, unsigned char *to, size_t bytes)
{
    enum { PIECE = 16 << 20 };
    uint16_t *host = malloc(PIECE);
    uint32_t random = 1;
    for (size_t i = 0; i < PIECE / 2; i++) {
        random = random * 1664525u + 1013904223u;
        host[i] = (uint16_t)(0x3c00 | ((random >> 16) & 0x80ff) | ((random >> 8) & 0x7f));
    }
    for (size_t at = 0; at < bytes; at += PIECE)
        must(b->backend->upload(b->device, to + at, host, bytes - at < PIECE ? bytes - at : PIECE));
    free(host);
}

/* Microseconds of one call, in the best of the replays. */
static double time_of(struct bench *b, enum status (*call)(struct bench *, const void *),
                      const void *op)
{
    struct recording *recording;
    double best = 1e30;
    for (int i = 0; i < 2; i++)
        must(call(b, op)); /* warm: choices are made here */
    must(b->backend->record_begin(b->device));
    for (int i = 0; i < REPEATS; i++)
        must(call(b, op));
    must(b->backend->record_end(b->device, &recording));
    must(b->backend->replay(b->device, recording));
    must(b->backend->synchronize(b->device));
    for (int i = 0; i < REPLAYS; i++) {
        int64_t start = clock_now();
        must(b->backend->replay(b->device, recording));
        must(b->backend->synchronize(b->device));
        double seconds = clock_seconds(clock_now() - start);
        best = seconds < best ? seconds : best;
    }
    b->backend->recording_free(b->device, recording);
    return best * 1e6 / REPEATS;
}

/* ---- dense --------------------------------------------------------------------------------- */

static enum status gemm_call(struct bench *b, const void *shape)
{
    struct gemm_op op = *(const struct gemm_op *)shape;
    size_t bytes = (size_t)op.columns * (size_t)op.depth * 2;
    if (b->at + bytes > POOL)
        b->at = 0;
    op.weight = b->pool + b->at;
    b->at += bytes;
    return b->backend->gemm(b->device, &op);
}

static void dense(struct bench *b)
{
    static const int shapes[][3] = {
        {22016, 2048, 0}, {12832, 2048, 0}, {2048, 11008, 0},  {2048, 4096, 0},  {16384, 512, 0},
        {2560, 2048, 0},  {2048, 2048, 0},  {151936, 2048, 1}, {17920, 1536, 0}, {9664, 1536, 0},
        {1536, 8960, 0},  {1536, 3072, 0},  {12288, 384, 0},   {151936, 1536, 1}};
    static const int rows[] = {1, 2, 4, 8, 16, 32, 64, 128};
    printf("%-14s", "us (TB/s)");
    for (int r = 0; r < 8; r++)
        printf("  rows %-8d", rows[r]);
    printf("\n");
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        printf("%6d x %-5d", shapes[s][0], shapes[s][1]);
        for (int r = 0; r < 8; r++) {
            struct gemm_op op = {.rows = rows[r],
                                 .columns = shapes[s][0],
                                 .depth = shapes[s][1],
                                 .ld_x = shapes[s][1],
                                 .ld_out = shapes[s][0],
                                 .x = b->x,
                                 .out = b->out,
                                 .float_out = shapes[s][2]};
            double us = time_of(b, gemm_call, &op);
            printf("  %6.2f (%4.2f)", us, op.columns * (double)op.depth * 2 / us * 1e-6);
        }
        printf("\n");
        fflush(stdout);
    }
}

/* ---- sampling ------------------------------------------------------------------------------ */

static enum status sample_call(struct bench *b, const void *op)
{
    return b->backend->sample(b->device, op);
}

static void sample(struct bench *b)
{
    static const char *const kinds[] = {"greedy", "race", "adjusted", "top_p", "top_k+p", "tops"};
    static const int rows[] = {1, 8, 64, 128};
    float *host = malloc((size_t)VOCABULARY * sizeof *host);
    struct sample_row *row = calloc(ROWS_MAX, sizeof *row);
    size_t bytes = (size_t)ROWS_MAX * VOCABULARY * 4;
    unsigned char *logits = memory(b, bytes), *work = memory(b, bytes);
    void *counts = memory(b, bytes), *last = memory(b, ROWS_MAX * 4);
    void *rows_there = memory(b, ROWS_MAX * sizeof *row);
    void *out = memory(b, ROWS_MAX * sizeof(struct sample_result));
    srand(1);
    for (int r = 0; r < ROWS_MAX; r++) {
        for (int i = 0; r < 8 && i < VOCABULARY; i++)
            host[i] = (float)(rand() + rand() + rand() - RAND_MAX) / (float)RAND_MAX * 6.0f;
        must(b->backend->upload(b->device, logits + (size_t)r * VOCABULARY * 4, host,
                                (size_t)VOCABULARY * 4));
    }
    for (int k = 0; k < 6; k++) {
        for (int r = 0; r < ROWS_MAX; r++)
            row[r] = (struct sample_row){.slot = r,
                                         .target = -1,
                                         .temperature = k == 0   ? 0.0f
                                                        : k >= 2 ? 0.7f
                                                                 : 1.0f,
                                         .top_p = k >= 3 && k < 5 ? 0.9f : 1.0f,
                                         .top_k = k == 4 ? 40 : 0,
                                         .repetition = 1.1f,
                                         .seed = (uint64_t)r,
                                         .tops = k == 5 ? 5 : 0,
                                         .flags = k == 2 ? SAMPLE_COUNTED : 0};
        must(b->backend->upload(b->device, rows_there, row, ROWS_MAX * sizeof *row));
        printf("sample %-9s", kinds[k]);
        for (int i = 0; i < 4; i++) {
            struct sample_op op = {
                .batch = {rows[i], VOCABULARY, 0, VOCABULARY - 267, rows_there, NULL, NULL, counts},
                .adjusted = k >= 2,
                .thresholds = k == 3 || k == 4,
                .tops = k == 5,
                .logits = (float *)logits,
                .work = (float *)work,
                .last = last,
                .counts = counts,
                .out = out};
            printf("  %3d: %7.2f us", rows[i], time_of(b, sample_call, &op));
        }
        printf("\n");
    }
    free(host);
    free(row);
}

/* ---- rows ---------------------------------------------------------------------------------- */

static enum status norm_call(struct bench *b, const void *op)
{
    return b->backend->rms_norm(b->device, op);
}

static enum status swiglu_call(struct bench *b, const void *op)
{
    return b->backend->swiglu(b->device, op);
}

static void rows(struct bench *b)
{
    static const int counts[] = {1, 8, 64, 128};
    float *weight = memory(b, 2048 * 4);
    for (int i = 0; i < 4; i++) {
        struct rms_norm_op norm = {counts[i],         2048, 1e-6f, b->x, b->out, weight,
                                   b->out + (8 << 20)};
        struct swiglu_op swiglu = {counts[i], 11008, 22016, b->x, b->x + 22016, b->out};
        printf("rows %3d: norm %5.2f us, swiglu %5.2f us\n", counts[i],
               time_of(b, norm_call, &norm), time_of(b, swiglu_call, &swiglu));
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.backend = backend_find("cuda")};
    struct device_options options = {.threads = 1, .max_tokens = 256, .max_sequences = 256};
    struct error error = {0};
    log_configure(getenv("KERNEL_DEBUG") ? LOG_DEBUG : LOG_WARNING, 0, false);
    const char *only = argc > 1 ? argv[1] : "";
    if (b.backend->open(&options, &b.device, &error) != STATUS_OK) {
        fprintf(stderr, "kernel_dense: %s\n", error.text);
        return 1;
    }
    b.pool = memory(&b, POOL);
    b.x = memory(&b, 16 << 20);
    b.out = memory(&b, (size_t)ROWS_MAX * VOCABULARY * 4);
    fill_random(&b, b.pool, POOL);
    fill_random(&b, b.x, 16 << 20);
    if (*only == 0 || strcmp(only, "rows") == 0)
        rows(&b);
    if (*only == 0 || strcmp(only, "sample") == 0)
        sample(&b);
    if (*only == 0 || strcmp(only, "dense") == 0)
        dense(&b);
    b.backend->close(b.device);
    return 0;
}
