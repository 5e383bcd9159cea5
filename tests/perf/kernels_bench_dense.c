#include <stdio.h>

#include "tests/perf/kernels_bench_case.h"

/* ---- ceilings and products ---- */

struct copy_case {
    void *to, *from;
    size_t bytes;
};

static enum status call_copy(const struct bench *b, const void *op, int turn)
{
    const struct copy_case *c = op;

    (void)turn;
    return b->backend->copy(b->device, c->to, c->from, c->bytes);
}

static enum status call_gemm(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->gemm(b->device, op);
}

static enum status call_gate_up(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->gate_up(b->device, op);
}

void bench_copy(struct bench *b)
{
    struct copy_case c = {.bytes = (size_t)1 << 31};
    double seconds;

    c.to = bench_zeros(b, c.bytes);
    c.from = bench_noise(b, c.bytes);
    seconds = bench_time(b, call_copy, &c, 4, false);
    if (b->status == STATUS_OK)
        b->copy_rate = 2.0 * (double)c.bytes / seconds * 1e-9;
    bench_report(b, "ceiling: copy 2 GiB", seconds, 2.0 * (double)c.bytes, 0.0);
    bench_sweep(b);
}

double bench_gemm(struct bench *b, const char *name, int rows, int columns, int depth)
{
    struct gemm_op op = {
        .rows = rows, .columns = columns, .depth = depth, .ld_x = depth, .ld_out = columns};
    double flops = 2.0 * rows * columns * depth;
    double bytes = 2.0 * ((double)rows * depth + (double)columns * depth + (double)rows * columns);
    double seconds;

    op.x = bench_noise(b, (size_t)rows * (size_t)depth * 2);
    op.weight = bench_noise(b, (size_t)columns * (size_t)depth * 2);
    op.out = bench_zeros(b, (size_t)rows * (size_t)columns * 2);
    seconds = bench_time(b, call_gemm, &op, rows > 1024 ? 4 : 20, true);
    if (b->product_rate == 0.0 && b->status == STATUS_OK)
        b->product_rate = flops / seconds * 1e-12;
    bench_report(b, name, seconds, bytes, flops);
    bench_sweep(b);
    return seconds;
}

void bench_products(struct bench *b)
{
    static const struct {
        const char *model, *which;
        int columns, depth;
    } weights[] = {{"4B", "gate|up", 22016, 2048},
                   {"4B", "down", 2048, 11008},
                   {"4B", "q|k|v|g|w1|a|b", 12832, 2048},
                   {"4B", "jet out", 2048, 4096},
                   {"4B", "w2", 16384, 512},
                   {"2B", "gate|up", 17920, 1536},
                   {"2B", "down", 1536, 8960}};
    static const int rows[] = {1, 64, 8192};
    char name[80];

    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++)
        for (size_t w = 0; w < sizeof(weights) / sizeof(weights[0]); w++) {
            snprintf(name, sizeof(name), "gemm %s %s, %d rows", weights[w].model, weights[w].which,
                     rows[r]);
            if (bench_wanted(b, name))
                (void)bench_gemm(b, name, rows[r], weights[w].columns, weights[w].depth);
        }
}

/* The first half of the gated MLP: two products, what they write is one. */
void bench_gate_up(struct bench *b, const char *name, int rows, int columns, int depth)
{
    struct gate_up_op op = {.rows = rows, .columns = columns, .depth = depth, .ld_x = depth};
    double out = (double)rows * columns, seconds;

    if (!bench_wanted(b, name))
        return;
    op.x = bench_noise(b, (size_t)rows * (size_t)depth * 2);
    op.weight = bench_noise(b, (size_t)columns * (size_t)depth * 4);
    op.scratch = bench_zeros(b, (size_t)rows * (size_t)columns * 4);
    op.out = bench_zeros(b, (size_t)rows * (size_t)columns * 2);
    seconds = bench_time(b, call_gate_up, &op, rows > 1024 ? 4 : 20, true);
    bench_report(b, name, seconds, 2.0 * ((double)rows * depth + 2.0 * columns * depth + out),
                 4.0 * out * depth);
    bench_sweep(b);
}

/* ---- rows ---- */

static enum status call_rms(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->rms_norm(b->device, op);
}

static enum status call_swiglu(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->swiglu(b->device, op);
}

void bench_rows(struct bench *b, int rows)
{
    struct rms_norm_op norm = {.rows = rows, .columns = 2048, .epsilon = 1e-6f};
    struct swiglu_op swiglu = {.rows = rows, .columns = 11008, .ld_in = 22016};
    size_t elements = (size_t)rows * 2048;
    char name[80];
    double seconds;

    snprintf(name, sizeof(name), "rms_norm + residual 4B, %d rows", rows);
    if (bench_wanted(b, name)) {
        norm.x = bench_noise(b, elements * 2);
        norm.delta = bench_noise(b, elements * 2);
        norm.weight = bench_constant(b, 2048, 1.0f);
        norm.out = bench_zeros(b, elements * 2);
        seconds = bench_time(b, call_rms, &norm, 20, true);
        bench_report(b, name, seconds, (double)elements * 8.0, 0.0);
        bench_sweep(b);
    }
    snprintf(name, sizeof(name), "swiglu 4B, %d rows", rows);
    if (bench_wanted(b, name)) {
        char *both = bench_noise(b, (size_t)rows * 22016 * 2);
        swiglu.gate = both;
        swiglu.up = both + 22016;
        swiglu.out = bench_zeros(b, (size_t)rows * 11008 * 2);
        seconds = bench_time(b, call_swiglu, &swiglu, 20, true);
        bench_report(b, name, seconds, (double)rows * 11008 * 6.0, 0.0);
        bench_sweep(b);
    }
}
