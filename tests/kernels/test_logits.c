/* Summaries, picks, tops and histograms of logits, whole and over vocabulary shards. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

enum { ROWS = 3, VOCABULARY = 1003 };

/* Where a vocabulary is cut; the shard in the middle is empty. */
static const int cuts[] = {0, 400, 400, 401, VOCABULARY};
enum { SHARDS = 4 };

static float *shard_of(const float *logits, int shard)
{
    int columns = cuts[shard + 1] - cuts[shard];
    float *part = host_memory((size_t)(ROWS * columns), sizeof(float));

    for (int r = 0; r < ROWS; r++)
        memcpy(part + r * columns, logits + r * VOCABULARY + cuts[shard],
               (size_t)columns * sizeof(float));
    return put_floats(part, (size_t)(ROWS * columns));
}

/* Values with many ties. */
static float *tied_logits(void)
{
    float *logits = random_floats(ROWS * VOCABULARY, 3.0);

    for (int i = 0; i < ROWS * VOCABULARY; i++)
        logits[i] = roundf(logits[i] * 8.0f) / 8.0f;
    return logits;
}

static struct logit_summary *summarise(const float *device_logits, int first, int columns)
{
    struct logit_summary *out = poison_raw(ROWS * sizeof(*out));

    MUST(h.backend->logit_summary(
        h.device, &(struct logit_summary_op){ROWS, columns, first, device_logits, out}));
    return get_raw(out, ROWS * sizeof(*out));
}

static void summary_merges_over_shards(void **state)
{
    float *logits = tied_logits();
    struct logit_summary merged[ROWS];

    (void)state;
    logits[50] = logits[60] = logits[450] =
        20.0f; /* ties at the top: inside a shard and over two */
    logits[VOCABULARY + 400] = logits[VOCABULARY + 401] = 20.0f;
    for (int shard = 0; shard < SHARDS; shard++) {
        struct logit_summary *part =
            summarise(shard_of(logits, shard), cuts[shard], cuts[shard + 1] - cuts[shard]);
        for (int r = 0; r < ROWS; r++) {
            if (shard == 0)
                merged[r] = part[r];
            else
                logit_summary_merge(&merged[r], &part[r]);
        }
    }
    struct logit_summary *whole = summarise(put_floats(logits, ROWS * VOCABULARY), 0, VOCABULARY);
    for (int r = 0; r < ROWS; r++) {
        const float *row = logits + r * VOCABULARY;
        int best = 0;
        double sum = 0.0;
        for (int c = 1; c < VOCABULARY; c++)
            best = row[c] > row[best] ? c : best;
        for (int c = 0; c < VOCABULARY; c++)
            sum += exp((double)row[c] - row[best]);
        const struct logit_summary *both[] = {&whole[r], &merged[r]};
        for (int i = 0; i < 2; i++) {
            assert_int_equal(both[i]->argmax, best);
            assert_true(both[i]->max == row[best]);
            assert_true(fabs(both[i]->sum - sum) <= (h.exact ? 1e-12 : 1e-5) * sum);
            assert_int_equal(both[i]->bad, 0);
        }
    }
}

static void summary_reports_nan_and_infinity(void **state)
{
    float *logits = tied_logits();

    (void)state;
    logits[700] = NAN;
    logits[VOCABULARY + 5] = INFINITY;
    logits[2 * VOCABULARY + 5] = -INFINITY; /* is fine */
    struct logit_summary *got = summarise(put_floats(logits, ROWS * VOCABULARY), 0, VOCABULARY);
    assert_int_not_equal(got[0].bad, 0);
    assert_int_not_equal(got[1].bad, 0);
    assert_int_equal(got[2].bad, 0);
    assert_true(isfinite(got[2].sum));
    struct logit_summary clean = {.max = 0.0f, .argmax = 3, .sum = 1.0};
    logit_summary_merge(&clean, &got[0]);
    assert_int_not_equal(clean.bad, 0);
}

