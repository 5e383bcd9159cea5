#include "tests/perf/kernels_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 7, KEPT_MAX = 64 };

struct bench {
    const struct kernels_bench *options;
    const struct backend *backend;
    struct device *device;
    double copy_rate, product_rate; /* GB/s, TFLOP/s: the ceilings */
    unsigned char *noise;           /* host, NOISE bytes of bf16 normals */
    void *kept[KEPT_MAX];
    int kept_count;
    void *host;         /* the batch's arrays */
    enum status status; /* the first failure; everything after it is skipped */
};

static const size_t NOISE = 32 << 20;

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void must(struct bench *b, enum status status)
{
    if (b->status == STATUS_OK)
        b->status = status;
}

/* ---- memory ---- */

static void noise_fill(unsigned char *noise)
{
    uint64_t state = 88172645463325252u;
    uint16_t *values = (uint16_t *)noise;

    for (size_t i = 0; i < NOISE / 2; i++) {
        float sum = -2.0f; /* of four uniforms: near enough to normal */
        uint32_t bits;
        for (int j = 0; j < 4; j++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (float)(state >> 40) * 0x1p-24f;
        }
        memcpy(&bits, &sum, sizeof(bits));
        values[i] = (uint16_t)(bits >> 16);
    }
}

static void *zeros(struct bench *b, size_t bytes)
{
    void *memory = NULL;

    if (b->status == STATUS_OK)
        must(b, b->backend->allocate(b->device, bytes, &memory));
    if (memory != NULL && b->kept_count < KEPT_MAX)
        b->kept[b->kept_count++] = memory;
    return memory;
}

/* bf16 noise. */
static void *noise(struct bench *b, size_t bytes)
{
    char *memory = zeros(b, bytes);
    size_t done = bytes < NOISE ? bytes : NOISE;

    if (memory == NULL)
        return NULL;
    must(b, b->backend->upload(b->device, memory, b->noise, done));
    while (done < bytes && b->status == STATUS_OK) {
        size_t part = bytes - done < done ? bytes - done : done;
        must(b, b->backend->copy(b->device, memory + done, memory, part));
        done += part;
    }
    return memory;
}

static void *uploaded(struct bench *b, const void *from, size_t bytes)
{
    void *memory = zeros(b, bytes);

    if (memory != NULL)
        must(b, b->backend->upload(b->device, memory, from, bytes));
    return memory;
}

