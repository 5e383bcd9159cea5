/* The dynamic convolution, and the whole jet mixer from the merged projection to the gated norm. */
#include <math.h>
#include <string.h>

#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

static double *doubles(const float *from, size_t count)
{
    double *to = host_memory(count, sizeof(double));

    for (size_t i = 0; i < count; i++)
        to[i] = from[i];
    return to;
}

/* ---- convolution ---- */

/* One sequence, known from its first token, whose last `tokens` are new. */
struct line {
    int total, channels, taps;
    float *u, *kernels; /* [total, channels], [total, channels, taps] */
};

static struct line random_line(int total, int channels, int taps)
{
    struct line l = {total, channels, taps, NULL, NULL};

    l.u = random_activations((size_t)(total * channels), 1.0);
    l.kernels = random_activations((size_t)(total * channels * taps), 0.7);
    return l;
}

/* The rows that a pool holds after `tokens` tokens: zeros before the first. */
static void carried_rows(const struct line *l, int tokens, float *rows)
{
    for (int j = 0; j < l->taps - 1; j++) {
        int from = tokens - (l->taps - 1) + j;
        for (int c = 0; c < l->channels; c++)
            rows[j * l->channels + c] = from >= 0 ? l->u[from * l->channels + c] : 0.0f;
    }
}

static void convolution_agrees_with_float64(void **state)
{
    static const struct sequence sequence[] = {{0, 1}, {1, 1}, {2, 1}, {3, 1},  {9, 1},
                                               {0, 2}, {1, 2}, {0, 3}, {2, 40}, {50, 33}};
    enum { SEQUENCES = 10, SLOTS = 13 };

    (void)state;
    for (int taps = 2; taps <= 5; taps++) {
        int channels = random_int(1, 150), ld = channels + 3, held = (taps - 1) * channels;
        struct line lines[SEQUENCES];
        struct ragged *batch = make_batch(sequence, SEQUENCES, SLOTS);
        size_t count = (size_t)(batch->tokens * channels);
        float *u = random_activations((size_t)(batch->tokens * ld), 1.0);
        float *kernels = host_memory(count * (size_t)taps, sizeof(float));
        float *pool = random_activations((size_t)(SLOTS * held), 1.0);
        double *want = host_memory(count, sizeof(double));

        for (int s = 0; s < SEQUENCES; s++) {
            int context = sequence[s].context, start = batch->host_starts[s];
            struct line *l = &lines[s];
            *l = random_line(context + sequence[s].tokens, channels, taps);
            if (context > 0) /* else whatever the pool holds must count as zero */
                carried_rows(l, context, pool + batch->host_slots[s] * held);
            double *all = host_memory((size_t)(l->total * channels), sizeof(double));
            ref_convolution(doubles(l->u, (size_t)(l->total * channels)),
                            doubles(l->kernels, (size_t)(l->total * channels * taps)), l->total,
                            channels, taps, all);
            for (int i = 0; i < sequence[s].tokens; i++) {
                memcpy(u + (start + i) * ld, l->u + (context + i) * channels,
                       (size_t)channels * sizeof(float));
                memcpy(kernels + (start + i) * channels * taps,
                       l->kernels + (context + i) * channels * taps,
                       (size_t)(channels * taps) * sizeof(float));
                memcpy(want + (start + i) * channels, all + (context + i) * channels,
                       (size_t)channels * sizeof(double));
            }
        }
        void *rows = put(pool, (size_t)(SLOTS * held)), *out = poison(count);
        MUST(h.backend->convolution(
            h.device, &(struct convolution_op){.batch = batch,
                                               .channels = channels,
                                               .taps = taps,
                                               .ld_u = ld,
                                               .u = put(u, (size_t)(batch->tokens * ld)),
                                               .kernels = put(kernels, count * (size_t)taps),
                                               .rows = rows,
                                               .out = out}));
        assert_close("convolution", get(out, count), want, count, 1e-6, 1e-2);
        float *after = get(rows, (size_t)(SLOTS * held));
        for (int s = 0; s < SEQUENCES; s++) {
            int slot = batch->host_slots[s];
            carried_rows(&lines[s], lines[s].total, pool + slot * held);
        }
        assert_same_bits(after, pool, (size_t)(SLOTS * held));
        harness_sweep(NULL);
    }
}

