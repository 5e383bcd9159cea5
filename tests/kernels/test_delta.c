/* The gated delta rule: recurrence and chunks against float64, against each other, and cut. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/variant.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

/* Random inputs of the delta rule over packed tokens. */
struct scene {
    int heads, d_k, d_v, tokens;
    float *q, *k, *v, *g, *beta;
};

/* Rows of length `length`, as the head norm leaves them: with longer keys the rule may grow. */
static float *random_units(size_t rows, int width, double length)
{
    size_t count = rows * (size_t)width;
    float *values = random_floats(count, 1.0);

    for (size_t r = 0; r < rows; r++) {
        float *row = values + r * (size_t)width;
        double norm = sqrt(ref_dot(row, row, (size_t)width));
        for (int i = 0; i < width; i++)
            row[i] = (float)(row[i] / norm * length);
    }
    round_activations(values, count);
    return values;
}

/* `slow`: decays near 1, where errors live longest. */
static struct scene random_scene(int heads, int d_k, int d_v, int tokens, bool slow)
{
    size_t rows = (size_t)(tokens * heads);
    struct scene c = {.heads = heads, .d_k = d_k, .d_v = d_v, .tokens = tokens};

    c.q = random_units(rows, d_k, 1.0 / sqrt(d_k));
    c.k = random_units(rows, d_k, 1.0);
    c.v = random_activations(rows * (size_t)d_v, 1.0);
    c.g = random_floats(rows, slow ? 1e-3 : 0.5);
    c.beta = random_floats(rows, 1.0);
    for (size_t i = 0; i < rows; i++) {
        c.g[i] = -fabsf(c.g[i]);
        c.beta[i] = (float)ref_sigmoid(c.beta[i]);
    }
    return c;
}

/* The same without the first `tokens`. */
static struct scene scene_from(const struct scene *c, int tokens)
{
    struct scene rest = *c;

    rest.tokens -= tokens;
    rest.q += tokens * c->heads * c->d_k;
    rest.k += tokens * c->heads * c->d_k;
    rest.v += tokens * c->heads * c->d_v;
    rest.g += tokens * c->heads;
    rest.beta += tokens * c->heads;
    return rest;
}

/* Runs the first batch->tokens of the scene; chunk 0 is the recurrence. */
static float *run(const struct scene *c, const struct ragged *batch, float *state, int chunk)
{
    size_t rows = (size_t)(batch->tokens * c->heads), count = rows * (size_t)c->d_v;
    void *out = poison(count);
    struct delta_op op = {.batch = batch,
                          .heads = c->heads,
                          .d_k = c->d_k,
                          .d_v = c->d_v,
                          .q = put(c->q, rows * (size_t)c->d_k),
                          .k = put(c->k, rows * (size_t)c->d_k),
                          .v = put(c->v, count),
                          .g = put_floats(c->g, rows),
                          .beta = put_floats(c->beta, rows),
                          .state = state,
                          .out = out,
                          .chunk = chunk};

    if (chunk == 0)
        MUST(h.backend->delta_recurrent(h.device, &op));
    else
        MUST(h.backend->delta_chunked(h.device, &op));
    return get(out, count);
}

static double *doubles(const float *from, size_t count)
{
    double *to = host_memory(count, sizeof(double));

    for (size_t i = 0; i < count; i++)
        to[i] = from[i];
    return to;
}

/* float64 from `state` [heads, d_k, d_v] over `tokens`. */
static double *reference(const struct scene *c, int tokens, double *state)
{
    size_t rows = (size_t)(tokens * c->heads), size = (size_t)(c->d_k * c->d_v);
    double *q = doubles(c->q, rows * (size_t)c->d_k), *k = doubles(c->k, rows * (size_t)c->d_k);
    double *v = doubles(c->v, rows * (size_t)c->d_v), *g = doubles(c->g, rows);
    double *beta = doubles(c->beta, rows);
    double *out = host_memory(rows * (size_t)c->d_v, sizeof(double));

    for (int head = 0; head < c->heads; head++)
        ref_delta(q + head * c->d_k, k + head * c->d_k, v + head * c->d_v, g + head, beta + head,
                  tokens, c->heads, c->d_k, c->d_v, state + (size_t)head * size,
                  out + head * c->d_v);
    return out;
}