static void pick_takes_the_target_of_its_shard(void **state)
{
    float *logits = tied_logits(), found[ROWS];
    const int32_t targets[ROWS] = {399, 400, VOCABULARY - 1};

    (void)state;
    for (int r = 0; r < ROWS; r++)
        found[r] = -INFINITY;
    for (int shard = 0; shard < SHARDS; shard++) {
        float *out = poison_raw(ROWS * sizeof(float));
        MUST(h.backend->logit_pick(h.device,
                                   &(struct logit_pick_op){ROWS, cuts[shard + 1] - cuts[shard],
                                                           cuts[shard], put_ints(targets, ROWS),
                                                           shard_of(logits, shard), out}));
        float *values = get_floats(out, ROWS);
        for (int r = 0; r < ROWS; r++) {
            bool here = targets[r] >= cuts[shard] && targets[r] < cuts[shard + 1];
            assert_true(here == (values[r] != -INFINITY));
            found[r] = here ? values[r] : found[r];
        }
    }
    for (int r = 0; r < ROWS; r++)
        assert_true(found[r] == logits[r * VOCABULARY + targets[r]]);
}

static const float *sorted_row;

static int by_value_then_id(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;

    if (sorted_row[i] != sorted_row[j])
        return sorted_row[i] > sorted_row[j] ? -1 : 1;
    return i - j;
}

static void top_is_the_head_of_a_stable_sort(void **state)
{
    float *logits = tied_logits();

    (void)state;
    for (int k = 1; k <= SAMPLE_TOP_MAX; k++) {
        struct logit_candidate *out = poison_raw((size_t)(ROWS * k) * sizeof(*out));
        MUST(h.backend->logit_top(
            h.device, &(struct logit_top_op){ROWS, VOCABULARY, 100, k,
                                             put_floats(logits, ROWS * VOCABULARY), out}));
        struct logit_candidate *got = get_raw(out, (size_t)(ROWS * k) * sizeof(*out));
        for (int r = 0; r < ROWS; r++) {
            int order[VOCABULARY];
            for (int c = 0; c < VOCABULARY; c++)
                order[c] = c;
            sorted_row = logits + r * VOCABULARY;
            qsort(order, VOCABULARY, sizeof(order[0]), by_value_then_id);
            for (int i = 0; i < k; i++) {
                assert_int_equal(got[r * k + i].id, 100 + order[i]);
                assert_true(got[r * k + i].value == sorted_row[order[i]]);
            }
        }
    }
}

static void top_of_few_columns_says_none(void **state)
{
    const float logits[ROWS * 2] = {1, 2, 3, 3, 0, -1};
    struct logit_candidate *out = poison_raw(ROWS * 4 * sizeof(*out));

    (void)state;
    MUST(h.backend->logit_top(
        h.device, &(struct logit_top_op){ROWS, 2, 7, 4, put_floats(logits, ROWS * 2), out}));
    struct logit_candidate *got = get_raw(out, ROWS * 4 * sizeof(*out));
    assert_int_equal(got[0].id, 8);
    assert_int_equal(got[1].id, 7);
    assert_int_equal(got[2].id, -1);
    assert_int_equal(got[3].id, -1);
    assert_int_equal(got[4].id, 7); /* equals: the lower id */
    assert_int_equal(got[5].id, 8);
}

/* ---- histograms ---- */

struct bins {
    double mass[256];
    uint32_t count[256];
};

/* One row's bins, summed over shards. */
static struct bins row_bins(const float *logits, int row, float maximum, int shift, uint32_t prefix)
{
    struct bins sum = {{0}, {0}};
    const float maxima[ROWS] = {maximum, maximum, maximum};
    const uint32_t prefixes[ROWS] = {prefix, prefix, prefix};

    for (int shard = 0; shard < SHARDS; shard++) {
        double *mass = poison_raw(ROWS * 256 * sizeof(*mass));
        uint32_t *count = poison_raw(ROWS * 256 * sizeof(*count));
        MUST(h.backend->logit_histogram(
            h.device,
            &(struct logit_histogram_op){ROWS, cuts[shard + 1] - cuts[shard], shift,
                                         shard_of(logits, shard), put_floats(maxima, ROWS),
                                         put_raw(prefixes, sizeof(prefixes)), mass, count}));
        double *masses = get_raw(mass, ROWS * 256 * sizeof(*mass));
        uint32_t *counts = get_raw(count, ROWS * 256 * sizeof(*count));
        for (int i = 0; i < 256; i++) {
            sum.mass[i] += masses[row * 256 + i];
            sum.count[i] += counts[row * 256 + i];
        }
    }
    return sum;
}

