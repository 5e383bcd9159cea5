/* Matrix products in every form, against float64. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cblas.h>

#include "kernels/cpu/variant.h"
#include "kernels/picks.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

static const int row_counts[] = {1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 50};
enum { ROW_COUNTS = sizeof(row_counts) / sizeof(row_counts[0]) };

struct product {
    int rows, columns, depth, ld_x, ld_out;
    bool biased, float_out;
    float *x, *weight, *bias;
};

static struct product random_product(int rows, int columns, int depth, bool biased)
{
    struct product p = {
        rows, columns, depth, depth + random_int(0, 5), columns + random_int(0, 3), biased, false,
        NULL, NULL,    NULL};

    p.x = random_activations((size_t)rows * (size_t)p.ld_x, 1.0);
    p.weight = random_activations((size_t)columns * (size_t)depth, 1.0);
    p.bias = random_floats((size_t)columns, 1.0);
    return p;
}

/* On the device. */
static struct gemm_op product_op(const struct product *p)
{
    size_t count = (size_t)p->rows * (size_t)p->ld_out;

    return (struct gemm_op){.rows = p->rows,
                            .columns = p->columns,
                            .depth = p->depth,
                            .ld_x = p->ld_x,
                            .ld_out = p->ld_out,
                            .x = put(p->x, (size_t)p->rows * (size_t)p->ld_x),
                            .weight = put(p->weight, (size_t)p->columns * (size_t)p->depth),
                            .bias = p->biased ? put_floats(p->bias, (size_t)p->columns) : NULL,
                            .out = p->float_out ? poison_raw(count * sizeof(float)) : poison(count),
                            .float_out = p->float_out};
}

static float *run_product(const struct product *p)
{
    struct gemm_op op = product_op(p);
    size_t count = (size_t)p->rows * (size_t)p->ld_out;

    MUST(h.backend->gemm(h.device, &op));
    return p->float_out ? get_floats(op.out, count) : get(op.out, count);
}

static void check_product(const struct product *p)
{
    float *got = run_product(p);
    size_t count = (size_t)p->rows * (size_t)p->columns;
    float *packed = host_memory(count, sizeof(float));
    double *want = host_memory(count, sizeof(double)), square = 0.0;

    for (int r = 0; r < p->rows; r++) {
        for (int c = 0; c < p->ld_out; c++) {
            float value = got[r * p->ld_out + c];
            if (c >= p->columns) {
                assert_true(isnan(value)); /* between the rows nothing is written */
                continue;
            }
            const float *x = p->x + r * p->ld_x, *w = p->weight + c * p->depth;
            double bias = p->biased ? p->bias[c] : 0.0;
            packed[r * p->columns + c] = value;
            double sum = ref_dot(x, w, (size_t)p->depth) + bias;
            want[r * p->columns + c] = sum;
            square += ref_dot_square(x, w, (size_t)p->depth) + bias * bias + sum * sum;
        }
    }
    /* Of the terms' size, and of the sum's, which is rounded too. Tensor cores cut a sum's last
     * bits off at every 16 of the depth. */
    double wide = p->depth > 4096 ? 1e-5 * p->depth / 4096 : 1e-5;
    assert_close_for("gemm", packed, want, count, sqrt(square), 1e-6, p->float_out ? wide : 5e-3);
}

static void gemm_agrees_with_float64(void **state)
{
    static const int depths[] = {1, 15, 16, 24, 64, 96, 100, 512, 1100};

    (void)state;
    for (int i = 0; i < ROW_COUNTS; i++) {
        for (size_t d = 0; d < sizeof(depths) / sizeof(depths[0]); d++) {
            struct product p =
                random_product(row_counts[i], random_int(1, 40), depths[d], d % 2 == 0);
            p.float_out = d % 3 == 0;
            check_product(&p);
            harness_sweep(NULL);
        }
    }
}

/* What a back end may give its fast forms: aligned rows and whole tiles of columns at the models'
 * depths, for few rows and for more. Wide ones give each of a GPU's multiprocessors more than one
 * piece of the weights. */