static const int chunks[] = {0, 1, 2, 3, 5, 64, 100};
enum { CHUNKS = sizeof(chunks) / sizeof(chunks[0]) };

/* Both forms over a ragged batch: states of other slots stay, new sequences start from zero. */
static void check_ragged(const struct scene *c, const struct sequence *sequence, int sequences,
                         int chunk)
{
    enum { SLOTS = 12 };
    size_t size = (size_t)(c->heads * c->d_k * c->d_v);
    float *pool = random_floats(SLOTS * size, 0.3);
    struct ragged *batch = make_batch(sequence, sequences, SLOTS);
    float *state = put_floats(pool, SLOTS * size);
    float *out = run(c, batch, state, chunk), *after = get_floats(state, SLOTS * size);
    bool used[SLOTS] = {false};
    size_t row = (size_t)(c->heads * c->d_v), rows = (size_t)batch->tokens;
    double *want = host_memory(rows * row, sizeof(double)), square = 0.0;

    for (int s = 0; s < sequences; s++) {
        int slot = batch->host_slots[s], start = batch->host_starts[s];
        struct scene part = scene_from(c, start);
        double *wide = sequence[s].context > 0 ? doubles(pool + (size_t)slot * size, size)
                                               : host_memory(size, sizeof(double));
        memcpy(want + (size_t)start * row, reference(&part, sequence[s].tokens, wide),
               (size_t)sequence[s].tokens * row * sizeof(double));
        used[slot] = true;
        assert_close("delta state", after + (size_t)slot * size, wide, size, 1e-5, 1e-2);
    }
    /* Beside what a row is on average: of one whose q and k are orthogonal nothing is left. */
    for (size_t i = 0; i < rows * row; i++)
        square += want[i] * want[i];
    for (int s = 0; s < sequences; s++) {
        size_t start = (size_t)batch->host_starts[s] * row;
        size_t tokens = (size_t)sequence[s].tokens;
        assert_close_for("delta output", out + start, want + start, tokens * row,
                         sqrt(square * (double)tokens / (double)rows), 1e-5, 2e-2);
    }
    for (size_t slot = 0; slot < SLOTS; slot++)
        if (!used[slot])
            assert_same_bits(after + slot * size, pool + slot * size, size);
}

static void both_forms_agree_with_float64(void **state)
{
    static const struct sequence sequence[] = {{0, 1}, {9, 1},  {4, 2},  {0, 3},
                                               {1, 5}, {0, 63}, {7, 64}, {0, 130}};
    static const int shapes[][3] = {{2, 24, 64}, {1, 96, 256}, {3, 16, 20}, {2, 128, 256}};

    (void)state;
    for (int i = 0; i < 4; i++) {
        for (int n = 0; n < CHUNKS; n++) {
            if (i == 3 && chunks[n] != 64)
                continue;
            struct scene c =
                random_scene(shapes[i][0], shapes[i][1], shapes[i][2], 269, (i + n) % 2 == 0);
            check_ragged(&c, sequence, 8, chunks[n]);
            harness_sweep(NULL);
        }
    }
}

/* Uniform decays of all tokens: -g - spread .. -g. */
static void scene_gates(struct scene *c, double g, double spread)
{
    for (int i = 0; i < c->tokens * c->heads; i++)
        c->g[i] = (float)(-g - spread * random_unit());
}

/* A back end may cut long sequences into segments when they are few, and join them by what each
 * does to its entering state: carried states, sequences too short to cut, ends inside a chunk,
 * decays that keep everything, something, or nothing of a segment. */
static void long_sequences_agree_with_float64(void **state)
{
    static const struct sequence sequence[] = {{3, 1},   {0, 2},    {900, 1500},
                                               {0, 130}, {0, 2750}, {5, 1088}};
    static const struct {
        int d_k;
        double g, spread;
    } cases[] = {{128, 0.0, 0.0}, {96, 0.0, 0.0}, {128, 0.0, 2e-3}, {96, 0.0, 2e-3},
                 {128, 0.1, 0.1}, {96, 0.1, 0.1}, {128, 8.0, 60.0}, {96, 0.05, 0.3}};
    enum { TOKENS = 1 + 2 + 1500 + 130 + 2750 + 1088 };

    (void)state;
    for (int i = 0; i < 8; i++) {
        struct scene c = random_scene(1, cases[i].d_k, 64, TOKENS, true);
        scene_gates(&c, cases[i].g, cases[i].spread);
        check_ragged(&c, sequence, 6, 64);
        harness_sweep(NULL);
    }
}

