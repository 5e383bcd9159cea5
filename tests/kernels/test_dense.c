/* Embedding, activations, gate and up, norms, rotary embedding, gates. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

static void resolve_takes_literals_and_last_tokens(void **state)
{
    const int32_t source[] = {5, -1, 0, -3, -2}, last[] = {70, 71, 72}, want[] = {5, 70, 0, 72, 71};
    int32_t *ids = poison_raw(sizeof(want));

    (void)state;
    MUST(h.backend->resolve(h.device, &(struct resolve_op){.tokens = 5,
                                                           .source = put_ints(source, 5),
                                                           .last = put_ints(last, 3),
                                                           .ids = ids}));
    assert_memory_equal(get_raw(ids, sizeof(want)), want, sizeof(want));
}

static void embedding_shards_sum_to_the_whole(void **state)
{
    enum { VOCABULARY = 13, HIDDEN = 24, TOKENS = 9 };
    float *table = random_activations(VOCABULARY * HIDDEN, 1.0);
    int32_t ids[TOKENS] = {0, 12, 4, 5, 11, 4, 7, 3, 8};
    const int first[] = {0, 5, 12}, rows[] = {5, 7, 1};
    float *sum = host_memory(TOKENS * HIDDEN, sizeof(float));

    (void)state;
    for (int shard = 0; shard < 3; shard++) {
        void *out = poison(TOKENS * HIDDEN);
        MUST(h.backend->embed(h.device,
                              &(struct embed_op){.tokens = TOKENS,
                                                 .hidden = HIDDEN,
                                                 .first = first[shard],
                                                 .rows = rows[shard],
                                                 .ids = put_ints(ids, TOKENS),
                                                 .table = put(table + first[shard] * HIDDEN,
                                                              (size_t)(rows[shard] * HIDDEN)),
                                                 .out = out}));
        float *part = get(out, TOKENS * HIDDEN);
        for (int i = 0; i < TOKENS * HIDDEN; i++)
            sum[i] += part[i];
    }
    for (int t = 0; t < TOKENS; t++)
        assert_same_bits(sum + t * HIDDEN, table + ids[t] * HIDDEN, HIDDEN);
}

static void gather_copies_rows(void **state)
{
    enum { ROWS = 6, COLUMNS = 17, LD = 20, FROM = 4 };
    float *x = random_activations(FROM * LD, 1.0);
    const int32_t index[ROWS] = {3, 0, 0, 2, 1, 3};
    void *out = poison(ROWS * COLUMNS);

    (void)state;
    MUST(h.backend->gather(h.device, &(struct gather_op){.rows = ROWS,
                                                         .columns = COLUMNS,
                                                         .ld_x = LD,
                                                         .index = put_ints(index, ROWS),
                                                         .x = put(x, FROM * LD),
                                                         .out = out}));
    float *got = get(out, ROWS * COLUMNS);
    for (int r = 0; r < ROWS; r++)
        assert_same_bits(got + r * COLUMNS, x + index[r] * LD, COLUMNS);
}

/* ---- element by element ---- */

static void silu_and_swiglu(void **state)
{
    enum { ROWS = 5, COLUMNS = 33, LD = 80 };
    float *x = random_activations(ROWS * LD, 3.0);
    double *want = host_memory(ROWS * COLUMNS, sizeof(double));
    void *in = put(x, ROWS * LD), *out = poison(ROWS * COLUMNS), *gated = poison(ROWS * COLUMNS);
    char *up = (char *)in + 40 * dtype_size(h.backend->activation);

    (void)state;
    MUST(h.backend->silu(h.device, &(struct silu_op){ROWS, COLUMNS, LD, COLUMNS, in, out}));
    MUST(h.backend->swiglu(h.device, &(struct swiglu_op){ROWS, COLUMNS, LD, in, up, gated}));
    x = get(in, ROWS * LD);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        want[i] = ref_silu(x[i / COLUMNS * LD + i % COLUMNS]);
    assert_close("silu", get(out, ROWS * COLUMNS), want, ROWS * COLUMNS, 1e-6, 5e-3);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        want[i] *= x[i / COLUMNS * LD + i % COLUMNS + 40];
    assert_close("swiglu", get(gated, ROWS * COLUMNS), want, ROWS * COLUMNS, 1e-6, 5e-3);
    MUST(h.backend->silu(h.device, &(struct silu_op){ROWS, COLUMNS, LD, LD, in, in}));
    float *after = get(in, ROWS * LD);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        want[i] = ref_silu(x[i / COLUMNS * LD + i % COLUMNS]);
    float *packed = host_memory(ROWS * COLUMNS, sizeof(float));
    for (int i = 0; i < ROWS * COLUMNS; i++)
        packed[i] = after[i / COLUMNS * LD + i % COLUMNS];
    assert_close("silu in place", packed, want, ROWS * COLUMNS, 1e-6, 5e-3);
    assert_same_bits(after + COLUMNS, x + COLUMNS, LD - COLUMNS);
}