static void aligned_gemm_agrees_with_float64(void **state)
{
    static const struct {
        int columns, depth;
    } shapes[] = {{64, 2048},  {128, 4096}, {64, 8960},   {64, 11008},
                  {4352, 512}, {4416, 384}, {2176, 2048}, {2240, 4096}};
    static const int rows[] = {1, 2, 8, 9, 16, 64};
    enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]), NARROW = 4 };

    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        struct product p = random_product(64, shapes[i].columns, shapes[i].depth, false);
        p.ld_x = p.depth;
        p.ld_out = p.columns;
        for (int n = 0; n < 6; n++) {
            if (i >= NARROW && rows[n] != 1 && rows[n] != 9)
                continue;
            p.rows = rows[n];
            p.biased = (i + n) % 2 == 0;
            p.float_out = (i + n) % 3 == 0;
            check_product(&p);
        }
        harness_sweep(NULL);
    }
}

/* norm(x) W^T + old, either left out; false where the back end does not fuse that. */
static bool check_fused(const struct product *p, bool normed, bool added)
{
    size_t count = (size_t)p->rows * (size_t)p->columns, depth = (size_t)p->depth;
    size_t spread = (size_t)p->rows * (size_t)p->ld_out;
    float *norm = random_floats(depth, 1.0), *old = random_activations(spread, 1.0);
    float *packed = host_memory(count, sizeof(float));
    double *want = host_memory(count, sizeof(double)), square = 0.0;
    double *wide = host_memory(depth, sizeof(double)), *x = host_memory(depth, sizeof(double));
    struct gemm_op op = product_op(p);

    op.norm = normed ? put_floats(norm, depth) : NULL;
    op.epsilon = 1e-6f;
    op.add = added;
    if (added)
        op.out = put(old, spread);
    if (!h.backend->gemm_fuses(h.device, &op))
        return false;
    MUST(h.backend->gemm(h.device, &op));
    float *got = p->float_out ? get_floats(op.out, spread) : get(op.out, spread);
    for (int r = 0; r < p->rows; r++) {
        for (size_t i = 0; i < depth; i++)
            x[i] = wide[i] = p->x[(size_t)r * (size_t)p->ld_x + i];
        if (normed)
            ref_rms_norm(wide, norm, depth, op.epsilon, x);
        for (int c = 0; c < p->ld_out; c++) {
            float value = got[r * p->ld_out + c], before = old[r * p->ld_out + c];
            if (c >= p->columns) { /* between the rows nothing is written */
                assert_true(added ? value == before : isnan(value));
                continue;
            }
            double sum = (p->biased ? p->bias[c] : 0.0) + (added ? before : 0.0);
            square += sum * sum;
            for (size_t i = 0; i < depth; i++) {
                double term = x[i] * p->weight[(size_t)c * depth + i];
                sum += term;
                square += term * term;
            }
            packed[r * p->columns + c] = value;
            want[r * p->columns + c] = sum;
        }
    }
    assert_close_for("fused gemm", packed, want, count, sqrt(square), 1e-5, 6e-3);
    return true;
}

/* Shares of the columns that end within a stage, depths that end within a piece. */
static void fused_gemm_agrees_with_float64(void **state)
{
    static const struct {
        int columns, depth;
    } shapes[] = {{101, 32},    {130, 64},   {2177, 384}, {1100, 512},
                  {1064, 1536}, {263, 2048}, {77, 3104},  {136, 8960}};
    static const int rows[] = {1, 2, 3, 4, 8, 17};
    int ran = 0;

    (void)state;
    if (h.backend->gemm_fuses == NULL)
        skip();
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct product p = random_product(17, shapes[s].columns, shapes[s].depth, s % 2 == 0);
        p.ld_x = p.depth + 8 * (int)(s % 2);
        p.x = random_activations((size_t)p.rows * (size_t)p.ld_x, 2.0);
        for (int n = 0; n < 6; n++) {
            p.rows = rows[n];
            p.float_out = (s + (size_t)n) % 2 == 0;
            ran += check_fused(&p, true, false);
            p.float_out = false;
            ran += check_fused(&p, false, true);
            ran += check_fused(&p, true, true);
        }
        harness_sweep(NULL);
    }
    assert_true(ran > 0 || h.exact || getenv("JETD_TEST_FAST") == NULL);
}

/* A device of its own, which reads and writes the file of choices; returns the shared one. */
static struct device *device_with(const char *file)
{
    struct device_options options = {
        .threads = 1, .max_tokens = 4096, .max_sequences = 64, .gemm_cache = file};
    struct device *shared = h.device;
    struct error error = {0};

    assert_int_equal(h.kept_count, 0);
    MUST(h.backend->open(&options, &h.device, &error));
    return shared;
}