/* A sequence in pieces; the state is carried in slot 1 of 3, and handed back in *last. */
static float *run_pieces(const struct scene *c, const int *pieces, int count, int chunk,
                         float **last)
{
    size_t size = (size_t)(c->heads * c->d_k * c->d_v), row = (size_t)(c->heads * c->d_v);
    float *state = poison_raw(3 * size * sizeof(float));
    float *all = host_memory((size_t)c->tokens * row, sizeof(float));
    const int32_t slot = 1;
    int done = 0;

    for (int i = 0; i < count && done < c->tokens; i++) {
        struct sequence now = {done, pieces[i] < c->tokens - done ? pieces[i] : c->tokens - done};
        struct scene rest = scene_from(c, done);
        float *out = run(&rest, make_batch_at(&now, 1, &slot), state, chunk);
        memcpy(all + (size_t)done * row, out, (size_t)now.tokens * row * sizeof(float));
        done += now.tokens;
    }
    assert_int_equal(done, c->tokens);
    *last = get_floats(state + size, size);
    return all;
}

/* Batch-invariant, a long sequence is not cut by what lies beside it. */
static void a_long_sequence_has_the_same_bits_in_any_batch(void **state)
{
    enum { FIRST = 130, LONG = 1500, DK = 96, DV = 128 };
    static const struct sequence both[] = {{0, FIRST}, {7, LONG}}, one[] = {{7, LONG}};
    static const int32_t slots[] = {1, 0};
    struct scene c = random_scene(1, DK, DV, FIRST + LONG, true), rest = scene_from(&c, FIRST);
    float *before = random_floats(2 * DK * DV, 0.3);
    float *batched = put_floats(before, 2 * DK * DV), *alone = put_floats(before, 2 * DK * DV);
    float *many = run(&c, make_batch_at(both, 2, slots), batched, 64);
    float *single = run(&rest, make_batch_at(one, 1, slots + 1), alone, 64);

    (void)state;
    if (getenv("JETD_TEST_FAST") != NULL)
        skip();
    assert_same_bits(many + FIRST * DV, single, LONG * DV);
    assert_same_bits(get_floats(batched, DK * DV), get_floats(alone, DK * DV), DK * DV);
}

static void a_cut_recurrence_has_the_same_bits(void **state)
{
    static const int whole[] = {200}, cuts[] = {1, 2, 3, 1, 64, 5, 63, 61};
    struct scene c = random_scene(2, 24, 80, 200, true);
    float *state_whole, *state_cut;
    float *one = run_pieces(&c, whole, 1, 0, &state_whole);
    float *other = run_pieces(&c, cuts, 8, 0, &state_cut);

    (void)state;
    if (!h.exact)
        skip();
    assert_same_bits(one, other, 200 * 2 * 80);
    assert_same_bits(state_whole, state_cut, 2 * 24 * 80);
}

static void chunks_agree_with_the_recurrence_at_any_cut(void **state)
{
    static const int whole[] = {1000};
    static const int cuts[][8] = {
        {1, 1000}, {2, 1000}, {3, 1000}, {64, 1, 65, 2, 128, 3, 7, 1000}, {130, 1, 1, 1, 1000}};
    float *want_state, *got_state;

    (void)state;
    for (int n = 1; n < CHUNKS; n++) {
        for (int i = 0; i < 5; i++) {
            struct scene c = random_scene(1, 24, 64, random_int(140, 300), i % 2 == 0);
            size_t count = (size_t)(c.tokens * 64);
            float *want = run_pieces(&c, whole, 1, 0, &want_state);
            float *got = run_pieces(&c, cuts[i], 8, chunks[n], &got_state);
            assert_close("chunks", got, doubles(want, count), count, 1e-5, 2e-2);
            assert_close("state", got_state, doubles(want_state, 24 * 64), 24 * 64, 1e-5, 1e-2);
            harness_sweep(NULL);
        }
    }
}

/* Keys that point the same way make the chunk's triangular matrix as large as it gets; g far below
 * zero overflows exp(-G) if the differences are not taken first. */