static float *constant(struct bench *b, size_t count, float value)
{
    float *values = malloc(count * sizeof(float));
    float *memory;

    if (values == NULL) {
        must(b, STATUS_NO_MEMORY);
        return NULL;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = value * (float)(1 + i % 7) / 4.0f;
    memory = uploaded(b, values, count * sizeof(float));
    free(values);
    return memory;
}

static void sweep(struct bench *b)
{
    while (b->kept_count > 0)
        b->backend->release(b->device, b->kept[--b->kept_count]);
    free(b->host);
    b->host = NULL;
}

/* ---- time ---- */

typedef enum status (*entry_call)(const struct bench *b, const void *op, int turn);

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static enum status calls_run(const struct bench *b, entry_call call, const void *op, int calls)
{
    enum status status = STATUS_OK;

    for (int i = 0; i < calls && status == STATUS_OK; i++)
        status = call(b, op, i);
    return status;
}

/* Seconds a call: median of ROUNDS, each of `calls` calls, recorded and replayed if asked. */
static double time_calls(struct bench *b, entry_call call, const void *op, int calls, bool recorded)
{
    struct recording *recording = NULL;
    double times[ROUNDS];

    if (b->status != STATUS_OK)
        return 0.0;
    must(b, calls_run(b, call, op, 1)); /* plans, modules */
    must(b, b->backend->synchronize(b->device));
    if (recorded && b->backend->record_begin != NULL && b->status == STATUS_OK) {
        must(b, b->backend->record_begin(b->device));
        must(b, calls_run(b, call, op, calls));
        must(b, b->backend->record_end(b->device, &recording));
    }
    for (int round = -1; round < ROUNDS && b->status == STATUS_OK; round++) {
        double begin = seconds_now();
        must(b, recording != NULL ? b->backend->replay(b->device, recording)
                                  : calls_run(b, call, op, calls));
        must(b, b->backend->synchronize(b->device));
        if (round >= 0)
            times[round] = (seconds_now() - begin) / calls;
    }
    if (recording != NULL)
        b->backend->recording_free(b->device, recording);
    if (b->status != STATUS_OK)
        return 0.0;
    qsort(times, ROUNDS, sizeof(times[0]), compare_doubles);
    return times[ROUNDS / 2];
}

static bool wanted(const struct bench *b, const char *name)
{
    return b->status == STATUS_OK &&
           (b->options->only == NULL || strstr(name, b->options->only) != NULL);
}

/* One line: the larger of the two shares is what binds. */
static void report(struct bench *b, const char *name, double seconds, double bytes, double flops)
{
    double gigabytes = bytes / seconds * 1e-9, teraflops = flops / seconds * 1e-12;
    double memory_share = b->copy_rate > 0.0 ? gigabytes / b->copy_rate : 0.0;
    double product_share = b->product_rate > 0.0 ? teraflops / b->product_rate : 0.0;
    bool memory = memory_share >= product_share;

    if (b->status != STATUS_OK)
        return;
    if (b->options->json)
        fprintf(b->options->out,
                "{\"kernel\": \"%s\", \"us\": %.2f, \"bytes\": %.0f, \"flops\": %.0f, "
                "\"share\": %.4f, \"bound\": \"%s\"}\n",
                name, seconds * 1e6, bytes, flops, memory ? memory_share : product_share,
                memory ? "copy" : "product");
    else
        fprintf(b->options->out, "%-52s %10.1f us %8.1f %-7s %5.1f %% of %s\n", name, seconds * 1e6,
                memory ? gigabytes : teraflops, memory ? "GB/s" : "TFLOP/s",
                100.0 * (memory ? memory_share : product_share),
                memory ? "copy" : "matrix product");
    fflush(b->options->out);
}

/* ---- batches ---- */

/* `sequences` of `fresh` new tokens after `context`, slots in order. */
static struct ragged batch_make(struct bench *b, int sequences, int fresh, int context)
{
    size_t tokens = (size_t)sequences * (size_t)fresh;
    int32_t *ints = malloc(((size_t)sequences * 3 + 1 + tokens * 2) * sizeof(int32_t));
    struct ragged batch = {.sequences = sequences,
                           .tokens = (int)tokens,
                           .decodes = fresh == 1 ? sequences : 0,
                           .max_tokens = fresh,
                           .max_context = context + fresh};
    int32_t *starts = ints, *slots = ints + sequences + 1, *contexts = slots + sequences;
    int32_t *sequence = contexts + sequences, *position = sequence + tokens;

    if (ints == NULL) {
        must(b, STATUS_NO_MEMORY);
        return batch;
    }
    for (int s = 0; s <= sequences; s++)
        starts[s] = s * fresh;
    for (int s = 0; s < sequences; s++) {
        slots[s] = s;
        contexts[s] = context;
    }
    for (size_t t = 0; t < tokens; t++) {
        sequence[t] = (int32_t)(t / (size_t)fresh);
        position[t] = context + (int32_t)(t % (size_t)fresh);
    }
    batch.starts = uploaded(b, starts, ((size_t)sequences + 1) * 4);
    batch.slots = uploaded(b, slots, (size_t)sequences * 4);
    batch.contexts = uploaded(b, contexts, (size_t)sequences * 4);
    batch.token_sequence = uploaded(b, sequence, tokens * 4);
    batch.token_position = uploaded(b, position, tokens * 4);
    batch.host_starts = starts;
    batch.host_slots = slots;
    batch.host_contexts = contexts;
    free(b->host);
    b->host = ints;
    return batch;
}

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

static void bench_copy(struct bench *b)
{
    struct copy_case c = {.bytes = (size_t)1 << 31};
    double seconds;

    c.to = zeros(b, c.bytes);
    c.from = noise(b, c.bytes);
    seconds = time_calls(b, call_copy, &c, 4, false);
    if (b->status == STATUS_OK)
        b->copy_rate = 2.0 * (double)c.bytes / seconds * 1e-9;
    report(b, "ceiling: copy 2 GiB", seconds, 2.0 * (double)c.bytes, 0.0);
    sweep(b);
}

static double bench_gemm(struct bench *b, const char *name, int rows, int columns, int depth)
{
    struct gemm_op op = {
        .rows = rows, .columns = columns, .depth = depth, .ld_x = depth, .ld_out = columns};
    double flops = 2.0 * rows * columns * depth;
    double bytes = 2.0 * ((double)rows * depth + (double)columns * depth + (double)rows * columns);
    double seconds;

    op.x = noise(b, (size_t)rows * (size_t)depth * 2);
    op.weight = noise(b, (size_t)columns * (size_t)depth * 2);
    op.out = zeros(b, (size_t)rows * (size_t)columns * 2);
    seconds = time_calls(b, call_gemm, &op, rows > 1024 ? 4 : 20, true);
    if (b->product_rate == 0.0 && b->status == STATUS_OK)
        b->product_rate = flops / seconds * 1e-12;
    report(b, name, seconds, bytes, flops);
    sweep(b);
    return seconds;
}

static void bench_products(struct bench *b)
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
            if (wanted(b, name))
                (void)bench_gemm(b, name, rows[r], weights[w].columns, weights[w].depth);
        }
}

