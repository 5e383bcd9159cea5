/* Embedding, matrix products, activations, norms, rotary embedding, gates. */
#include <float.h>
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

/* ---- gemm ---- */

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
            want[r * p->columns + c] = ref_dot(x, w, (size_t)p->depth) + bias;
            square += ref_dot_square(x, w, (size_t)p->depth) + bias * bias;
        }
    }
    /* Tensor cores cut a sum's last bits off at every 16 of the depth. */
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
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes && h.backend->gemm_fuses != NULL; s++) {
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

static float *run_prepared(const struct product *p, const char *file)
{
    int choices, again;
    struct device *shared = device_with(file);
    struct gemm_op op = product_op(p);

    MUST(h.backend->gemm_prepare(h.device, &op, 1, &choices));
    MUST(h.backend->gemm_prepare(h.device, &op, 1, &again));
    assert_true(choices > 0 && again == 0);
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
        return;
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
        return;
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
        TEST(gemm_agrees_with_float64),
        TEST(aligned_gemm_agrees_with_float64),
        TEST(fused_gemm_agrees_with_float64),
        TEST(choices_are_kept_between_devices),
        TEST(every_form_agrees_with_float64),
        TEST(gemm_agrees_with_openblas),
        TEST(gemm_row_has_the_same_bits_in_any_batch),
        TEST(aligned_gemm_row_has_the_same_bits_in_any_batch),
        TEST(gemm_column_has_the_same_bits_in_any_shard),
        TEST(gemm_is_right_for_every_instruction_set),
        TEST(silu_and_swiglu),
        TEST(gate_up_agrees_with_float64),
        TEST(rms_norm_adds_and_scales),
        TEST(head_norm_is_silu_then_unit_length),
        TEST(gated_norm_per_head),
        TEST(rope_rotates_halves),
        TEST(gates_over_a_wide_range),
    };

    return cmocka_run_group_tests(tests, harness_open, harness_close);
}