static void gate_up_want(const struct gate_up_op *op, const float *x, const float *weight,
                         double *want)
{
    for (int i = 0; i < op->rows * op->columns; i++) {
        const float *row = x + i / op->columns * op->ld_x;
        const float *gate = weight + i % op->columns * op->depth;
        want[i] = ref_silu(ref_dot(row, gate, (size_t)op->depth)) *
                  ref_dot(row, gate + op->columns * op->depth, (size_t)op->depth);
    }
}

/* In place, and rounded as activations. */
static void norm_rows(float *x, int rows, int ld_x, const float *norm, int depth)
{
    double *wide = host_memory((size_t)depth, sizeof(double));
    double *out = host_memory((size_t)depth, sizeof(double));

    for (int r = 0; r < rows; r++, x += ld_x) {
        for (int i = 0; i < depth; i++)
            wide[i] = x[i];
        ref_rms_norm(wide, norm, (size_t)depth, 1e-6, out);
        for (int i = 0; i < depth; i++)
            x[i] = (float)out[i];
        round_activations(x, (size_t)depth);
    }
}

/* Aligned shapes too, whose halves a back end may compute at once. */
static void gate_up_agrees_with_float64(void **state)
{
    static const struct {
        int rows, columns, depth, pad;
    } shapes[] = {{1, 24, 64, 0},      {3, 5, 7, 2},       {9, 136, 320, 8},   {16, 64, 256, 0},
                  {17, 8600, 72, 0},   {63, 4300, 136, 8}, {90, 11010, 64, 0}, {127, 4700, 72, 0},
                  {40, 200, 192, 0},   {131, 264, 128, 0}, {300, 72, 448, 8},  {257, 33, 65, 3},
                  {2100, 1032, 24, 0}, {2051, 72, 328, 8}, {1, 1201, 512, 0},  {4, 131, 1536, 8},
                  {16, 663, 2048, 0},  {2, 663, 2048, 0}};
    int ran = 0;

    (void)state;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int rows = shapes[s].rows, columns = shapes[s].columns, depth = shapes[s].depth;
        int ld_x = depth + shapes[s].pad, count = rows * columns;
        float *x = random_activations((size_t)rows * (size_t)ld_x, 1.0);
        float *weight = random_activations(2 * (size_t)columns * (size_t)depth, 2.0 / sqrt(depth));
        double *want = host_memory((size_t)count, sizeof(double));
        struct gate_up_op op = {.rows = rows,
                                .columns = columns,
                                .depth = depth,
                                .ld_x = ld_x,
                                .x = put(x, (size_t)rows * (size_t)ld_x),
                                .weight = put(weight, 2 * (size_t)columns * (size_t)depth),
                                .scratch = poison(2 * (size_t)count),
                                .out = poison((size_t)count)};

        MUST(h.backend->gate_up(h.device, &op));
        gate_up_want(&op, x, weight, want);
        assert_close("gate_up", get(op.out, (size_t)count), want, (size_t)count, 1e-5, 1e-2);

        float *norm = random_floats((size_t)depth, 1.0);
        op.norm = put_floats(norm, (size_t)depth);
        op.epsilon = 1e-6f;
        op.out = poison((size_t)count);
        if (h.backend->gate_up_fuses != NULL && h.backend->gate_up_fuses(h.device, &op)) {
            norm_rows(x, rows, ld_x, norm, depth);
            MUST(h.backend->gate_up(h.device, &op));
            gate_up_want(&op, x, weight, want);
            assert_close("norm, gate_up", get(op.out, (size_t)count), want, (size_t)count, 1e-5,
                         1e-2);
            ran++;
        }
        harness_sweep(NULL);
    }
    assert_true(ran > 0 || h.exact || getenv("JETD_TEST_FAST") == NULL);
}