static void chunks_hold_for_hard_inputs(void **state)
{
    static const int whole[] = {128};
    struct scene c = random_scene(1, 24, 64, 128, true);
    float *want_state, *got_state;

    (void)state;
    for (int t = 0; t < 128; t++) {
        memcpy(c.k + t * 24, c.k, 24 * sizeof(float));
        c.g[t] = t % 7 == 3 ? -60.0f : c.g[t];
        c.beta[t] = 0.999f;
    }
    float *want = run_pieces(&c, whole, 1, 0, &want_state);
    float *got = run_pieces(&c, whole, 1, 64, &got_state);
    assert_close("chunks", got, doubles(want, 128 * 64), 128 * 64, 1e-4, 3e-2);
    assert_close("state", got_state, doubles(want_state, 24 * 64), 24 * 64, 1e-4, 3e-2);
}

/* The carried state of 10,000 single steps against one chunked run. */
static void the_state_does_not_drift(void **state)
{
    enum { TOKENS = 10000, DK = 16, DV = 16 };
    struct scene c = random_scene(1, DK, DV, TOKENS, true);
    const int32_t slot = 0;
    const struct sequence all = {0, TOKENS};
    float *one = poison_raw(DK * DV * 4), *many = poison_raw(DK * DV * 4);
    double *wide = host_memory(DK * DV, sizeof(double));

    (void)state;
    run(&c, make_batch_at(&all, 1, &slot), many, 64);
    run(&c, make_batch_at(&all, 1, &slot), one, 0);
    reference(&c, TOKENS, wide);
    assert_close("recurrence", get_floats(one, DK * DV), wide, DK * DV, 1e-5, 1e-5);
    assert_close("chunks", get_floats(many, DK * DV), wide, DK * DV, 1e-5, 1e-2);
}

/* Built for another instruction set, both forms give what the device gives. */
static void every_instruction_set_gives_the_same(void **state)
{
    static const struct variant *const variants[] = {
        &variant_plain,
#if defined(__x86_64__)
        &variant_avx2,
        &variant_avx512,
#endif
    };
    enum { TOKENS = 70, HEADS = 2, DK = 24, DV = 72, COUNT = TOKENS * HEADS * DV };
    static const int32_t starts[] = {0, TOKENS}, zero[] = {0};
    const struct ragged batch = {
        .sequences = 1, .tokens = TOKENS, .starts = starts, .slots = zero, .contexts = zero};
    struct scene c = random_scene(HEADS, DK, DV, TOKENS, false);
    double *wide = host_memory(HEADS * DK * DV, sizeof(double));
    double *want = reference(&c, TOKENS, wide);
    float *out = host_memory(COUNT, 4), *first = host_memory(COUNT, 4);

    (void)state;
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        struct delta_op op = {.batch = &batch,
                              .heads = HEADS,
                              .d_k = DK,
                              .d_v = DV,
                              .q = c.q,
                              .k = c.k,
                              .v = c.v,
                              .g = c.g,
                              .beta = c.beta,
                              .state = host_memory(HEADS * DK * DV, 4),
                              .out = out,
                              .chunk = 32};
#if defined(__x86_64__)
        if ((i == 1 && !__builtin_cpu_supports("fma")) ||
            (i == 2 && !__builtin_cpu_supports("avx512f")))
            continue;
#endif
        variants[i]->delta_chunked(&op, 0, HEADS);
        assert_close("chunks", out, want, COUNT, 1e-5, 1e-5);
        variants[i]->delta_recurrent(&op, 0, HEADS);
        assert_close("recurrence", out, want, COUNT, 1e-5, 1e-5);
        if (i == 0)
            memcpy(first, out, COUNT * sizeof(float));
        assert_same_bits(out, first, COUNT);
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(both_forms_agree_with_float64),
        TEST(long_sequences_agree_with_float64),
        TEST(a_long_sequence_has_the_same_bits_in_any_batch),
        TEST(a_cut_recurrence_has_the_same_bits),
        TEST(chunks_agree_with_the_recurrence_at_any_cut),
        TEST(chunks_hold_for_hard_inputs),
        TEST(the_state_does_not_drift),
        TEST(every_instruction_set_gives_the_same),
    };

    return harness_run(tests);
}