/* ---- attention ---- */

static enum status call_attention(const struct bench *b, const void *op, int turn)
{
    (void)turn;
    return b->backend->attention(b->device, op);
}

/* Paged when window is 0, else rings. */
static void bench_attention(struct bench *b, const char *name, int sequences, int fresh,
                            int context, int heads, int window)
{
    enum { KV = 2, DIM = 128, BLOCK = 64 };
    if (!wanted(b, name))
        return;
    struct ragged batch = batch_make(b, sequences, fresh, context);
    int blocks = (context + fresh + BLOCK - 1) / BLOCK;
    int columns = (heads + 2 * KV) * DIM;
    size_t table_size = (size_t)sequences * (size_t)blocks;
    int32_t *table = malloc(table_size * 4);
    size_t rows = window > 0 ? (size_t)sequences * (size_t)window : table_size * BLOCK;
    char *qkv = noise(b, (size_t)batch.tokens * (size_t)columns * 2);
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
        must(b, STATUS_NO_MEMORY);
        return;
    }
    for (size_t i = 0; i < table_size; i++) /* odd: no run of blocks is contiguous */
        table[i] = (int32_t)((i * 1000003u) % table_size);
    op.cache.data = noise(b, rows * KV * DIM * 2 * 2);
    op.cache.table = uploaded(b, table, table_size * 4);
    op.out = zeros(b, (size_t)batch.tokens * (size_t)(heads * DIM) * 2);
    seconds = time_calls(b, call_attention, &op, fresh == 1 ? 20 : 2, true);
    seen = context + (fresh + 1) / 2.0; /* keys a query */
    if (window > 0 && seen > window)
        seen = window;
    flops = 4.0 * heads * DIM * seen * batch.tokens;
    bytes = 2.0 * KV * DIM * 2 * (fresh == 1 ? seen : context + fresh) * sequences;
    report(b, name, seconds, bytes, flops);
    free(table);
    sweep(b);
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

/* `decay`: of a token, on average; a segment whose decays leave nothing takes less work. */
static void bench_delta(struct bench *b, const char *name, int sequences, int fresh, int heads,
                        int d_k, double decay)
{
    enum { D_V = 256 };
    if (!wanted(b, name))
        return;
    struct ragged batch = batch_make(b, sequences, fresh, 0);
    size_t rows = (size_t)batch.tokens * (size_t)heads;
    struct head_norm_op norm = {.tokens = batch.tokens,
                                .heads = heads,
                                .dim = d_k,
                                .ld_x = heads * d_k,
                                .epsilon = 1e-6f,
                                .scale = 1.0f};
    struct delta_op op = {.batch = &batch, .heads = heads, .d_k = d_k, .d_v = D_V, .chunk = 64};
    double flops, bytes, seconds;

    norm.x = noise(b, rows * (size_t)d_k * 2);
    norm.out = zeros(b, rows * (size_t)d_k * 2);
    if (b->status == STATUS_OK)
        must(b, b->backend->head_norm(b->device, &norm));
    op.q = op.k = norm.out;
    op.v = noise(b, rows * D_V * 2);
    op.g = constant(b, rows, (float)-decay);
    op.beta = constant(b, rows, 0.4f);
    op.state = zeros(b, (size_t)(sequences * heads * d_k) * D_V * 4);
    op.out = zeros(b, rows * D_V * 2);
    seconds = time_calls(b, call_delta, &op, 3, true);
    flops = (double)rows * (4.0 * 64 * d_k + 6.0 * d_k * D_V + 4.0 * 64 * D_V + 2.0 * 64 * 64);
    bytes = (double)rows * 2.0 * (2 * d_k + 2 * D_V);
    report(b, name, seconds, bytes, flops);
    sweep(b);
}