/* ---- the whole mixer ---- */

enum { HEADS = 2, DK = 24, DV = 64, TAPS = 4, R = 16, CHANNELS = HEADS * DV };
enum { Q_AT = 0, K_AT = Q_AT + HEADS * DK, V_AT = K_AT + HEADS * DK, GATE_AT = V_AT + CHANNELS };
enum { W1_AT = GATE_AT + CHANNELS, A_AT = W1_AT + R, B_AT = A_AT + HEADS, LD = B_AT + HEADS };
enum { STATE = HEADS * DK * DV, ROWS = (TAPS - 1) * CHANNELS };

static const float head_epsilon = 1e-6f, norm_epsilon = 1e-5f;

struct mixer {
    float *w2, *w2_bias, *a_log, *dt_bias, *norm_weight;
    void *rows; /* pools of `slots` */
    float *state;
};

static struct mixer random_mixer(int slots)
{
    struct mixer m = {.w2 = random_activations(CHANNELS * TAPS * R, 0.3),
                      .w2_bias = random_floats(CHANNELS * TAPS, 0.3),
                      .a_log = random_floats(HEADS, 0.5),
                      .dt_bias = random_floats(HEADS, 1.0),
                      .norm_weight = random_floats(DV, 1.0)};

    m.rows = poison((size_t)(slots * ROWS));
    m.state = poison_raw((size_t)(slots * STATE) * sizeof(float));
    return m;
}

static float *run_mixer(const struct mixer *m, const struct ragged *batch, const float *projected)
{
    size_t tokens = (size_t)batch->tokens;
    void *out = poison(tokens * CHANNELS);
    struct jet_mixer_op op = {.batch = batch,
                              .heads = HEADS,
                              .d_k = DK,
                              .d_v = DV,
                              .taps = TAPS,
                              .generator = R,
                              .head_epsilon = head_epsilon,
                              .norm_epsilon = norm_epsilon,
                              .projected = put(projected, tokens * LD),
                              .ld_projected = LD,
                              .q_at = Q_AT,
                              .k_at = K_AT,
                              .v_at = V_AT,
                              .gate_at = GATE_AT,
                              .w1_at = W1_AT,
                              .a_at = A_AT,
                              .b_at = B_AT,
                              .w2 = put(m->w2, CHANNELS * TAPS * R),
                              .w2_bias = put_floats(m->w2_bias, CHANNELS * TAPS),
                              .a_log = put_floats(m->a_log, HEADS),
                              .dt_bias = put_floats(m->dt_bias, HEADS),
                              .norm_weight = put_floats(m->norm_weight, DV),
                              .rows = m->rows,
                              .state = m->state,
                              .out = out};

    op.scratch = poison_raw(h.backend->jet_mixer_scratch(&op, batch->tokens));
    MUST(h.backend->jet_mixer(h.device, &op));
    return get(out, tokens * CHANNELS);
}

static double *reference_kernels(const struct mixer *m, const float *projected, int tokens)
{
    double *kernels = host_memory((size_t)(tokens * CHANNELS * TAPS), sizeof(double));

    for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < CHANNELS * TAPS; i++) {
            double sum = m->w2_bias[i];
            for (int r = 0; r < R; r++)
                sum += ref_silu(projected[t * LD + W1_AT + r]) * m->w2[i * R + r];
            kernels[t * CHANNELS * TAPS + i] = sum;
        }
    }
    return kernels;
}

