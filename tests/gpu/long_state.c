/* The fp32 state of a jet mixer after 10,000 decoded tokens, one by one as a decode step runs them,
 * and in one chunked step, against float64. The generator's second matrix is zero, so that the
 * convolution's kernels are its bias exactly and nothing but fp32 arithmetic lies between the
 * inputs and the state. Shapes of the published models, one head: with JETD_TEST_FAST the form for
 * few sequences, without it the form of a block a head. Exit code 77: no GPU. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

enum { TOKENS = 10000, DV = 256, TAPS = 4, R = 32, SKIPPED = 77 };

struct scene {
    int d_k, q_at, k_at, v_at, gate_at, w1_at, a_at, b_at, ld;
    float *projected; /* [TOKENS, ld] */
    float *bias, a_log, dt_bias, *weight;
};

static struct scene random_scene(int d_k)
{
    struct scene s = {.d_k = d_k, .k_at = d_k, .v_at = 2 * d_k};
    s.gate_at = s.v_at + DV;
    s.w1_at = s.gate_at + DV;
    s.a_at = s.w1_at + R;
    s.b_at = s.a_at + 1;
    s.ld = s.w1_at + R + 8;
    s.projected = random_activations((size_t)(TOKENS * s.ld), 1.0);
    s.bias = random_floats((size_t)(DV * TAPS), 0.5);
    s.a_log = -2.5f; /* exp(g) near 0.998: the state remembers hundreds of tokens */
    s.dt_bias = -4.0f;
    s.weight = random_floats((size_t)DV, 1.0);
    return s;
}

/* model.md's steps 1 to 4 in float64; state [d_k, DV]. */
static void reference(const struct scene *s, double *state)
{
    double q[128], k[128], v[DV], out[DV];
    for (int t = 0; t < TOKENS; t++) {
        const float *row = s->projected + (size_t)t * (size_t)s->ld;
        ref_head_norm(row + s->q_at, (size_t)s->d_k, 1e-6, 1 / sqrt(s->d_k), q);
        ref_head_norm(row + s->k_at, (size_t)s->d_k, 1e-6, 1, k);
        for (int c = 0; c < DV; c++) {
            double sum = 0;
            for (int w = 0; w < TAPS && t - w >= 0; w++)
                sum += (double)s->bias[c * TAPS + TAPS - 1 - w] * row[s->v_at + c - w * s->ld];
            v[c] = ref_silu(sum);
        }
        double g = -exp(s->a_log) * log1p(exp(row[s->a_at] + (double)s->dt_bias));
        double beta = ref_sigmoid(row[s->b_at]);
        ref_delta(q, k, v, &g, &beta, 1, 1, s->d_k, DV, state, out);
    }
}

static void run(struct jet_mixer_op *op, const struct ragged *batch, const void *projected)
{
    op->batch = batch;
    op->projected = projected;
    MUST(h.backend->jet_mixer(h.device, op));
}

static void state_holds(int d_k)
{
    struct scene s = random_scene(d_k);
    size_t held = (size_t)(d_k * DV), pool = (TAPS - 1) * DV, width = sizeof(float);
    const struct sequence first = {0, 1}, later = {1, 1}, all = {0, TOKENS};
    const int32_t slots[] = {1, 0};
    double *wide = host_memory(held, sizeof(double));
    float *w2 = host_memory((size_t)(DV * TAPS * R), sizeof(float));
    void *rows = poison(2 * pool);
    float *state = poison_raw(2 * held * width);
    struct jet_mixer_op op = {.heads = 1,
                              .d_k = d_k,
                              .d_v = DV,
                              .taps = TAPS,
                              .generator = R,
                              .head_epsilon = 1e-6f,
                              .norm_epsilon = 1e-5f,
                              .ld_projected = s.ld,
                              .q_at = s.q_at,
                              .k_at = s.k_at,
                              .v_at = s.v_at,
                              .gate_at = s.gate_at,
                              .w1_at = s.w1_at,
                              .a_at = s.a_at,
                              .b_at = s.b_at,
                              .w2 = put(w2, (size_t)(DV * TAPS * R)),
                              .w2_bias = put_floats(s.bias, (size_t)(DV * TAPS)),
                              .a_log = put_floats(&s.a_log, 1),
                              .dt_bias = put_floats(&s.dt_bias, 1),
                              .norm_weight = put_floats(s.weight, DV),
                              .rows = rows,
                              .state = state,
                              .out = poison((size_t)TOKENS * DV)};
    const struct ragged *start = make_batch_at(&first, 1, slots);
    const struct ragged *step = make_batch_at(&later, 1, slots);
    const struct ragged *whole = make_batch_at(&all, 1, slots + 1);
    void *projected = put(s.projected, (size_t)(TOKENS * s.ld));
    op.scratch = poison_raw(h.backend->jet_mixer_scratch(&op, TOKENS));
    size_t row = (size_t)s.ld * dtype_size(h.backend->activation);
    void *token = poison((size_t)s.ld);
    for (int t = 0; t < TOKENS; t++) {
        /* A transfer, as kernels.h asks for between two calls on one state. */
        MUST(h.backend->copy(h.device, token, (char *)projected + (size_t)t * row, row));
        run(&op, t == 0 ? start : step, token);
    }
    run(&op, whole, projected);
    reference(&s, wide);
    float *after = get_floats(state, 2 * held);
    double difference = 0, norm = 0, chunked = 0;
    for (size_t i = 0; i < held; i++) {
        difference += (after[held + i] - wide[i]) * (after[held + i] - wide[i]);
        chunked += (after[i] - wide[i]) * (after[i] - wide[i]);
        norm += wide[i] * wide[i];
    }
    printf("d_k %d: state after %d steps %.2e, after one chunked step %.2e from float64\n", d_k,
           TOKENS, sqrt(difference / norm), sqrt(chunked / norm));
    assert_close("steps", after + held, wide, held, 1e-5, 1e-5);
    assert_close("chunks", after, wide, held, 1e-5, 2e-2);
}

static void state_holds_at_96(void **state)
{
    (void)state;
    state_holds(96);
}

static void state_holds_at_128(void **state)
{
    (void)state;
    state_holds(128);
}

int main(void)
{
    const char *name = getenv("JETD_TEST_DEVICE");
    const struct backend *backend = backend_find(name != NULL ? name : "cpu");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(state_holds_at_96, harness_sweep),
        cmocka_unit_test_teardown(state_holds_at_128, harness_sweep),
    };
    if (backend == NULL || (backend->devices != NULL && backend->devices() == 0)) {
        fprintf(stderr, "long_state: no GPU: skipped\n");
        return SKIPPED;
    }
    return harness_run(tests);
}