static void bench_mixer(struct bench *b, const char *name, int sequences, int fresh, int heads,
                        int d_k, int generator)
{
    enum { D_V = 256, TAPS = 4 };
    if (!wanted(b, name))
        return;
    struct ragged batch = batch_make(b, sequences, fresh, 4096);
    int keys = heads * d_k, values = heads * D_V;
    struct jet_mixer_op op = {.batch = &batch,
                              .heads = heads,
                              .d_k = d_k,
                              .d_v = D_V,
                              .taps = TAPS,
                              .generator = generator,
                              .head_epsilon = 1e-6f,
                              .norm_epsilon = 1e-5f,
                              .k_at = keys,
                              .v_at = 2 * keys,
                              .gate_at = 2 * keys + values,
                              .w1_at = 2 * keys + 2 * values,
                              .a_at = 2 * keys + 2 * values + generator,
                              .b_at = 2 * keys + 2 * values + generator + heads};
    double state = (double)sequences * keys * D_V * 4.0, bytes, flops, seconds;
    int calls = fresh > 1 ? 2 : state < 16e6 ? 128 : 20; /* more than any cache holds */

    op.ld_projected = (op.b_at + heads + 7) / 8 * 8;
    op.projected = noise(b, (size_t)batch.tokens * (size_t)op.ld_projected * 2);
    op.w2 = noise(b, (size_t)(values * TAPS) * (size_t)generator * 2);
    op.w2_bias = constant(b, (size_t)(values * TAPS), 0.1f);
    op.a_log = constant(b, (size_t)heads, 0.1f);
    op.dt_bias = constant(b, (size_t)heads, -1.0f);
    op.norm_weight = constant(b, D_V, 1.0f);
    op.rows = noise(b, (size_t)sequences * (TAPS - 1) * (size_t)values * 2);
    op.state = zeros(b, (size_t)state * (size_t)calls);
    op.out = zeros(b, (size_t)batch.tokens * (size_t)values * 2);
    op.scratch = zeros(b, b->backend->jet_mixer_scratch(&op, batch.tokens));
    struct mixer_case c = {op, (size_t)sequences * (size_t)keys * D_V};
    seconds = time_calls(b, call_mixer, &c, calls, true);
    flops = 2.0 * batch.tokens * values * TAPS * generator +
            (fresh == 1 ? 0.0
                        : (double)batch.tokens * heads *
                              (4.0 * 64 * d_k + 6.0 * d_k * D_V + 4.0 * 64 * D_V + 2.0 * 64 * 64));
    bytes = 2.0 * state + (double)batch.tokens * 2.0 * (op.ld_projected + values) +
            2.0 * values * TAPS * generator;
    report(b, name, seconds, bytes, flops);
    sweep(b);
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

static void bench_rows(struct bench *b, int rows)
{
    struct rms_norm_op norm = {.rows = rows, .columns = 2048, .epsilon = 1e-6f};
    struct swiglu_op swiglu = {.rows = rows, .columns = 11008, .ld_in = 22016};
    size_t elements = (size_t)rows * 2048;
    char name[80];
    double seconds;

    snprintf(name, sizeof(name), "rms_norm + residual 4B, %d rows", rows);
    if (wanted(b, name)) {
        norm.x = noise(b, elements * 2);
        norm.delta = noise(b, elements * 2);
        norm.weight = constant(b, 2048, 1.0f);
        norm.out = zeros(b, elements * 2);
        seconds = time_calls(b, call_rms, &norm, 20, true);
        report(b, name, seconds, (double)elements * 8.0, 0.0);
        sweep(b);
    }
    snprintf(name, sizeof(name), "swiglu 4B, %d rows", rows);
    if (wanted(b, name)) {
        char *both = noise(b, (size_t)rows * 22016 * 2);
        swiglu.gate = both;
        swiglu.up = both + 22016;
        swiglu.out = zeros(b, (size_t)rows * 11008 * 2);
        seconds = time_calls(b, call_swiglu, &swiglu, 20, true);
        report(b, name, seconds, (double)rows * 11008 * 6.0, 0.0);
        sweep(b);
    }
}

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
    b.noise = malloc(NOISE);
    if (b.noise == NULL) {
        b.backend->close(b.device);
        return error_set(error, STATUS_NO_MEMORY, "out of host memory");
    }
    noise_fill(b.noise);
    if (options->shape != NULL)
        bench_shape(&b, options->shape);
    else
        bench_all(&b);
    sweep(&b);
    free(b.noise);
    b.backend->close(b.device);
    if (b.status != STATUS_OK)
        return error_set(error, b.status, "the device failed: the log says where");
    return STATUS_OK;
}