static void device_back(struct device *shared)
{
    while (h.kept_count > 0)
        h.backend->release(h.device, h.kept[--h.kept_count]);
    h.backend->close(h.device);
    h.device = shared;
}

static int choices_for(const struct prepare_op *op)
{
    int choices;

    MUST(h.backend->gemm_prepare(h.device, op, 1, &choices));
    return choices;
}

static float *run_prepared(const struct product *p, const char *file)
{
    struct device *shared = device_with(file);
    const struct prepare_op op = {.least = 1, .gemm = product_op(p)};

    assert_true(choices_for(&op) > 0);
    assert_int_equal(choices_for(&op), 0);
    float *got = run_product(p);
    device_back(shared);
    return got;
}

/* A second device finds the first one's choices in the file: it times nothing, so that the file
 * stays the one it was, and gives the same bits. */
static void choices_are_kept_between_devices(void **state)
{
    char folder[] = "/tmp/kernels_dense.XXXXXX", file[sizeof(folder) + 16];
    struct stat first, second;

    (void)state;
    if (h.backend->gemm_prepare == NULL)
        skip();
    assert_non_null(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/products", folder);
    struct product p = random_product(200, 2176, 2048, true);
    p.ld_x = p.depth;
    p.ld_out = p.columns;
    float *one = run_prepared(&p, file);
    assert_int_equal(stat(file, &first), 0);
    float *other = run_prepared(&p, file);
    assert_int_equal(stat(file, &second), 0);
    assert_true(first.st_ino == second.st_ino);
    assert_same_bits(one, other, 200 * 2176);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(folder), 0);
}

/* Of a gated MLP only the product of row counts that no fused form takes is timed; and no call
 * makes another choice, which would be missing of those that the whole product still has to make.
 */
static void choices_are_those_that_gate_up_asks_for(void **state)
{
    enum { ROWS = 2200, COLUMNS = 5632, DEPTH = 512 }; /* as wide as streams take */
    static const int rows[] = {1,  3,   4,   5,   8,   16,   17,   32,  33,
                               64, 100, 128, 129, 700, 2048, 2049, ROWS};
    int asked[2], left[2];

    (void)state;
    if (h.backend->gemm_prepare == NULL)
        skip();
    for (int ran = 0; ran < 2; ran++) {
        struct device *shared = device_with(NULL);
        struct product p = random_product(ROWS, 2 * COLUMNS, DEPTH, false);
        p.ld_x = DEPTH;
        p.ld_out = 2 * COLUMNS;
        const struct prepare_op whole = {.least = 1, .gemm = product_op(&p)};
        struct prepare_op half = {.kind = PREPARE_GATE_UP,
                                  .least = 1,
                                  .gate_up = {.rows = ROWS,
                                              .columns = COLUMNS,
                                              .depth = DEPTH,
                                              .ld_x = DEPTH,
                                              .x = whole.gemm.x,
                                              .weight = whole.gemm.weight,
                                              .scratch = poison((size_t)(2 * ROWS * COLUMNS)),
                                              .out = poison((size_t)(ROWS * COLUMNS))}};
        asked[ran] = choices_for(&half);
        for (size_t i = 0; ran == 1 && i < sizeof rows / sizeof *rows; i++) {
            half.gate_up.rows = rows[i];
            MUST(h.backend->gate_up(h.device, &half.gate_up));
        }
        half.gate_up.rows = ROWS;
        assert_int_equal(choices_for(&half), 0);
        left[ran] = choices_for(&whole);
        device_back(shared);
        harness_sweep(NULL);
    }
    assert_true(asked[0] > 0 && left[0] > 0);
    assert_int_equal(asked[1], asked[0]);
    assert_int_equal(left[1], left[0]);
}

/* What a file of choices says for a form of a back end: the form that takes `p`, if it can. */
static void pick_form(struct picks *picks, const struct product *p, int row_class, int form)
{
    struct pick pick = {.columns = p->columns,
                        .depth = p->depth,
                        .row_class = row_class,
                        .float_out = p->float_out,
                        .bias = p->biased,
                        .form = form};

    assert_true(picks_add(picks, &pick));
}

/* Through a file that names them. The products' weights are of few and of many pieces, and their
 * depths end within a piece; a product that a form does not take gets another. */