/* model.md's steps 1 to 5 (without the output projection) over one sequence from nothing. */
static double *reference_mixer(const struct mixer *m, const float *projected, int tokens,
                               double *state)
{
    size_t n = (size_t)tokens;
    double *q = host_memory(n * HEADS * DK, 8), *k = host_memory(n * HEADS * DK, 8);
    double *u = host_memory(n * CHANNELS, 8), *v = host_memory(n * CHANNELS, 8);
    double *g = host_memory(n * HEADS, 8), *beta = host_memory(n * HEADS, 8);
    double *o = host_memory(n * CHANNELS, 8), *out = host_memory(n * CHANNELS, 8);

    for (int i = 0; i < tokens * HEADS; i++) {
        const float *row = projected + i / HEADS * LD;
        int head = i % HEADS;
        ref_head_norm(row + Q_AT + head * DK, DK, head_epsilon, 1.0 / sqrt(DK), q + i * DK);
        ref_head_norm(row + K_AT + head * DK, DK, head_epsilon, 1.0, k + i * DK);
        g[i] = -exp(m->a_log[head]) * log1p(exp(row[A_AT + head] + (double)m->dt_bias[head]));
        beta[i] = ref_sigmoid(row[B_AT + head]);
    }
    for (int i = 0; i < tokens * CHANNELS; i++)
        u[i] = projected[i / CHANNELS * LD + V_AT + i % CHANNELS];
    ref_convolution(u, reference_kernels(m, projected, tokens), tokens, CHANNELS, TAPS, v);
    for (int head = 0; head < HEADS; head++)
        ref_delta(q + head * DK, k + head * DK, v + head * DV, g + head, beta + head, tokens, HEADS,
                  DK, DV, state + head * DK * DV, o + head * DV);
    for (int i = 0; i < tokens * HEADS; i++)
        ref_rms_norm(o + i * DV, m->norm_weight, DV, norm_epsilon, out + i * DV);
    for (int i = 0; i < tokens * CHANNELS; i++)
        out[i] *= ref_silu(projected[i / CHANNELS * LD + GATE_AT + i % CHANNELS]);
    return out;
}

static void mixer_agrees_with_float64(void **state)
{
    const struct sequence sequence[] = {{0, 1}, {0, 2}, {0, 70}};
    struct ragged *batch = make_batch(sequence, 3, 5);
    float *projected = random_activations((size_t)(batch->tokens * LD), 1.0);
    struct mixer m = random_mixer(5);
    float *got = run_mixer(&m, batch, projected);
    float *after = get_floats(m.state, 5 * STATE);

    (void)state;
    for (int s = 0; s < 3; s++) {
        int start = batch->host_starts[s], tokens = sequence[s].tokens;
        double *wide = host_memory(STATE, sizeof(double));
        double *want = reference_mixer(&m, projected + start * LD, tokens, wide);
        assert_close("mixer", got + start * CHANNELS, want, (size_t)(tokens * CHANNELS), 2e-5,
                     3e-2);
        assert_close("state", after + batch->host_slots[s] * STATE, wide, STATE, 1e-5, 2e-2);
    }
}

/* In pieces, beside another sequence, the bits are those of the whole sequence alone. */
static void mixer_has_the_same_bits_cut_and_in_company(void **state)
{
    enum { TOTAL = 90 };
    static const int cuts[] = {1, 2, 3, 1, 64, 19};
    const struct sequence whole = {0, TOTAL};
    const int32_t slots[] = {1, 0};
    float *projected = random_activations(TOTAL * LD, 1.0);
    float *company = random_activations((TOTAL + 1) * LD, 1.0);
    struct mixer m = random_mixer(2);
    float *alone = run_mixer(&m, make_batch_at(&whole, 1, slots), projected);
    float *alone_state = get_floats(m.state + STATE, STATE);
    int done = 0;

    (void)state;
    if (!h.exact)
        return;
    for (int i = 0; i < 6; i++) {
        const struct sequence both[] = {{7, 1}, {done, cuts[i]}};
        const int32_t both_slots[] = {0, 1};
        memcpy(company + LD, projected + done * LD, (size_t)(cuts[i] * LD) * sizeof(float));
        float *got = run_mixer(&m, make_batch_at(both, 2, both_slots), company);
        assert_same_bits(got + CHANNELS, alone + done * CHANNELS, (size_t)(cuts[i] * CHANNELS));
        done += cuts[i];
    }
    assert_int_equal(done, TOTAL);
    assert_same_bits(get_floats(m.state + STATE, STATE), alone_state, STATE);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(convolution_agrees_with_float64),
        TEST(mixer_agrees_with_float64),
        TEST(mixer_has_the_same_bits_cut_and_in_company),
    };

    return cmocka_run_group_tests(tests, harness_open, harness_close);
}
