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

struct shape {
    int heads, d_k, d_v, generator, align; /* align: of a projected row, elements */
};

/* A small one, and the published models' with few heads: what a back end may give its fast form. */
static const struct shape shapes[] = {
    {2, 24, 64, 16, 1}, {2, 96, 256, 64, 8}, {2, 128, 256, 64, 8}};
enum { TAPS = 4 };

struct mixer {
    struct jet_mixer_op op;         /* shape and offsets; then what lies on the device */
    size_t channels, held, carried; /* held, carried: elements of a slot's state and rows */
    float *w2, *w2_bias, *a_log, *dt_bias, *norm_weight;
};

static struct jet_mixer_op mixer_op_of(const struct shape *s)
{
    int keys = s->heads * s->d_k, values = s->heads * s->d_v;
    struct jet_mixer_op op = {.heads = s->heads,
                              .d_k = s->d_k,
                              .d_v = s->d_v,
                              .taps = TAPS,
                              .generator = s->generator,
                              .head_epsilon = 1e-6f,
                              .norm_epsilon = 1e-5f,
                              .k_at = keys,
                              .v_at = 2 * keys,
                              .gate_at = 2 * keys + values,
                              .w1_at = 2 * keys + 2 * values,
                              .a_at = 2 * keys + 2 * values + s->generator,
                              .b_at = 2 * keys + 2 * values + s->generator + s->heads};

    op.ld_projected = (op.b_at + s->heads + s->align - 1) / s->align * s->align;
    return op;
}

static struct mixer random_mixer(const struct shape *s, int slots)
{
    struct mixer m = {.op = mixer_op_of(s), .channels = (size_t)(s->heads * s->d_v)};
    size_t kernels = m.channels * TAPS, weights = kernels * (size_t)s->generator;

    m.held = m.channels * (size_t)s->d_k;
    m.carried = m.channels * (TAPS - 1);
    m.w2 = random_activations(weights, 1.2 / sqrt(s->generator));
    m.w2_bias = random_floats(kernels, 0.3);
    m.a_log = random_floats((size_t)s->heads, 0.5);
    m.dt_bias = random_floats((size_t)s->heads, 1.0);
    m.norm_weight = random_floats((size_t)s->d_v, 1.0);
    m.op.w2 = put(m.w2, weights);
    m.op.w2_bias = put_floats(m.w2_bias, kernels);
    m.op.a_log = put_floats(m.a_log, (size_t)s->heads);
    m.op.dt_bias = put_floats(m.dt_bias, (size_t)s->heads);
    m.op.norm_weight = put_floats(m.norm_weight, (size_t)s->d_v);
    m.op.rows = poison((size_t)slots * m.carried);
    m.op.state = poison_raw((size_t)slots * m.held * sizeof(float));
    return m;
}

static float *run_mixer(const struct mixer *m, const struct ragged *batch, const float *projected)
{
    size_t tokens = (size_t)batch->tokens;
    struct jet_mixer_op op = m->op;

    op.batch = batch;
    op.projected = put(projected, tokens * (size_t)op.ld_projected);
    op.out = poison(tokens * m->channels);
    op.scratch = poison_raw(h.backend->jet_mixer_scratch(&op, batch->tokens));
    MUST(h.backend->jet_mixer(h.device, &op));
    return get(op.out, tokens * m->channels);
}

static double *reference_kernels(const struct mixer *m, const float *projected, int tokens)
{
    size_t kernels = m->channels * TAPS, depth = (size_t)m->op.generator;
    double *all = host_memory((size_t)tokens * kernels, sizeof(double));
    double *hidden = host_memory(depth, sizeof(double));

    for (int t = 0; t < tokens; t++) {
        for (size_t r = 0; r < depth; r++)
            hidden[r] = ref_silu(projected[t * m->op.ld_projected + m->op.w1_at + (int)r]);
        for (size_t i = 0; i < kernels; i++) {
            double sum = m->w2_bias[i];
            for (size_t r = 0; r < depth; r++)
                sum += hidden[r] * m->w2[i * depth + r];
            all[(size_t)t * kernels + i] = sum;
        }
    }
    return all;
}

/* model.md's steps 1 to 5 (without the output projection) over one sequence from nothing. */
static double *reference_mixer(const struct mixer *m, const float *projected, int tokens,
                               double *state)
{
    const struct jet_mixer_op *op = &m->op;
    const int heads = op->heads, d_k = op->d_k, d_v = op->d_v, channels = (int)m->channels;
    size_t n = (size_t)tokens, keys = n * (size_t)(heads * d_k), values = n * m->channels;
    double *q = host_memory(keys, 8), *k = host_memory(keys, 8);
    double *u = host_memory(values, 8), *v = host_memory(values, 8);
    double *g = host_memory(n * (size_t)heads, 8), *beta = host_memory(n * (size_t)heads, 8);
    double *o = host_memory(values, 8), *out = host_memory(values, 8);

    for (int i = 0; i < tokens * heads; i++) {
        const float *row = projected + i / heads * op->ld_projected;
        int head = i % heads;
        ref_head_norm(row + op->q_at + head * d_k, (size_t)d_k, op->head_epsilon, 1.0 / sqrt(d_k),
                      q + i * d_k);
        ref_head_norm(row + op->k_at + head * d_k, (size_t)d_k, op->head_epsilon, 1.0, k + i * d_k);
        g[i] = -exp(m->a_log[head]) * log1p(exp(row[op->a_at + head] + (double)m->dt_bias[head]));
        beta[i] = ref_sigmoid(row[op->b_at + head]);
    }
    for (int i = 0; i < tokens * channels; i++)
        u[i] = projected[i / channels * op->ld_projected + op->v_at + i % channels];
    ref_convolution(u, reference_kernels(m, projected, tokens), tokens, channels, TAPS, v);
    for (int head = 0; head < heads; head++)
        ref_delta(q + head * d_k, k + head * d_k, v + head * d_v, g + head, beta + head, tokens,
                  heads, d_k, d_v, state + head * d_k * d_v, o + head * d_v);
    for (int i = 0; i < tokens * heads; i++)
        ref_rms_norm(o + i * d_v, m->norm_weight, (size_t)d_v, op->norm_epsilon, out + i * d_v);
    for (int i = 0; i < tokens * channels; i++)
        out[i] *= ref_silu(projected[i / channels * op->ld_projected + op->gate_at + i % channels]);
    return out;
}

