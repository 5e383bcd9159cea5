/* The cuda table against the cpu table at the shapes that its fast forms serve: head sizes of the
 * published models, ragged batches, pages and rings, and products that the library computes.
 * Without a GPU it says so and exits with 77 (skipped). */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/perf/mixer_shape.h"

enum { KEPT_MAX = 256, SIDES = 2, CPU = 0, CUDA = 1, SEQUENCES_MAX = 16 };

struct side {
    const struct backend *backend;
    struct device *device;
};

static struct side sides[SIDES];
static void *kept[SIDES][KEPT_MAX];
static int kept_count, failures;
static uint64_t random_state = 20251122;

static void must(enum status status, const char *what)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "%s: status %d\n", what, (int)status);
    exit(1);
}

static double uniform(void)
{
    uint64_t z = random_state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double normal(void)
{
    return sqrt(-2.0 * log(1.0 - uniform())) * cos(6.283185307179586 * uniform());
}

static uint16_t bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float float_of(uint16_t narrow)
{
    uint32_t bits = (uint32_t)narrow << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The same memory on both sides. */
struct twin {
    void *at[SIDES];
    size_t count;
    bool wide; /* f32 on both; else activations */
};

static struct twin twin_of(const float *values, size_t count, bool wide)
{
    struct twin twin = {.count = count, .wide = wide};
    uint16_t *narrow = malloc(count * 2 + 2);

    if (narrow == NULL || kept_count == KEPT_MAX)
        exit(1);
    for (int s = 0; s < SIDES; s++) {
        bool half = s == CUDA && !wide;
        must(sides[s].backend->allocate(sides[s].device, count * 4, &twin.at[s]), "allocate");
        kept[s][kept_count] = twin.at[s];
        for (size_t i = 0; half && i < count; i++)
            narrow[i] = bf16_of(values[i]);
        must(sides[s].backend->upload(sides[s].device, twin.at[s],
                                      half ? (const void *)narrow : values, count * (half ? 2 : 4)),
             "upload");
    }
    kept_count++;
    free(narrow);
    return twin;
}

/* Normals, rounded to bf16 unless wide. */
static struct twin random_twin(size_t count, double spread, double mean, bool wide)
{
    float *values = malloc(count * sizeof(float));
    struct twin twin;

    if (values == NULL)
        exit(1);
    for (size_t i = 0; i < count; i++) {
        values[i] = (float)(mean + spread * normal());
        if (!wide)
            values[i] = float_of(bf16_of(values[i]));
    }
    twin = twin_of(values, count, wide);
    free(values);
    return twin;
}

/* All NaN. */
static struct twin poisoned_twin(size_t count, bool wide)
{
    float *values = malloc(count * sizeof(float));
    struct twin twin;

    if (values == NULL)
        exit(1);
    memset(values, 0xff, count * sizeof(float));
    twin = twin_of(values, count, wide);
    free(values);
    return twin;
}

static float *fetched(const struct twin *twin, int side)
{
    bool half = side == CUDA && !twin->wide;
    float *values = malloc(twin->count * 4);
    uint16_t *narrow = (uint16_t *)values;

    if (values == NULL)
        exit(1);
    must(sides[side].backend->download(sides[side].device, values, twin->at[side],
                                       twin->count * (half ? 2 : 4)),
         "download");
    for (size_t i = twin->count; half && i-- > 0;)
        values[i] = float_of(narrow[i]);
    return values;
}

/* Relative Frobenius error; elements that are NaN on the cpu's side are not compared. */
static void compare(const char *name, const char *what, const struct twin *twin, double bound)
{
    float *want = fetched(twin, CPU), *got = fetched(twin, CUDA);
    double error = 0.0, size = 0.0;
    size_t worst = 0;
    double worst_gap = -1.0;

    for (size_t i = 0; i < twin->count; i++) {
        double gap = (double)got[i] - (double)want[i];
        if (isnan(want[i]))
            continue;
        error += gap * gap;
        size += (double)want[i] * want[i];
        if (!(fabs(gap) <= worst_gap)) {
            worst_gap = isnan(gap) ? INFINITY : fabs(gap);
            worst = i;
        }
    }
    error = sqrt(error / (size > 0.0 ? size : 1.0));
    bool good = error <= bound;
    failures += !good;
    printf("%-44s %-10s %9.2e <= %.0e %s", name, what, error, bound, good ? "ok" : "FAIL");
    if (!good)
        printf("  worst at %zu of %zu: %g for %g", worst, twin->count, (double)got[worst],
               (double)want[worst]);
    printf("\n");
    free(want);
    free(got);
}

static void sweep(void)
{
    while (kept_count > 0) {
        kept_count--;
        for (int s = 0; s < SIDES; s++)
            sides[s].backend->release(sides[s].device, kept[s][kept_count]);
    }
}

/* ---- batches ---- */

struct sequence {
    int context, fresh;
};

struct batch {
    struct ragged side[SIDES];
    int32_t starts[SEQUENCES_MAX + 1], slots[SEQUENCES_MAX], contexts[SEQUENCES_MAX];
    int sequences, tokens;
};

static void batch_make(struct batch *batch, const struct sequence *sequences, int count)
{
    int32_t *token = calloc(65536 * 2, sizeof(int32_t));
    int tokens = 0, decodes = 0, longest = 0, context = 0;

    for (int s = 0; s < count; s++) {
        batch->starts[s] = tokens;
        batch->slots[s] = (s * 5 + 2) % SEQUENCES_MAX;
        batch->contexts[s] = sequences[s].context;
        if (sequences[s].fresh == 1 && decodes == s)
            decodes++;
        if (sequences[s].fresh > longest)
            longest = sequences[s].fresh;
        if (sequences[s].context + sequences[s].fresh > context)
            context = sequences[s].context + sequences[s].fresh;
        for (int t = 0; t < sequences[s].fresh; t++, tokens++) {
            token[tokens] = s;
            token[65536 + tokens] = sequences[s].context + t;
        }
    }
    batch->starts[count] = tokens;
    batch->sequences = count;
    batch->tokens = tokens;
    for (int s = 0; s < SIDES; s++) {
        struct ragged *r = &batch->side[s];
        const struct {
            const int32_t *from;
            int length;
            const int32_t **to;
        } arrays[] = {{batch->starts, count + 1, &r->starts},
                      {batch->slots, count, &r->slots},
                      {batch->contexts, count, &r->contexts},
                      {token, tokens, &r->token_sequence},
                      {token + 65536, tokens, &r->token_position}};
        *r = (struct ragged){.sequences = count,
                             .tokens = tokens,
                             .decodes = decodes,
                             .max_tokens = longest,
                             .max_context = context,
                             .host_starts = batch->starts,
                             .host_slots = batch->slots,
                             .host_contexts = batch->contexts};
        for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) {
            void *memory;
            size_t bytes = (size_t)arrays[i].length * 4;
            must(sides[s].backend->allocate(sides[s].device, bytes, &memory), "allocate");
            must(sides[s].backend->upload(sides[s].device, memory, arrays[i].from, bytes),
                 "upload");
            *arrays[i].to = memory;
            kept[s][kept_count + (int)i] = memory;
        }
    }
    kept_count += 5;
    free(token);
}

/* ---- checks ---- */

static void check_attention(const char *name, const struct sequence *sequences, int count,
                            int heads, int window)
{
    enum { KV = 2, DIM = 128, BLOCK = 64, BLOCKS = 48 };
    struct batch batch;
    batch_make(&batch, sequences, count);
    int columns = (heads + 2 * KV) * DIM;
    size_t rows = window > 0 ? (size_t)SEQUENCES_MAX * (size_t)window
                             : (size_t)SEQUENCES_MAX * BLOCKS * BLOCK;
    struct twin qkv = random_twin((size_t)batch.tokens * (size_t)columns, 1.0, 0.0, false);
    struct twin cache = random_twin(rows * KV * DIM * 2, 1.0, 0.1, false);
    struct twin out = poisoned_twin((size_t)(batch.tokens * heads * DIM), false);
    struct twin lse = poisoned_twin((size_t)(batch.tokens * heads), true);
    int32_t table[SEQUENCES_MAX * BLOCKS];

    for (int i = 0; i < SEQUENCES_MAX * BLOCKS; i++)
        table[i] = (i * 331) % (SEQUENCES_MAX * BLOCKS);
    for (int s = 0; s < SIDES; s++) {
        size_t element = s == CUDA ? 2 : 4;
        char *at = qkv.at[s];
        void *blocks;
        must(sides[s].backend->allocate(sides[s].device, sizeof(table), &blocks), "allocate");
        must(sides[s].backend->upload(sides[s].device, blocks, table, sizeof(table)), "upload");
        struct kv_cache kv = {.data = cache.at[s],
                              .kv_heads = KV,
                              .head_dim = DIM,
                              .block_tokens = BLOCK,
                              .table = blocks,
                              .ld_table = BLOCKS,
                              .ring = window};
        struct attention_op op = {.batch = &batch.side[s],
                                  .heads = heads,
                                  .group = heads / KV,
                                  .ld_q = columns,
                                  .ld_kv = columns,
                                  .scale = 0.08838835f,
                                  .window = window,
                                  .q = at,
                                  .k = at + (size_t)(heads * DIM) * element,
                                  .v = at + (size_t)((heads + KV) * DIM) * element,
                                  .cache = kv,
                                  .out = out.at[s],
                                  .lse = lse.at[s]};
        struct kv_store_op store = {
            .batch = &batch.side[s], .ld_kv = columns, .k = op.k, .v = op.v, .cache = kv};
        if (window == 0)
            must(sides[s].backend->kv_store(sides[s].device, &store), "kv_store");
        must(sides[s].backend->attention(sides[s].device, &op), "attention");
        must(sides[s].backend->synchronize(sides[s].device), "attention");
        sides[s].backend->release(sides[s].device, blocks);
    }
    compare(name, "out", &out, 1e-2);
    compare(name, "lse", &lse, 2e-3);
    sweep();
}

static void check_delta(const char *name, const struct sequence *sequences, int count, int heads,
                        int d_k, double decay)
{
    enum { D_V = 256 };
    struct batch batch;
    batch_make(&batch, sequences, count);
    size_t rows = (size_t)(batch.tokens * heads), keys = rows * (size_t)d_k;
    size_t state_size = (size_t)(SEQUENCES_MAX * heads * d_k) * D_V;
    struct twin raw_q = random_twin(keys, 1.0, 0.5, false), q = poisoned_twin(keys, false);
    struct twin raw_k = random_twin(keys, 1.0, 0.5, false), k = poisoned_twin(keys, false);
    struct twin v = random_twin(rows * D_V, 1.0, 0.0, false);
    struct twin a = random_twin(rows, 1.0, 0.0, false), b = random_twin(rows, 1.0, 0.5, false);
    float logs[64], biases[64];
    for (int h = 0; h < heads; h++) {
        logs[h] = (float)(decay + h % 3);
        biases[h] = -1.0f + (float)(h % 5) * 0.3f;
    }
    struct twin a_log = twin_of(logs, (size_t)heads, true);
    struct twin dt_bias = twin_of(biases, (size_t)heads, true);
    struct twin g = poisoned_twin(rows, true), beta = poisoned_twin(rows, true);
    struct twin state = random_twin(state_size, 0.3, 0.0, true);
    struct twin out = poisoned_twin(rows * D_V, false);

    for (int s = 0; s < SIDES; s++) {
        const struct backend *backend = sides[s].backend;
        struct device *device = sides[s].device;
        struct head_norm_op norm = {.tokens = batch.tokens,
                                    .heads = heads,
                                    .dim = d_k,
                                    .ld_x = heads * d_k,
                                    .epsilon = 1e-6f,
                                    .scale = 1.0f / sqrtf((float)d_k),
                                    .x = raw_q.at[s],
                                    .out = q.at[s]};
        must(backend->head_norm(device, &norm), "head_norm");
        norm.scale = 1.0f;
        norm.x = raw_k.at[s];
        norm.out = k.at[s];
        must(backend->head_norm(device, &norm), "head_norm");
        struct gates_op gates = {.tokens = batch.tokens,
                                 .heads = heads,
                                 .ld_a = heads,
                                 .ld_b = heads,
                                 .a = a.at[s],
                                 .b = b.at[s],
                                 .a_log = a_log.at[s],
                                 .dt_bias = dt_bias.at[s],
                                 .g = g.at[s],
                                 .beta = beta.at[s]};
        must(backend->gates(device, &gates), "gates");
        struct delta_op op = {.batch = &batch.side[s],
                              .heads = heads,
                              .d_k = d_k,
                              .d_v = D_V,
                              .q = q.at[s],
                              .k = k.at[s],
                              .v = v.at[s],
                              .g = g.at[s],
                              .beta = beta.at[s],
                              .state = state.at[s],
                              .out = out.at[s],
                              .chunk = 64};
        must(backend->delta_chunked(device, &op), "delta_chunked");
        must(backend->synchronize(device), "delta_chunked");
    }
    compare(name, "q", &q, 5e-3);
    compare(name, "g", &g, 1e-5);
    compare(name, "out", &out, 2e-2);
    compare(name, "state", &state, 2e-2);
    sweep();
}

static void check_mixer(const char *name, const struct sequence *sequences, int count, int heads,
                        int d_k, int generator)
{
    enum { D_V = MIXER_D_V, TAPS = MIXER_TAPS };
    struct batch batch;
    batch_make(&batch, sequences, count);
    int keys = heads * d_k, values = heads * D_V;
    struct jet_mixer_op op = mixer_shape(heads, d_k, generator);
    size_t tokens = (size_t)batch.tokens;
    struct twin projected = random_twin(tokens * (size_t)op.ld_projected, 1.0, 0.2, false);
    struct twin w2 = random_twin((size_t)(values * TAPS * generator), 0.1, 0.0, false);
    struct twin w2_bias = random_twin((size_t)(values * TAPS), 0.3, 0.2, true);
    struct twin a_log = random_twin((size_t)heads, 0.5, 0.0, true);
    struct twin dt_bias = random_twin((size_t)heads, 0.5, -1.0, true);
    struct twin weight = random_twin(D_V, 0.2, 1.0, true);
    struct twin rows = random_twin((size_t)(SEQUENCES_MAX * (TAPS - 1) * values), 1.0, 0.0, false);
    struct twin state = random_twin((size_t)(SEQUENCES_MAX * keys) * D_V, 0.3, 0.0, true);
    struct twin out = poisoned_twin(tokens * (size_t)values, false);

    for (int s = 0; s < SIDES; s++) {
        const struct backend *backend = sides[s].backend;
        struct jet_mixer_op mine = op;
        mine.batch = &batch.side[s];
        mine.projected = projected.at[s];
        mine.w2 = w2.at[s];
        mine.w2_bias = w2_bias.at[s];
        mine.a_log = a_log.at[s];
        mine.dt_bias = dt_bias.at[s];
        mine.norm_weight = weight.at[s];
        mine.rows = rows.at[s];
        mine.state = state.at[s];
        mine.out = out.at[s];
        must(backend->allocate(sides[s].device, backend->jet_mixer_scratch(&mine, batch.tokens),
                               &mine.scratch),
             "allocate");
        must(backend->jet_mixer(sides[s].device, &mine), "jet_mixer");
        must(backend->synchronize(sides[s].device), "jet_mixer");
        backend->release(sides[s].device, mine.scratch);
    }
    compare(name, "out", &out, 2e-2);
    compare(name, "state", &state, 2e-2);
    compare(name, "rows", &rows, 1e-6);
    sweep();
}

static void check_gemm(int rows, int columns, int depth, bool biased, bool float_out)
{
    char name[64];
    struct twin x = random_twin((size_t)(rows * depth), 1.0, 0.0, false);
    struct twin weight = random_twin((size_t)(columns * depth), 1.0, 0.0, false);
    struct twin bias = random_twin((size_t)columns, 10.0, 3.0, true);
    struct twin out = poisoned_twin((size_t)(rows * columns), float_out);

    for (int s = 0; s < SIDES; s++) {
        struct gemm_op op = {.rows = rows,
                             .columns = columns,
                             .depth = depth,
                             .ld_x = depth,
                             .ld_out = columns,
                             .x = x.at[s],
                             .weight = weight.at[s],
                             .bias = biased ? bias.at[s] : NULL,
                             .out = out.at[s],
                             .float_out = float_out};
        must(sides[s].backend->gemm(sides[s].device, &op), "gemm");
        must(sides[s].backend->synchronize(sides[s].device), "gemm");
    }
    snprintf(name, sizeof(name), "gemm %d x %d x %d%s%s", rows, columns, depth,
             biased ? " bias" : "", float_out ? " float" : "");
    compare(name, "out", &out, float_out ? 1e-5 : 5e-3);
    sweep();
}

static void check_all(void)
{
    static const struct sequence decodes[] = {{0, 1},  {1, 1},   {63, 1},
                                              {64, 1}, {700, 1}, {2500, 1}};
    static const struct sequence ragged[] = {{5, 1},    {300, 1},  {0, 300}, {100, 129},
                                             {1000, 2}, {64, 200}, {63, 64}, {0, 65}};
    static const struct sequence prompts[] = {{0, 385}, {2, 1}, {9, 130}, {0, 3}};
    static const struct sequence chunks[] = {{0, 64}, {10, 200}, {0, 5}, {3, 65}, {7, 1}};
    static const struct sequence mixed[] = {{7, 1}, {500, 2000}, {0, 70}, {0, 1025}, {64, 3001}};

    check_attention("attention decode, 16 heads", decodes, 6, 16, 0);
    check_attention("attention decode, 12 heads", decodes, 6, 12, 0);
    check_attention("window decode, 16 heads", decodes, 6, 16, 128);
    check_attention("attention ragged, 16 heads", ragged, 8, 16, 0);
    check_attention("attention ragged, 12 heads", ragged, 8, 12, 0);
    check_attention("window 128 ragged, 16 heads", ragged, 8, 16, 128);
    check_attention("window 192 ragged, 4 heads", ragged, 8, 4, 192);
    check_delta("delta, d_k 128", chunks, 5, 3, 128, 0.0);
    check_delta("delta, d_k 128, slow decay", chunks, 5, 3, 128, -7.0);
    check_delta("delta, d_k 96", chunks, 5, 2, 96, -2.0);
    check_delta("delta in segments, d_k 128", mixed, 5, 2, 128, 0.0);
    check_delta("delta in segments, d_k 128, slow decay", mixed, 5, 2, 128, -12.0);
    check_delta("delta in segments, d_k 96, slow decay", mixed, 5, 1, 96, -7.0);
    check_delta("delta in segments, d_k 96, 1 sequence", mixed + 4, 1, 3, 96, -12.0);
    check_mixer("jet mixer decode, d_k 128", decodes, 6, 2, 128, 64);
    check_mixer("jet mixer decode, d_k 96", decodes, 6, 3, 96, 64);
    check_mixer("jet mixer ragged, d_k 128", ragged, 8, 2, 128, 64);
    check_mixer("jet mixer ragged, 16 heads", ragged, 8, 16, 128, 512);
    check_mixer("jet mixer prompts, 12 heads", prompts, 4, 12, 96, 384);
    check_mixer("jet mixer one prompt, d_k 128", prompts, 1, 3, 128, 72);
    check_mixer("jet mixer many heads, d_k 128", decodes, 6, 66, 128, 64);
    check_mixer("jet mixer many heads, d_k 96", decodes, 6, 67, 96, 64);
    check_gemm(1, 512, 256, false, false);
    check_gemm(7, 512, 256, true, false);
    check_gemm(64, 2048, 1024, false, false);
    check_gemm(100, 1000, 520, false, true);
    check_gemm(33, 70, 50, true, false);
    check_gemm(200, 768, 640, true, false);
}

/* Of a device that gives a row the same bits in any batch. */
static void check_invariant(void)
{
    static const struct sequence decodes[] = {{0, 1}, {700, 1}};
    static const struct sequence ragged[] = {{5, 1}, {0, 3}, {64, 2}, {7, 40}, {100, 129}};

    check_mixer("invariant: jet mixer decode", decodes, 2, 2, 128, 64);
    check_mixer("invariant: jet mixer ragged", ragged, 5, 3, 96, 96);
    check_gemm(1, 512, 256, true, false);
    check_gemm(64, 2048, 1024, false, false);
    check_gemm(129, 1000, 520, false, true);
    check_gemm(33, 70, 50, true, false);
    check_gemm(700, 4000, 640, true, false);
}

static bool cuda_open(bool batch_invariant)
{
    const struct device_options options = {
        .threads = 8, .max_tokens = 4096, .max_sequences = 64, .batch_invariant = batch_invariant};
    struct error error = {0};

    if (sides[CUDA].backend->open(&options, &sides[CUDA].device, &error) == STATUS_OK)
        return true;
    printf("skipped: %s\n", error.text);
    return false;
}

int main(void)
{
    struct device_options options = {.threads = 8, .max_tokens = 4096, .max_sequences = 64};
    struct error error = {0};

    setvbuf(stdout, NULL, _IOLBF, 0);
    sides[CPU].backend = backend_find("cpu");
    sides[CUDA].backend = backend_find("cuda");
    if (!cuda_open(false))
        return 77;
    must(sides[CPU].backend->open(&options, &sides[CPU].device, &error), "cpu");
    check_all();
    sides[CUDA].backend->close(sides[CUDA].device);
    if (!cuda_open(true))
        return 1;
    check_invariant();
    sides[CUDA].backend->close(sides[CUDA].device);
    sides[CPU].backend->close(sides[CPU].device);
    printf("%d failed\n", failures);
    return failures > 0;
}
