#include <stdlib.h>

#include "tests/perf/kernels_bench_case.h"
#include "tests/perf/mixer_shape.h"

/* ---- attention ---- */

static enum status call_attention(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->attention(b->device, op);
}

void bench_attention(struct bench *b, const char *name, int sequences, int fresh, int context,
                     int heads, int window)
{
    enum { KV = 2, DIM = 128, BLOCK = 64 };
    if (!bench_wanted(b, name))
        return;
    struct ragged batch = bench_batch(b, sequences, fresh, context);
    int blocks = (context + fresh + BLOCK - 1) / BLOCK;
    int columns = (heads + 2 * KV) * DIM;
    size_t table_size = (size_t)sequences * (size_t)blocks;
    int32_t *table = malloc(table_size * 4);
    size_t rows = window > 0 ? (size_t)sequences * (size_t)window : table_size * BLOCK;
    char *qkv = bench_noise(b, (size_t)batch.tokens * (size_t)columns * 2);
    struct attention_op op = {.batch = &batch,
                              .heads = heads,
                              .group = heads / KV,
                              .ld_q = columns,
                              .ld_kv = columns,
                              .scale = 0.08838835f,
                              .window = window,
                              .q = qkv,
                              .k = qkv + heads * DIM * 2,
                              .v = qkv + (heads + KV) * DIM * 2,
                              .cache = {.kv_heads = KV,
                                        .head_dim = DIM,
                                        .block_tokens = BLOCK,
                                        .ld_table = blocks,
                                        .ring = window}};
    double bytes, flops, seen, seconds;

    if (table == NULL) {
        bench_must(b, STATUS_NO_MEMORY);
        return;
    }
    for (size_t i = 0; i < table_size; i++) /* odd: no run of blocks is contiguous */
        table[i] = (int32_t)((i * 1000003u) % table_size);
    op.cache.data = bench_noise(b, rows * KV * DIM * 2 * 2);
    op.cache.table = bench_uploaded(b, table, table_size * 4);
    op.out = bench_zeros(b, (size_t)batch.tokens * (size_t)(heads * DIM) * 2);
    seconds = bench_time(b, call_attention, &op, fresh == 1 ? 20 : 2, true);
    seen = context + (fresh + 1) / 2.0; /* keys a query */
    if (window > 0 && seen > window)
        seen = window;
    flops = 4.0 * heads * DIM * seen * batch.tokens;
    bytes = 2.0 * KV * DIM * 2 * (fresh == 1 ? seen : context + fresh) * sequences;
    bench_report(b, name, seconds, bytes, flops);
    free(table);
    bench_sweep(b);
}

/* ---- the jet block ---- */

static enum status call_delta(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->delta_chunked(b->device, op);
}

/* Each call has a state of its own: a step's is not in the cache, and nothing lies between two
 * calls that would keep the second from reading before the first has written. */
struct mixer_case {
    struct jet_mixer_op op;
    size_t apart; /* elements from one call's state to the next */
};

static enum status call_mixer(const struct bench *b, const void *op, int turn)
{
    const struct mixer_case *c = op;
    struct jet_mixer_op mixer = c->op;

    mixer.state += (size_t)turn * c->apart;
    return b->backend->jet_mixer(b->device, &mixer);
}

void bench_delta(struct bench *b, const char *name, int sequences, int fresh, int heads, int d_k,
                 double decay)
{
    enum { D_V = 256 };
    if (!bench_wanted(b, name))
        return;
    struct ragged batch = bench_batch(b, sequences, fresh, 0);
    size_t rows = (size_t)batch.tokens * (size_t)heads;
    struct head_norm_op norm = {.tokens = batch.tokens,
                                .heads = heads,
                                .dim = d_k,
                                .ld_x = heads * d_k,
                                .epsilon = 1e-6f,
                                .scale = 1.0f};
    struct delta_op op = {.batch = &batch, .heads = heads, .d_k = d_k, .d_v = D_V, .chunk = 64};
    double flops, bytes, seconds;

    norm.x = bench_noise(b, rows * (size_t)d_k * 2);
    for (int i = 0; i < 2; i++) { /* each read from memory */
        norm.out = bench_zeros(b, rows * (size_t)d_k * 2);
        if (b->status == STATUS_OK)
            bench_must(b, b->backend->head_norm(b->device, &norm));
        *(i == 0 ? &op.q : &op.k) = norm.out;
    }
    op.v = bench_noise(b, rows * D_V * 2);
    op.g = bench_constant(b, rows, (float)-decay);
    op.beta = bench_constant(b, rows, 0.4f);
    op.state = bench_zeros(b, (size_t)(sequences * heads * d_k) * D_V * 4);
    op.out = bench_zeros(b, rows * D_V * 2);
    seconds = bench_time(b, call_delta, &op, 3, true);
    flops = (double)rows * (4.0 * 64 * d_k + 6.0 * d_k * D_V + 4.0 * 64 * D_V + 2.0 * 64 * 64);
    bytes = (double)rows * 2.0 * (2 * d_k + 2 * D_V);
    bench_report(b, name, seconds, bytes, flops);
    bench_sweep(b);
}

void bench_mixer(struct bench *b, const char *name, int sequences, int fresh, int heads, int d_k,
                 int generator)
{
    enum { D_V = MIXER_D_V, TAPS = MIXER_TAPS };
    if (!bench_wanted(b, name))
        return;
    struct ragged batch = bench_batch(b, sequences, fresh, 4096);
    int keys = heads * d_k, values = heads * D_V;
    struct jet_mixer_op op = mixer_shape(heads, d_k, generator);
    double state = (double)sequences * keys * D_V * 4.0, bytes, flops, seconds;
    int calls = fresh > 1 ? 2 : state < 16e6 ? 128 : 20; /* more than any cache holds */

    op.batch = &batch;
    op.projected = bench_noise(b, (size_t)batch.tokens * (size_t)op.ld_projected * 2);
    op.w2 = bench_noise(b, (size_t)(values * TAPS) * (size_t)generator * 2);
    op.w2_bias = bench_constant(b, (size_t)(values * TAPS), 0.1f);
    op.a_log = bench_constant(b, (size_t)heads, 0.1f);
    op.dt_bias = bench_constant(b, (size_t)heads, -1.0f);
    op.norm_weight = bench_constant(b, D_V, 1.0f);
    op.rows = bench_noise(b, (size_t)sequences * (TAPS - 1) * (size_t)values * 2);
    op.state = bench_zeros(b, (size_t)state * (size_t)calls);
    op.out = bench_zeros(b, (size_t)batch.tokens * (size_t)values * 2);
    op.scratch = bench_zeros(b, b->backend->jet_mixer_scratch(&op, batch.tokens));
    struct mixer_case c = {op, (size_t)sequences * (size_t)keys * D_V};
    seconds = bench_time(b, call_mixer, &c, calls, true);
    flops = 2.0 * batch.tokens * values * TAPS * generator +
            (fresh == 1 ? 0.0
                        : (double)batch.tokens * heads *
                              (4.0 * 64 * d_k + 6.0 * d_k * D_V + 4.0 * 64 * D_V + 2.0 * 64 * 64));
    bytes = 2.0 * state + (double)batch.tokens * 2.0 * (op.ld_projected + values) +
            2.0 * values * TAPS * generator;
    bench_report(b, name, seconds, bytes, flops);
    bench_sweep(b);
}