/* Steps of three sequences that all start from nothing: prompts beside a single token, then all
 * decode, then a prompt goes on beside decodes. */
enum { STEPS = 4, COURSES = 3, POOL = 5 };
static const int step_tokens[STEPS][COURSES] = {{1, 2, 70}, {1, 1, 1}, {1, 1, 1}, {1, 1, 66}};

/* All of a sequence's tokens. */
struct course {
    int total, done;
    float *projected; /* [total, ld_projected] */
    float *got;       /* [total, channels] */
};

static void run_step(const struct mixer *m, struct course *course, const int *tokens,
                     const int32_t *slots)
{
    struct sequence sequence[COURSES];
    size_t ld = (size_t)m->op.ld_projected;

    for (int s = 0; s < COURSES; s++)
        sequence[s] = (struct sequence){course[s].done, tokens[s]};
    struct ragged *batch = make_batch_at(sequence, COURSES, slots);
    float *projected = host_memory((size_t)batch->tokens * ld, sizeof(float));
    for (int s = 0; s < COURSES; s++)
        memcpy(projected + (size_t)batch->host_starts[s] * ld,
               course[s].projected + (size_t)course[s].done * ld,
               (size_t)tokens[s] * ld * sizeof(float));
    float *out = run_mixer(m, batch, projected);
    for (int s = 0; s < COURSES; s++) {
        memcpy(course[s].got + (size_t)course[s].done * m->channels,
               out + (size_t)batch->host_starts[s] * m->channels,
               (size_t)tokens[s] * m->channels * sizeof(float));
        course[s].done += tokens[s];
    }
}

static void check_mixer(const struct shape *shape)
{
    static const int32_t slots[] = {3, 0, 4};
    struct mixer m = random_mixer(shape, POOL);
    struct course course[COURSES];
    double *want[COURSES], *wide[COURSES], square = 0.0;
    size_t values = 0;

    for (int s = 0; s < COURSES; s++) {
        course[s] = (struct course){0};
        for (int step = 0; step < STEPS; step++)
            course[s].total += step_tokens[step][s];
        size_t tokens = (size_t)course[s].total;
        course[s].projected = random_activations(tokens * (size_t)m.op.ld_projected, 1.0);
        course[s].got = host_memory(tokens * m.channels, sizeof(float));
    }
    for (int step = 0; step < STEPS; step++)
        run_step(&m, course, step_tokens[step], slots);
    float *after = get_floats(m.op.state, POOL * m.held);
    for (int s = 0; s < COURSES; s++) {
        size_t count = (size_t)course[s].total * m.channels;
        wide[s] = host_memory(m.held, sizeof(double));
        want[s] = reference_mixer(&m, course[s].projected, course[s].total, wide[s]);
        assert_close("state", after + (size_t)slots[s] * m.held, wide[s], m.held, 1e-5, 2e-2);
        for (size_t i = 0; i < count; i++)
            square += want[s][i] * want[s][i];
        values += count;
    }
    /* Beside what a row is on average: of one whose q and k are orthogonal nothing is left. */
    for (int s = 0; s < COURSES; s++) {
        size_t count = (size_t)course[s].total * m.channels;
        assert_close_for("mixer", course[s].got, want[s], count,
                         sqrt(square * (double)count / (double)values), 2e-5, 3e-2);
    }
}

static void mixer_agrees_with_float64(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_mixer(&shapes[i]);
        harness_sweep(NULL);
    }
}

/* In pieces, beside another sequence, the bits are those of the whole sequence alone. */
static void mixer_has_the_same_bits_cut_and_in_company(void **state)
{
    enum { TOTAL = 90 };
    static const int cuts[] = {1, 2, 3, 1, 64, 19};
    const struct sequence whole = {0, TOTAL};
    const int32_t slots[] = {1, 0};
    struct mixer m = random_mixer(&shapes[0], 2);
    size_t ld = (size_t)m.op.ld_projected;
    float *projected = random_activations(TOTAL * ld, 1.0);
    float *company = random_activations((TOTAL + 1) * ld, 1.0);
    float *alone = run_mixer(&m, make_batch_at(&whole, 1, slots), projected);
    float *alone_state = get_floats(m.op.state + m.held, m.held);
    size_t done = 0;

    (void)state;
    if (!h.exact)
        skip();
    for (int i = 0; i < 6; i++) {
        const struct sequence both[] = {{7, 1}, {(int)done, cuts[i]}};
        const int32_t both_slots[] = {0, 1};
        size_t count = (size_t)cuts[i];
        memcpy(company + ld, projected + done * ld, count * ld * sizeof(float));
        float *got = run_mixer(&m, make_batch_at(both, 2, both_slots), company);
        assert_same_bits(got + m.channels, alone + done * m.channels, count * m.channels);
        done += count;
    }
    assert_int_equal(done, TOTAL);
    assert_same_bits(get_floats(m.op.state + m.held, m.held), alone_state, m.held);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(convolution_agrees_with_float64),
        TEST(mixer_agrees_with_float64),
        TEST(mixer_has_the_same_bits_cut_and_in_company),
    };

    return harness_run(tests);
}