static void every_form_agrees_with_float64(void **state)
{
    enum { FORMS = 6, SHAPES = 5, CLASSES = 5, ALL = FORMS * SHAPES * CLASSES };
    static const struct {
        int columns, depth;
    } shapes[SHAPES] = {{600, 264}, {320, 1032}, {336, 64}, {2048, 520}, {25600, 72}};
    static const int rows[CLASSES] = {9, 17, 50, 91, 127}, classes[CLASSES] = {16, 32, 64, 96, 128};
    char folder[] = "/tmp/kernels_dense.XXXXXX", file[sizeof(folder) + 16];
    struct picks *picks = calloc(1, sizeof(*picks));
    struct product *all = calloc(ALL, sizeof(*all));
    struct error error = {0};
    int count = 0, choices;

    (void)state;
    if (h.backend->gemm_prepare == NULL) {
        free(picks);
        free(all);
        skip();
    }
    assert_non_null(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/products", folder);
    struct product small = {.rows = 1, .columns = 64, .depth = 64, .ld_x = 64, .ld_out = 64};
    small.x = random_activations(64, 1.0);
    small.weight = random_activations(64 * 64, 1.0);
    (void)run_prepared(&small, file); /* a file with this device's heading */
    MUST(picks_load(file, picks, &error));
    for (int i = 0; i < ALL; i++) {
        int form = i % FORMS, s = i / FORMS % SHAPES, c = i / FORMS / SHAPES;
        if (s > 2 && c != (s + form) % 3) /* the reference takes long */
            continue;
        struct product p = {.rows = rows[c],
                            .columns = shapes[s].columns + 8 * form,
                            .depth = shapes[s].depth,
                            .ld_x = shapes[s].depth + 8 * (i % 2),
                            .biased = i % 5 < 2,
                            .float_out = i % 7 < 2};
        p.ld_out = p.columns + 8 * (i % 3);
        pick_form(picks, &p, classes[c], form);
        all[count++] = p;
    }
    MUST(picks_save(file, picks, &error));
    harness_sweep(NULL);
    struct device *shared = device_with(file);
    MUST(h.backend->gemm_prepare(h.device, NULL, 0, &choices)); /* reads the file */
    for (int i = 0; i < count; i++) {
        struct product *p = &all[i];
        p->x = random_activations((size_t)p->rows * (size_t)p->ld_x, 1.0);
        p->weight = random_activations((size_t)p->columns * (size_t)p->depth, 1.0);
        p->bias = random_floats((size_t)p->columns, 1.0);
        check_product(p);
        float *once = run_product(p), *twice = run_product(p);
        assert_same_bits(once, twice, (size_t)p->rows * (size_t)p->ld_out);
        harness_sweep(NULL);
    }
    device_back(shared);
    free(picks);
    free(all);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(folder), 0);
}

static void gemm_agrees_with_openblas(void **state)
{
    struct product p = random_product(40, 130, 777, false);
    float *got = run_product(&p), *other = host_memory((size_t)(40 * p.ld_out), sizeof(float));
    double *want = host_memory(40 * 130, sizeof(double));
    float *packed = host_memory(40 * 130, sizeof(float));

    (void)state;
    openblas_set_num_threads(1);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, 40, 130, 777, 1.0f, p.x, p.ld_x, p.weight,
                777, 0.0f, other, p.ld_out);
    for (int i = 0; i < 40 * 130; i++) {
        packed[i] = got[i / 130 * p.ld_out + i % 130];
        want[i] = other[i / 130 * p.ld_out + i % 130];
    }
    assert_close("gemm, OpenBLAS", packed, want, 40 * 130, 2e-6, 5e-3);
}

static void gemm_row_has_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    for (int i = 0; i < ROW_COUNTS && h.invariant; i++) {
        struct product p =
            random_product(row_counts[i], random_int(1, 40), random_int(1, 1300), true);
        float *all = run_product(&p);
        for (int r = 0; r < p.rows; r++) {
            struct product one = p;
            one.rows = 1;
            one.x = p.x + r * p.ld_x;
            assert_same_bits(run_product(&one), all + r * p.ld_out, (size_t)p.columns);
        }
        harness_sweep(NULL);
    }
}

/* The first `rows` of p by themselves, and its last one alone. */
static void check_part_of_batch(const struct product *p, const float *all, int rows)
{
    struct product part = *p;

    part.rows = rows;
    float *got = run_product(&part);
    for (int r = 0; r < rows; r++)
        assert_same_bits(got + r * p->ld_out, all + r * p->ld_out, (size_t)p->columns);
    part.rows = 1;
    part.x = p->x + (rows - 1) * p->ld_x;
    got = run_product(&part);
    assert_same_bits(got, all + (rows - 1) * p->ld_out, (size_t)p->columns);
}