/* Walks down from the highest bin: the key at the rank-th place, or where mass is reached. */
static uint32_t search(const float *logits, int row, float maximum, uint32_t rank, double mass)
{
    uint32_t prefix = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        struct bins bins = row_bins(logits, row, maximum, shift, prefix);
        int bin = 255;
        while (bin > 0 && (rank > 0 ? bins.count[bin] < rank : bins.mass[bin] < mass)) {
            rank -= rank > 0 ? bins.count[bin] : 0;
            mass -= bins.mass[bin];
            bin--;
        }
        prefix |= (uint32_t)bin << shift;
    }
    return prefix;
}

static void histograms_find_the_exact_value_at_a_rank_and_a_mass(void **state)
{
    float *logits = random_floats(ROWS * VOCABULARY, 3.0);

    (void)state;
    logits[3] = -INFINITY; /* banned */
    logits[VOCABULARY] = 0.0f;
    logits[VOCABULARY + 1] = -0.0f;
    for (int r = 0; r < ROWS; r++) {
        int order[VOCABULARY];
        static const uint32_t ranks[] = {1, 2, 50, 700, VOCABULARY};
        for (int c = 0; c < VOCABULARY; c++)
            order[c] = c;
        sorted_row = logits + r * VOCABULARY;
        qsort(order, VOCABULARY, sizeof(order[0]), by_value_then_id);
        float maximum = sorted_row[order[0]];
        for (int i = 0; i < 5; i++)
            assert_int_equal(search(logits, r, maximum, ranks[i], 0.0),
                             logit_key(sorted_row[order[ranks[i] - 1]]));
        double total = 0.0, sum = 0.0, share = 0.2 + 0.6 * random_unit();
        for (int c = 0; c < VOCABULARY; c++)
            total += exp((double)sorted_row[c] - maximum);
        int last = -1;
        while (sum < share * total) /* the nucleus by its definition */
            sum += exp((double)sorted_row[order[++last]] - maximum);
        assert_int_equal(search(logits, r, maximum, 0, share * total),
                         logit_key(sorted_row[order[last]]));
        harness_sweep(NULL);
        logits = random_floats(ROWS * VOCABULARY, 3.0); /* the sweep took them */
    }
}

static void histogram_counts_everything_in_the_first_round(void **state)
{
    float *logits = tied_logits();
    struct bins bins = row_bins(logits, 1, 10.0f, 24, UINT32_C(0xdeadbeef));
    uint32_t columns = 0;

    (void)state;
    for (int i = 0; i < 256; i++)
        columns += bins.count[i];
    assert_int_equal(columns, VOCABULARY);
}

static void keys_keep_the_order_of_floats(void **state)
{
    static const float values[] = {-INFINITY, -3e38f, -1.5f, -1e-45f, 0.0f,
                                   1e-45f,    1.0f,   3e38f, INFINITY};

    (void)state;
    for (int i = 0; i < 9; i++)
        for (int j = 0; j < 9; j++)
            assert_true((values[i] < values[j]) == (logit_key(values[i]) < logit_key(values[j])));
    assert_int_equal(logit_key(-0.0f), logit_key(0.0f));
    for (int i = 0; i < 100000; i++) {
        float a = (float)(random_unit() - 0.5) * 8.0f, b = (float)(random_unit() - 0.5) * 8.0f;
        assert_true((a < b) == (logit_key(a) < logit_key(b)));
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(summary_merges_over_shards),
        TEST(summary_reports_nan_and_infinity),
        TEST(pick_takes_the_target_of_its_shard),
        TEST(top_is_the_head_of_a_stable_sort),
        TEST(top_of_few_columns_says_none),
        TEST(histograms_find_the_exact_value_at_a_rank_and_a_mass),
        TEST(histogram_counts_everything_in_the_first_round),
        TEST(keys_keep_the_order_of_floats),
    };

    return harness_run(tests);
}