static void rms_norm_adds_and_scales(void **state)
{
    static const int widths[] = {1, 24, 64, 100, 1536};

    (void)state;
    for (size_t i = 0; i < 5; i++) {
        size_t columns = (size_t)widths[i], count = columns * 7;
        float *x = random_activations(count, 2.0), *delta = random_activations(count, 1.0);
        float *weight = random_floats(columns, 1.0);
        double *sum = host_memory(count, sizeof(double)),
               *want = host_memory(count, sizeof(double));
        void *stream = put(x, count), *out = poison(count);
        struct rms_norm_op op = {.rows = 7,
                                 .columns = (int)columns,
                                 .epsilon = 1e-6f,
                                 .x = stream,
                                 .delta = i % 2 ? put(delta, count) : NULL,
                                 .weight = put_floats(weight, columns),
                                 .out = out};
        MUST(h.backend->rms_norm(h.device, &op));
        for (size_t j = 0; j < count; j++)
            sum[j] = x[j] + (i % 2 ? (double)delta[j] : 0.0);
        for (size_t r = 0; r < 7; r++)
            ref_rms_norm(sum + r * columns, weight, columns, 1e-6, want + r * columns);
        assert_close("rms norm", get(out, count), want, count, 1e-6, 1e-2);
        assert_close("residual", get(stream, count), sum, count, 1e-7, 5e-3);

        op.out = NULL; /* only the addition */
        op.delta = put(delta, count);
        MUST(h.backend->rms_norm(h.device, &op));
        for (size_t j = 0; j < count; j++)
            sum[j] += delta[j];
        assert_close("residual alone", get(stream, count), sum, count, 1e-6, 1e-2);
    }
}

static void head_norm_is_silu_then_unit_length(void **state)
{
    enum { TOKENS = 5, HEADS = 3, LD = 3 * 96 + 11 };
    static const int dims[] = {24, 96};

    (void)state;
    for (size_t d = 0; d < 2; d++) {
        size_t dim = (size_t)dims[d], count = TOKENS * HEADS * dim;
        float *x = random_activations(TOKENS * LD, 1.0);
        double *want = host_memory(count, sizeof(double)), scale = 0.37;
        void *out = poison(count);
        MUST(h.backend->head_norm(h.device, &(struct head_norm_op){.tokens = TOKENS,
                                                                   .heads = HEADS,
                                                                   .dim = (int)dim,
                                                                   .ld_x = LD,
                                                                   .epsilon = 1e-6f,
                                                                   .scale = (float)scale,
                                                                   .x = put(x, TOKENS * LD),
                                                                   .out = out}));
        for (size_t i = 0; i < TOKENS * HEADS; i++)
            ref_head_norm(x + i / HEADS * LD + i % HEADS * dim, dim, 1e-6, (float)scale,
                          want + i * dim);
        assert_close("head norm", get(out, count), want, count, 1e-6, 5e-3);
    }
}

static void gated_norm_per_head(void **state)
{
    enum { TOKENS = 5, HEADS = 3, DIM = 64, LD = HEADS * DIM + 7, COUNT = TOKENS * HEADS * DIM };
    float *o = random_activations(COUNT, 0.1), *gate = random_activations(TOKENS * LD, 1.0);
    float *weight = random_floats(DIM, 1.0);
    double *wide = host_memory(COUNT, sizeof(double)), *want = host_memory(COUNT, sizeof(double));
    void *out = poison(COUNT);

    (void)state;
    MUST(h.backend->gated_norm(h.device, &(struct gated_norm_op){.tokens = TOKENS,
                                                                 .heads = HEADS,
                                                                 .dim = DIM,
                                                                 .ld_gate = LD,
                                                                 .epsilon = 1e-5f,
                                                                 .o = put(o, COUNT),
                                                                 .gate = put(gate, TOKENS * LD),
                                                                 .weight = put_floats(weight, DIM),
                                                                 .out = out}));
    for (int i = 0; i < COUNT; i++)
        wide[i] = o[i];
    for (int i = 0; i < TOKENS * HEADS; i++)
        ref_rms_norm(wide + i * DIM, weight, DIM, 1e-5f, want + i * DIM);
    for (int i = 0; i < COUNT; i++)
        want[i] *= ref_silu(gate[i / (HEADS * DIM) * LD + i % (HEADS * DIM)]);
    assert_close("gated norm", get(out, COUNT), want, COUNT, 1e-6, 1e-2);
}

