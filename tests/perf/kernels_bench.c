#include "tests/perf/kernels_bench.h"

#include <stdlib.h>
#include <string.h>

#include "tests/perf/kernels_bench_case.h"

static void bench_all(struct bench *b)
{
    bench_copy(b);
    (void)bench_gemm(b, "ceiling: matrix product 8192^3", 8192, 8192, 8192);
    bench_attention(b, "attention decode 4B, 64 x 64K", 64, 1, 65535, 16, 0);
    bench_attention(b, "attention decode 2B, 128 x 64K", 128, 1, 65535, 12, 0);
    bench_attention(b, "attention decode 4B, 1 x 64K", 1, 1, 65535, 16, 0);
    bench_attention(b, "attention decode 4B, 1 x 4K", 1, 1, 4095, 16, 0);
    bench_attention(b, "window decode 4B, 64 x 2048", 64, 1, 65535, 16, 2048);
    bench_attention(b, "attention prefill 4B, 1 x 4K", 1, 4096, 0, 16, 0);
    bench_attention(b, "attention prefill 4B, 1 x 32K", 1, 32768, 0, 16, 0);
    bench_attention(b, "attention prefill 2B, 1 x 32K", 1, 32768, 0, 12, 0);
    bench_attention(b, "attention prefill 4B, 16K after 240K", 1, 16384, 245760, 16, 0);
    bench_attention(b, "window prefill 4B, 8K after 8K", 1, 8192, 8192, 16, 2048);
    bench_delta(b, "delta prefill 4B, 1 x 32K", 1, 32768, 16, 128, 0.1);
    bench_delta(b, "delta prefill 4B, 1 x 32K, slow decay", 1, 32768, 16, 128, 1e-4);
    bench_delta(b, "delta prefill 4B, 1 x 8K", 1, 8192, 16, 128, 0.1);
    bench_delta(b, "delta prefill 4B, 1 x 8K, slow decay", 1, 8192, 16, 128, 1e-4);
    bench_delta(b, "delta prefill 4B, 8 x 8K", 8, 8192, 16, 128, 0.1);
    bench_delta(b, "delta prefill 2B, 1 x 32K", 1, 32768, 12, 96, 0.1);
    bench_mixer(b, "jet mixer prefill 4B, 1 x 8K", 1, 8192, 16, 128, 512);
    bench_mixer(b, "jet mixer decode 4B, 128", 128, 1, 16, 128, 512);
    bench_mixer(b, "jet mixer decode 4B, 64", 64, 1, 16, 128, 512);
    bench_mixer(b, "jet mixer decode 4B, 1", 1, 1, 16, 128, 512);
    bench_mixer(b, "jet mixer decode 2B, 128", 128, 1, 12, 96, 384);
    bench_rows(b, 64);
    bench_rows(b, 8192);
    bench_gate_up(b, "gate_up 4B, 64 rows", 64, 11008, 2048);
    bench_gate_up(b, "gate_up 4B, 8192 rows", 8192, 11008, 2048);
    bench_gate_up(b, "gate_up 2B, 8192 rows", 8192, 8960, 1536);
    bench_products(b);
}

/* The mixer and both kinds of attention of one model. */
static void bench_shape(struct bench *b, const struct kernels_shape *shape)
{
    bool four = strcmp(shape->config, "jet-nemotron-4b") == 0;
    const char *model = four ? "4B" : "2B";
    int heads = four ? 16 : 12, d_k = four ? 128 : 96, window = four ? 2048 : 1152;
    char tail[64], name[96];

    snprintf(tail, sizeof(tail), "%s, %d x %d after %d", model, shape->batch, shape->tokens,
             shape->context);
    bench_copy(b);
    (void)bench_gemm(b, "ceiling: matrix product 8192^3", 8192, 8192, 8192);
    snprintf(name, sizeof(name), "attention %s", tail);
    bench_attention(b, name, shape->batch, shape->tokens, shape->context, heads, 0);
    snprintf(name, sizeof(name), "window %s", tail);
    bench_attention(b, name, shape->batch, shape->tokens, shape->context, heads, window);
    snprintf(name, sizeof(name), "delta %s", tail);
    if (shape->tokens > 1)
        bench_delta(b, name, shape->batch, shape->tokens, heads, d_k, 0.1);
    snprintf(name, sizeof(name), "jet mixer %s", tail);
    bench_mixer(b, name, shape->batch, shape->tokens, heads, d_k, heads * 32);
}

enum status kernels_bench_run(const struct kernels_bench *options, struct error *error)
{
    struct device_options device = {.ordinal = options->ordinal,
                                    .threads = 1,
                                    .max_tokens = KERNELS_TOKENS_MAX,
                                    .max_sequences = 256,
                                    .batch_invariant = options->batch_invariant};
    struct bench b = {.options = options, .backend = options->backend};
    enum status status = b.backend->open(&device, &b.device, error);

    if (status != STATUS_OK)
        return status;
    b.noise = malloc(BENCH_NOISE);
    if (b.noise == NULL) {
        b.backend->close(b.device);
        return error_set(error, STATUS_NO_MEMORY, "out of host memory");
    }
    bench_noise_fill(b.noise);
    if (options->shape != NULL)
        bench_shape(&b, options->shape);
    else
        bench_all(&b);
    bench_sweep(&b);
    free(b.noise);
    b.backend->close(b.device);
    if (b.status != STATUS_OK)
        return error_set(error, b.status, "the device failed: the log says where");
    return STATUS_OK;
}
