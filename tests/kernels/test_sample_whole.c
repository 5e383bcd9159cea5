/* The fused sampling entry against plain formulas in float64: every kind of row in one batch. Back
 * ends without the entry, and hosts without the device, skip. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

enum { SKIPPED = 77, SLOTS_MORE = 3, LIST = 6 };

struct scene {
    int rows, columns, limit, slots;
    struct sample_row *row;
    struct logit_bias *bias;      /* [rows, LIST] */
    int32_t *bans;                /* [rows, LIST] */
    uint32_t *counts;             /* [slots, columns] */
    int32_t *last;                /* [slots] */
    float *logits;                /* [rows, columns] */
    float *adjusted_row, *sorted; /* [columns] of the row in hand */
    char *taken;                  /* [columns] */
    bool adjusted, thresholds, tops;
};

/* ---- scenes -------------------------------------------------------------------------------- */

static int chance(int one_in)
{
    return random_int(1, one_in) == 1;
}

static void row_decorate(struct scene *scene, int r)
{
    struct sample_row *row = &scene->row[r];
    row->bias_begin = row->ban_begin = r * LIST;
    row->bias_count = chance(2) ? random_int(1, LIST) : 0;
    row->ban_count = chance(3) ? random_int(1, LIST) : 0;
    for (int i = 0; i < LIST; i++) {
        scene->bias[r * LIST + i] = (struct logit_bias){
            (random_int(0, scene->columns - 1) / LIST) * LIST + i, (float)random_int(-8, 8)};
        if (scene->bias[r * LIST + i].id >= scene->columns)
            row->bias_count = 0;
        scene->bans[r * LIST + i] = random_int(0, scene->columns - 1);
    }
    if (chance(2)) {
        row->flags = SAMPLE_COUNTED;
        row->repetition = chance(2) ? 1.5f : 1.0f;
        row->presence = 0.25f;
        row->frequency = 0.5f;
    }
    if (chance(2))
        row->temperature = 0.6f;
}

static void row_invent(struct scene *scene, int r)
{
    static const int tops[] = {0, 1, 5, SAMPLE_TOP_MAX};
    struct sample_row *row = &scene->row[r];
    *row = (struct sample_row){.slot = r + SLOTS_MORE,
                               .target = -1,
                               .temperature = chance(4) ? 0.0f : 1.0f,
                               .top_p = 1.0f,
                               .repetition = 1.0f,
                               .seed = (uint64_t)random_int(0, 1 << 30) << 20,
                               .draw = (uint64_t)random_int(0, 100)};
    if (chance(6))
        row->target = random_int(0, scene->columns - 1);
    if (scene->tops)
        row->tops = tops[random_int(0, 3)];
    if (scene->adjusted)
        row_decorate(scene, r);
    if (scene->thresholds && chance(3))
        row->top_k = random_int(1, chance(2) ? 5 : scene->columns);
    if (scene->thresholds && chance(2))
        row->top_p = chance(5) ? 0.0f : (float)random_unit();
    if (scene->thresholds && chance(4))
        row->min_p = chance(4) ? 1.0f : (float)(0.1 * random_unit());
}

static struct scene scene_make(int rows, int columns, int kinds)
{
    struct scene scene = {.rows = rows,
                          .columns = columns,
                          .limit = kinds & 8 ? columns - columns / 7 : columns,
                          .slots = rows + SLOTS_MORE,
                          .adjusted = kinds & 1,
                          .thresholds = kinds & 2,
                          .tops = kinds & 4};
    size_t lists = (size_t)(rows * LIST), count = (size_t)rows * (size_t)columns;
    size_t counts = (size_t)scene.slots * (size_t)columns;
    scene.row = host_memory((size_t)rows, sizeof *scene.row);
    scene.bias = host_memory(lists, sizeof *scene.bias);
    scene.bans = host_memory(lists, sizeof *scene.bans);
    scene.counts = host_memory(counts, sizeof *scene.counts);
    scene.last = host_memory((size_t)scene.slots, sizeof *scene.last);
    scene.logits = random_floats(count, 4.0);
    scene.adjusted_row = host_memory((size_t)columns, sizeof(float));
    scene.sorted = host_memory((size_t)columns, sizeof(float));
    scene.taken = host_memory((size_t)columns, 1);
    for (int r = 0; r < rows; r++) {
        row_invent(&scene, r);
        float *row = scene.logits + (size_t)r * (size_t)columns;
        for (int c = 0; c < columns && r % 3 == 0; c++) /* ties */
            row[c] = rintf(row[c] * 4.0f) / 4.0f;
        if (r % 11 == 5)
            row[random_int(0, columns - 1)] = chance(2) ? NAN : INFINITY;
        if (r % 13 == 7)
            for (int c = 0; c < columns; c++)
                if (c % 97 != 11)
                    row[c] = -INFINITY;
    }
    for (size_t i = 0; i < counts; i++)
        if (chance(5))
            scene.counts[i] = (uint32_t)random_int(0, 3) | (chance(2) ? COUNT_SEEN_IN_PROMPT : 0);
    for (int i = 0; i < scene.slots; i++)
        scene.last[i] = -100 - i;
    return scene;
}