static void rope_rotates_halves(void **state)
{
    enum { TOKENS = 6, HEADS = 2 };
    static const int dims[] = {16, 32, 128};
    const int32_t positions[TOKENS] = {0, 1, 7, 2047, 131071, 1000003};

    (void)state;
    for (size_t d = 0; d < 3; d++) {
        int dim = dims[d], ld = HEADS * dim + 5;
        size_t count = (size_t)(TOKENS * ld);
        float *x = random_activations(count, 1.0), *frequencies = random_floats((size_t)dim / 2, 0);
        double *want = host_memory(count, sizeof(double));
        void *place = put(x, count);
        for (int i = 0; i < dim / 2; i++)
            frequencies[i] = (float)pow(1e6, -2.0 * i / dim);
        MUST(h.backend->rope(
            h.device, &(struct rope_op){.tokens = TOKENS,
                                        .heads = HEADS,
                                        .head_dim = dim,
                                        .ld_x = ld,
                                        .positions = put_ints(positions, TOKENS),
                                        .frequencies = put_floats(frequencies, (size_t)dim / 2),
                                        .scale = 1.1f,
                                        .x = place}));
        for (size_t i = 0; i < count; i++)
            want[i] = x[i];
        for (int i = 0; i < TOKENS * HEADS; i++)
            ref_rope(want + i / HEADS * ld + i % HEADS * dim, dim, positions[i / HEADS],
                     frequencies, 1.1f);
        assert_close("rope", get(place, count), want, count, 1e-6, 5e-3);
    }
}

static void gates_over_a_wide_range(void **state)
{
    enum { TOKENS = 40, HEADS = 3, LD = 9, COUNT = TOKENS * HEADS };
    float *in = random_activations(TOKENS * LD, 20.0), *a_log = random_floats(HEADS, 1.0);
    float *dt_bias = random_floats(HEADS, 2.0);
    double *g = host_memory(COUNT, sizeof(double)), *beta = host_memory(COUNT, sizeof(double));
    float *g_out = poison_raw(COUNT * 4), *beta_out = poison_raw(COUNT * 4);
    char *device_in = put(in, TOKENS * LD);

    (void)state;
    MUST(h.backend->gates(h.device,
                          &(struct gates_op){.tokens = TOKENS,
                                             .heads = HEADS,
                                             .ld_a = LD,
                                             .ld_b = LD,
                                             .a = device_in,
                                             .b = device_in + 4 * dtype_size(h.backend->activation),
                                             .a_log = put_floats(a_log, HEADS),
                                             .dt_bias = put_floats(dt_bias, HEADS),
                                             .g = g_out,
                                             .beta = beta_out}));
    float *got = get_floats(g_out, COUNT);
    for (int i = 0; i < COUNT; i++) {
        double a = in[i / HEADS * LD + i % HEADS] + (double)dt_bias[i % HEADS];
        g[i] = -exp(a_log[i % HEADS]) * (a > 40.0 ? a : log1p(exp(a)));
        beta[i] = ref_sigmoid(in[i / HEADS * LD + i % HEADS + 4]);
        assert_true(got[i] <= 0.0f);
        /* Each one, small too, down to where floats lose digits. */
        if (fabs(got[i] - g[i]) > (h.exact ? 1e-5 : 1e-3) * fabs(g[i]) + FLT_MIN)
            fail_msg("g[%d] of a = %g is %g, not %g", i, a, got[i], g[i]);
    }
    assert_close("g", got, g, COUNT, 1e-6, 1e-5);
    assert_close("beta", get_floats(beta_out, COUNT), beta, COUNT, 1e-6, 1e-5);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(resolve_takes_literals_and_last_tokens),
        TEST(embedding_shards_sum_to_the_whole),
        TEST(gather_copies_rows),
        TEST(silu_and_swiglu),
        TEST(gate_up_agrees_with_float64),
        TEST(rms_norm_adds_and_scales),
        TEST(head_norm_is_silu_then_unit_length),
        TEST(gated_norm_per_head),
        TEST(rope_rotates_halves),
        TEST(gates_over_a_wide_range),
    };

    return harness_run(tests);
}