/* Aligned, so that a back end may have other forms for other row counts; wide enough for the
 * largest to be worth while. */
static void aligned_gemm_row_has_the_same_bits_in_any_batch(void **state)
{
    static const struct {
        int columns, depth, ld_out;
        bool biased, float_out;
    } shapes[] = {{5640, 264, 5640, true, false},
                  {6001, 72, 6003, true, false},
                  {5637, 328, 5638, true, true},
                  {1600, 264, 1600, false, false},
                  {96, 2048, 96, false, false}};
    static const int parts[] = {1, 9, 64, 65, 129, 256};

    (void)state;
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]) && h.invariant; s++) {
        struct product p = random_product(515, shapes[s].columns, shapes[s].depth, true);
        p.biased = shapes[s].biased;
        p.float_out = shapes[s].float_out;
        p.ld_x = p.depth;
        p.ld_out = shapes[s].ld_out;
        float *all = run_product(&p);
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
            check_part_of_batch(&p, all, parts[i]);
        if (!h.exact)
            check_product(&p);
        harness_sweep(NULL);
    }
}

/* A weight shard gives the same columns as the whole. */
static void gemm_column_has_the_same_bits_in_any_shard(void **state)
{
    struct product p = random_product(9, 37, 300, false), shard = p;

    (void)state;
    if (!h.invariant)
        return;
    float *all = run_product(&p);
    shard.columns = 14;
    shard.ld_out = 14;
    shard.weight = p.weight + 23 * p.depth;
    float *part = run_product(&shard);
    for (int r = 0; r < 9; r++)
        assert_same_bits(part + r * 14, all + r * p.ld_out + 23, 14);
}

static bool variant_runs(const struct variant *variant)
{
#if defined(__x86_64__)
    if (strcmp(variant->name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f");
    if (strcmp(variant->name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

static const struct variant *const variants[] = {
    &variant_plain,
#if defined(__x86_64__)
    &variant_avx2,
    &variant_avx512,
#endif
};

static void gemm_is_right_for_every_instruction_set(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        for (int n = 0; n < ROW_COUNTS && variant_runs(variants[i]); n++) {
            int rows = row_counts[n], columns = random_int(1, 20), depth = random_int(1, 700);
            size_t count = (size_t)(rows * columns);
            float *x = random_floats((size_t)(rows * depth), 1.0);
            float *w = random_floats((size_t)(columns * depth), 1.0);
            float *out = host_memory(count, sizeof(float)),
                  *one = host_memory(count, sizeof(float));
            double *want = host_memory(count, sizeof(double)), square = 0.0;
            struct gemm_op op = {.rows = rows,
                                 .columns = columns,
                                 .depth = depth,
                                 .ld_x = depth,
                                 .ld_out = columns,
                                 .x = x,
                                 .weight = w,
                                 .out = out};
            variants[i]->gemm(&op, 0, columns);
            for (int k = 0; k < rows * columns; k++) {
                const float *row = x + k / columns * depth, *column = w + k % columns * depth;
                want[k] = ref_dot(row, column, (size_t)depth);
                square += ref_dot_square(row, column, (size_t)depth);
            }
            for (int r = 0; r < rows; r++) {
                struct gemm_op single = op;
                single.rows = 1;
                single.x = x + r * depth;
                single.out = one + r * columns;
                variants[i]->gemm(&single, 0, columns);
            }
            bool exact = h.exact;
            h.exact = true;
            assert_close_for(variants[i]->name, out, want, count, sqrt(square), 1e-6, 0.0);
            h.exact = exact;
            assert_same_bits(one, out, count);
            harness_sweep(NULL);
        }
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(gemm_agrees_with_float64),
        TEST(aligned_gemm_agrees_with_float64),
        TEST(fused_gemm_agrees_with_float64),
        TEST(choices_are_kept_between_devices),
        TEST(choices_are_those_that_gate_up_asks_for),
        TEST(every_form_agrees_with_float64),
        TEST(gemm_agrees_with_openblas),
        TEST(gemm_row_has_the_same_bits_in_any_batch),
        TEST(aligned_gemm_row_has_the_same_bits_in_any_batch),
        TEST(gemm_column_has_the_same_bits_in_any_shard),
        TEST(gemm_is_right_for_every_instruction_set),
    };

    return harness_run(tests);
}