/* ---- the plain form ------------------------------------------------------------------------ */

static void adjust(const struct scene *scene, const struct sample_row *row, float *logits)
{
    for (int i = 0; i < row->bias_count; i++)
        logits[scene->bias[row->bias_begin + i].id] += scene->bias[row->bias_begin + i].value;
    for (int c = 0; c < scene->columns; c++) {
        uint32_t count = scene->counts[(size_t)row->slot * (size_t)scene->columns + (size_t)c];
        uint32_t given = count & ~COUNT_SEEN_IN_PROMPT;
        if (!(row->flags & SAMPLE_COUNTED) || count == 0)
            continue;
        logits[c] = logits[c] > 0 ? logits[c] / row->repetition : logits[c] * row->repetition;
        if (given > 0)
            logits[c] -= row->presence + row->frequency * (float)given;
    }
    for (int i = 0; i < row->ban_count; i++)
        logits[scene->bans[row->ban_begin + i]] = -INFINITY;
    for (int c = scene->limit; c < scene->columns; c++)
        logits[c] = -INFINITY;
    for (int c = 0; c < scene->columns && row->temperature > 0; c++)
        logits[c] /= row->temperature;
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The least value that may be drawn. */
static float border_of(const struct scene *scene, const struct sample_row *row, const float *logits)
{
    float *sorted = scene->sorted, border = -INFINITY;
    int kept = scene->columns;
    double mass = 0, seen = 0;

    memcpy(sorted, logits, (size_t)scene->columns * sizeof *sorted);
    qsort(sorted, (size_t)scene->columns, sizeof *sorted, descending);
    if (row->top_k > 0 && row->top_k < scene->limit) {
        border = sorted[row->top_k - 1];
        for (kept = row->top_k; kept < scene->columns && sorted[kept] == border;)
            kept++;
    }
    for (int i = 0; i < kept; i++)
        mass += exp((double)sorted[i] - sorted[0]);
    if (row->top_p < 1) {
        int i = 0;
        for (; i < kept - 1; i++)
            if ((seen += exp((double)sorted[i] - sorted[0])) >= (double)row->top_p * mass)
                break;
        border = sorted[i];
    }
    if (row->min_p > 0 && sorted[0] + logf(row->min_p) > border)
        border = sorted[0] + logf(row->min_p);
    return border;
}

static int32_t draw(const struct scene *scene, const struct sample_row *row, const float *logits)
{
    float border = row->temperature > 0 ? border_of(scene, row, logits) : -INFINITY;
    double best = -INFINITY;
    int32_t winner = -1;

    for (int c = 0; c < scene->columns; c++) {
        double score = logits[c];
        if (!(score > -INFINITY) || logits[c] < border)
            continue;
        if (row->temperature > 0)
            score -= log(-log(sample_uniform(row->seed, row->draw, (uint32_t)c)));
        if (score > best) {
            best = score;
            winner = c;
        }
    }
    return winner;
}

static bool row_is_bad(const float *logits, int columns)
{
    bool any = false;
    for (int c = 0; c < columns; c++) {
        if (isnan(logits[c]) || logits[c] == INFINITY)
            return true;
        any |= logits[c] > -INFINITY;
    }
    return !any;
}

static void tops_check(const struct scene *scene, const float *raw, double normaliser, int wanted,
                       const struct sample_result *got)
{
    char *taken = memset(scene->taken, 0, (size_t)scene->columns);

    for (int i = 0; i < wanted; i++) {
        int best = -1;
        for (int c = 0; c < scene->columns; c++)
            if (!taken[c] && raw[c] > -INFINITY && (best < 0 || raw[c] > raw[best]))
                best = c;
        if (best < 0) {
            assert_int_equal(got->tops, i);
            return;
        }
        taken[best] = 1;
        assert_int_equal(got->top[i].id, best);
        assert_true(fabs(got->top[i].value - (raw[best] - normaliser)) < 2e-5);
    }
    assert_int_equal(got->tops, wanted);
}

/* Checks one row; says whether a token was drawn, and changes the scene as the entry should. */
static void row_check(struct scene *scene, int r, const struct sample_result *got)
{
    const struct sample_row *row = &scene->row[r];
    const float *raw = scene->logits + (size_t)r * (size_t)scene->columns;
    float *logits = scene->adjusted_row;
    int32_t token = row->target, argmax = 0;
    double sum = 0;

    memcpy(logits, raw, (size_t)scene->columns * sizeof *logits);
    if (row_is_bad(raw, scene->columns)) {
        assert_int_equal(got->token, -1);
        assert_int_equal(got->tops, 0);
        return;
    }
    if (row->target < 0) {
        adjust(scene, row, logits);
        token = draw(scene, row, logits);
    }
    if (got->token != token)
        fail_msg(
            "row %d of %d x %d: token %d, not %d (temperature %g, top_k %d, top_p %g, min_p %g)", r,
            scene->rows, scene->columns, got->token, token, (double)row->temperature, row->top_k,
            (double)row->top_p, (double)row->min_p);
    if (token < 0)
        return;
    for (int c = 1; c < scene->columns; c++)
        argmax = raw[c] > raw[argmax] ? c : argmax;
    for (int c = 0; c < scene->columns; c++)
        sum += exp((double)raw[c] - raw[argmax]);
    assert_int_equal(got->is_argmax, token == argmax);
    double want = raw[token] - raw[argmax] - log(sum);
    assert_true(got->logprob == want || fabs(got->logprob - want) < 2e-5);
    tops_check(scene, raw, raw[argmax] + log(sum), row->tops, got);
    if (row->target >= 0)
        return;
    scene->last[row->slot] = token;
    if (row->flags & SAMPLE_COUNTED)
        scene->counts[(size_t)row->slot * (size_t)scene->columns + (size_t)token]++;
}

static void scene_check(int rows, int columns, int kinds)
{
    struct scene scene = scene_make(rows, columns, kinds);
    size_t count = (size_t)rows * (size_t)columns;
    size_t counts_bytes = (size_t)scene.slots * (size_t)columns * 4;
    size_t lists = (size_t)(rows * LIST);
    uint32_t *counts = put_raw(scene.counts, counts_bytes);
    int32_t *last = put_ints(scene.last, (size_t)scene.slots);
    struct sample_result *out = poison_raw((size_t)rows * sizeof *out);
    struct sample_op op = {.batch = {.rows = rows,
                                     .columns = columns,
                                     .limit = scene.limit,
                                     .row = put_raw(scene.row, (size_t)rows * sizeof *scene.row),
                                     .bias = put_raw(scene.bias, lists * sizeof *scene.bias),
                                     .bans = put_raw(scene.bans, lists * sizeof *scene.bans),
                                     .counts = counts},
                           .adjusted = scene.adjusted || scene.limit < columns,
                           .thresholds = scene.thresholds,
                           .tops = scene.tops,
                           .logits = put_floats(scene.logits, count),
                           .work = poison_raw(count * 4),
                           .last = last,
                           .counts = counts,
                           .out = out};

    MUST(h.backend->sample(h.device, &op));
    const struct sample_result *got = get_raw(out, (size_t)rows * sizeof *out);
    for (int r = 0; r < rows; r++)
        row_check(&scene, r, &got[r]);
    assert_memory_equal(get_raw(last, (size_t)scene.slots * 4), scene.last,
                        (size_t)scene.slots * 4);
    assert_memory_equal(get_raw(counts, counts_bytes), scene.counts, counts_bytes);
}

static void every_kind_of_row_in_small_vocabularies(void **state)
{
    static const int columns[] = {1, 7, 301, 1003, 5000, 9000};

    (void)state;
    for (int i = 0; i < 6; i++)
        for (int kinds = 0; kinds < 16; kinds++) {
            scene_check(i < 4 ? 30 : 14, columns[i], kinds);
            harness_sweep(NULL);
        }
}

static void every_kind_of_row_in_the_whole_vocabulary(void **state)
{
    (void)state;
    for (int kinds = 0; kinds < 16; kinds += 5) {
        scene_check(kinds == 15 ? 12 : 3, 151936, kinds);
        harness_sweep(NULL);
    }
}

static void many_rows(void **state)
{
    (void)state;
    scene_check(1100, 64, 15);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_kind_of_row_in_small_vocabularies),
        TEST(every_kind_of_row_in_the_whole_vocabulary),
        TEST(many_rows),
    };
    void *state = NULL;

    if (harness_open(&state) != 0 || h.backend->sample == NULL)
        return SKIPPED;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    harness_close(&state);
    return failed;
}
