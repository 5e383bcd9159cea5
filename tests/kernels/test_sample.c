/* Adjustment of logits, counts, and the exponential race. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/philox.h"
#include "tests/kernels/harness.h"

static struct sample_row plain_row(void)
{
    return (struct sample_row){
        .target = -1, .temperature = 1.0f, .top_p = 1.0f, .repetition = 1.0f};
}

static void philox_gives_the_published_vectors(void **state)
{
    static const struct philox zero = {{0, 0, 0, 0}};
    static const struct philox ones = {{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}};
    static const struct philox pi = {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
    static const uint32_t from_zero[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    static const uint32_t from_ones[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    static const uint32_t from_pi[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    struct philox got;

    (void)state;
    got = philox(zero, 0, 0);
    assert_memory_equal(got.word, from_zero, sizeof(from_zero));
    got = philox(ones, UINT32_MAX, UINT32_MAX);
    assert_memory_equal(got.word, from_ones, sizeof(from_ones));
    got = philox(pi, 0xa4093822, 0x299f31d0);
    assert_memory_equal(got.word, from_pi, sizeof(from_pi));
}

static void uniform_lies_inside_the_unit_interval(void **state)
{
    double sum = 0.0;

    (void)state;
    assert_true(sample_uniform(0, 0, 0) == (0x6627e8d5 + 0.5) / 4294967296.0);
    for (uint32_t i = 0; i < 100000; i++) {
        double u = sample_uniform(UINT64_C(0x123456789abcdef0), UINT64_C(1) << 40, i);
        assert_true(u > 0.0 && u < 1.0);
        sum += u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005); /* 5 standard deviations */
    assert_true(sample_uniform(1, 2, 3) != sample_uniform(1, 3, 2));
    assert_true(sample_uniform(1, 2, 3) != sample_uniform(UINT64_C(1) << 32, 2, 3));
}

/* ---- adjustment ---- */

struct lists {
    int first, limit, slots;
    const struct logit_bias *bias;
    const int32_t *bans;
    const uint32_t *counts; /* [slots, columns] of the shard */
    int biases, banned;
};

static struct sample_batch make_samples(const struct sample_row *row, int rows, int columns,
                                        const struct lists *lists)
{
    return (struct sample_batch){
        .rows = rows,
        .columns = columns,
        .first = lists->first,
        .limit = lists->limit,
        .row = put_raw(row, (size_t)rows * sizeof(*row)),
        .bias = put_raw(lists->bias, (size_t)lists->biases * sizeof(struct logit_bias)),
        .bans = put_raw(lists->bans, (size_t)lists->banned * 4),
        .counts = put_raw(lists->counts, (size_t)(lists->slots * columns) * 4)};
}

static float *adjust(const struct sample_row *row, int rows, int columns, const float *logits,
                     const struct lists *lists)
{
    float *place = put_floats(logits, (size_t)(rows * columns));

    MUST(h.backend->logit_adjust(
        h.device, &(struct logit_adjust_op){make_samples(row, rows, columns, lists), place}));
    return get_floats(place, (size_t)(rows * columns));
}

/* By hand: slot 1 saw id 10 in its prompt, 11 twice in its output, 12 in both. */
static void penalties_bias_bans_and_limit_by_hand(void **state)
{
    static const float logits[2 * 6] = {2, 4, -4, 1, 3, 5, 2, 4, -4, 1, 3, 5};
    static const uint32_t counts[2 * 6] = {
        9, 9, 9, 9, 9, 9, COUNT_SEEN_IN_PROMPT, 2, COUNT_SEEN_IN_PROMPT | 1, 0, 0, 0};
    static const struct logit_bias bias[] = {{99, 7}, {13, 1.5f}, {11, 2}, {9, 100}};
    static const int32_t bans[] = {5, 14, 9, 200};
    struct sample_row row[2] = {plain_row(), plain_row()};
    struct lists lists = {.first = 10,
                          .limit = 15,
                          .slots = 2,
                          .bias = bias,
                          .biases = 4,
                          .bans = bans,
                          .banned = 4,
                          .counts = counts};

    (void)state;
    row[0].slot = 1;
    row[0].flags = SAMPLE_COUNTED;
    row[0].repetition = 2.0f;
    row[0].presence = 0.25f;
    row[0].frequency = 0.5f;
    row[0].temperature = 0.5f;
    row[0].bias_begin = 1;
    row[0].bias_count = 3;
    row[0].ban_begin = 1;
    row[0].ban_count = 2;
    row[1].slot = 0; /* its counts are not in use, its lists are empty */
    row[1].temperature = 0.0f;
    row[1].repetition = 3.0f;
    float *got = adjust(row, 2, 6, logits, &lists);
    const float want[2 * 6] = {
        2.0f / 2 / 0.5f,                            /* seen in the prompt only */
        ((4.0f + 2) / 2 - 0.25f - 0.5f * 2) / 0.5f, /* bias first, then penalties */
        (-4.0f * 2 - 0.25f - 0.5f) / 0.5f,          /* a negative logit is multiplied */
        (1.0f + 1.5f) / 0.5f,                       /* bias alone */
        -INFINITY,                                  /* banned */
        -INFINITY,                                  /* no token */
        2,
        4,
        -4,
        1,
        3,
        -INFINITY};
    for (int i = 0; i < 12; i++)
        assert_true(got[i] == want[i] || fabsf(got[i] - want[i]) <= 1e-5f * fabsf(want[i]));
}

static void a_shard_beyond_the_limit_has_no_tokens(void **state)
{
    static const float logits[3] = {1, 2, 3};
    struct sample_row row = plain_row();
    struct lists lists = {.first = 100, .limit = 90};
    float *got = adjust(&row, 1, 3, logits, &lists);

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(got[i] == -INFINITY);
}

/* ---- counts ---- */

static void counts_follow_entries_and_resets(void **state)
{
    enum { SLOTS = 3, COLUMNS = 5, FIRST = 10 };
    static const struct count_entry entry[] = {{0, 10, 0}, {0, 10, 0}, {0, 10, 1}, {2, 14, 1},
                                               {2, 15, 0}, {2, 9, 0},  {0, -3, 0}, {0, -2, 0},
                                               {2, -1, 1}, {2, 14, 1}};
    static const int32_t last[SLOTS] = {11, 99, 12}, reset[] = {0};
    uint32_t want[SLOTS * COLUMNS], *counts = host_memory(SLOTS * COLUMNS, 4);

    (void)state;
    for (int i = 0; i < SLOTS * COLUMNS; i++)
        counts[i] = (uint32_t)i;
    memcpy(want, counts, sizeof(want));
    counts = put_raw(counts, sizeof(want));
    MUST(h.backend->count(h.device, &(struct count_op){.entries = 10,
                                                       .resets = 1,
                                                       .columns = COLUMNS,
                                                       .first = FIRST,
                                                       .entry = put_raw(entry, sizeof(entry)),
                                                       .reset = put_ints(reset, 1),
                                                       .last = put_ints(last, SLOTS),
                                                       .counts = counts}));
    memset(want, 0, COLUMNS * 4);
    want[0] = 2 | COUNT_SEEN_IN_PROMPT;
    want[2] = 1;                                   /* last[2] = 12 in slot 0; 99 is elsewhere */
    want[2 * COLUMNS + 4] |= COUNT_SEEN_IN_PROMPT; /* 14 of slot 2 */
    want[2 * COLUMNS + 1] |= COUNT_SEEN_IN_PROMPT; /* last[0] = 11 */
    assert_memory_equal(get_raw(counts, sizeof(want)), want, sizeof(want));
}

static void remember_sets_the_newest_token(void **state)
{
    const int32_t before[4] = {1, 2, 3, 4}, slots[2] = {3, 0}, tokens[2] = {70, 80};
    const int32_t want[4] = {80, 2, 3, 70};
    int32_t *last = put_ints(before, 4);

    (void)state;
    MUST(h.backend->remember(
        h.device, &(struct remember_op){2, put_ints(slots, 2), put_ints(tokens, 2), last}));
    assert_memory_equal(get_raw(last, sizeof(want)), want, sizeof(want));
}

/* ---- the race ---- */

enum { VOCABULARY = 301 };

/* rows of sample rows over columns first .. first + columns - 1 of `logits` [rows, VOCABULARY] */
static struct logit_candidate *draw(const struct sample_row *row, int rows, const float *logits,
                                    const uint32_t *floors, int first, int columns)
{
    struct lists lists = {.first = first, .limit = VOCABULARY};
    struct logit_candidate *out = poison_raw((size_t)rows * sizeof(*out));
    float *part = host_memory((size_t)(rows * columns), sizeof(float));

    for (int r = 0; r < rows; r++)
        memcpy(part + r * columns, logits + r * VOCABULARY + first,
               (size_t)columns * sizeof(float));
    MUST(h.backend->logit_draw(h.device,
                               &(struct logit_draw_op){make_samples(row, rows, columns, &lists),
                                                       put_floats(part, (size_t)(rows * columns)),
                                                       put_raw(floors, (size_t)rows * 4), out}));
    return get_raw(out, (size_t)rows * sizeof(*out));
}

static void draws_over_shards_equal_the_whole(void **state)
{
    enum { ROWS = 40 };
    static const int cuts[] = {0, 100, 101, 250, VOCABULARY};
    float *logits = random_floats(ROWS * VOCABULARY, 2.0);
    struct sample_row row[ROWS];
    uint32_t floors[ROWS] = {0};
    struct logit_candidate best[ROWS];

    (void)state;
    for (int r = 0; r < ROWS; r++) {
        row[r] = plain_row();
        row[r].seed = (uint64_t)random_int(0, 1 << 30);
        row[r].draw = (uint64_t)r;
        row[r].temperature = r % 4 == 0 ? 0.0f : 0.7f;
        best[r] = (struct logit_candidate){-INFINITY, -1};
        logits[r * VOCABULARY + 7] = logits[r * VOCABULARY + 270]; /* a tie over shards */
    }
    struct logit_candidate *whole = draw(row, ROWS, logits, floors, 0, VOCABULARY);
    for (int i = 0; i < 4; i++) {
        struct logit_candidate *part =
            draw(row, ROWS, logits, floors, cuts[i], cuts[i + 1] - cuts[i]);
        for (int r = 0; r < ROWS; r++)
            if (part[r].value > best[r].value)
                best[r] = part[r];
    }
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(best[r].id, whole[r].id);
        assert_true(best[r].value == whole[r].value);
    }
}

/* The definition, in double: argmax of logit - log(-log(u)). */
static int race_winner(const struct sample_row *row, const float *logits, float floor)
{
    double best = -INFINITY;
    int winner = -1;

    for (int c = 0; c < VOCABULARY; c++) {
        double score = logits[c] - log(-log(sample_uniform(row->seed, row->draw, (uint32_t)c)));
        if (logits[c] >= floor && score > best) {
            best = score;
            winner = c;
        }
    }
    return winner;
}

static void draws_follow_the_definition_and_the_floor(void **state)
{
    enum { ROWS = 60 };
    float *logits = random_floats(ROWS * VOCABULARY, 3.0), least[ROWS];
    struct sample_row row[ROWS];
    uint32_t floors[ROWS];

    (void)state;
    for (int r = 0; r < ROWS; r++) {
        row[r] = plain_row();
        row[r].seed = 5;
        row[r].draw = (uint64_t)r;
        least[r] = r % 2 == 0 ? -100.0f : 4.0f;
        logits[r * VOCABULARY + 9] = 4.0f; /* the floor itself may be drawn */
        floors[r] = logit_key(least[r]);
    }
    struct logit_candidate *got = draw(row, ROWS, logits, floors, 0, VOCABULARY);
    for (int r = 0; r < ROWS; r++)
        assert_int_equal(got[r].id, race_winner(&row[r], logits + r * VOCABULARY, least[r]));
}

static void greedy_rows_take_the_lowest_best_id(void **state)
{
    float *logits = random_floats(VOCABULARY, 1.0);
    struct sample_row row = plain_row();
    uint32_t floor = 0;

    (void)state;
    row.temperature = 0.0f;
    logits[33] = logits[34] = logits[300] = 50.0f;
    struct logit_candidate *got = draw(&row, 1, logits, &floor, 0, VOCABULARY);
    assert_int_equal(got->id, 33);
    for (int c = 0; c < VOCABULARY; c++)
        logits[c] = -INFINITY;
    assert_int_equal(draw(&row, 1, logits, &floor, 0, VOCABULARY)->id, -1);
    row.temperature = 1.0f;
    assert_int_equal(draw(&row, 1, logits, &floor, 0, VOCABULARY)->id, -1);
    logits[299] = -1e30f; /* the only one left */
    assert_int_equal(draw(&row, 1, logits, &floor, 0, VOCABULARY)->id, 299);
}

/* Chi-square of 20,000 draws with a fixed seed over 12 ids; 11 degrees of freedom exceed 31.3 once
 * in a thousand seeds. */
static void draws_follow_the_distribution(void **state)
{
    enum { IDS = 12, DRAWS = 20000, ROWS = 100 };
    static const double share[IDS] = {.3, .2, .15, .1, .08, .06, .04, .03, .02, .01, .006, .004};
    int seen[IDS] = {0};
    double chi = 0.0;

    (void)state;
    for (int n = 0; n < DRAWS; n += ROWS) {
        float *logits = host_memory(ROWS * VOCABULARY, sizeof(float));
        struct sample_row row[ROWS];
        uint32_t floors[ROWS] = {0};
        for (int r = 0; r < ROWS; r++) {
            row[r] = plain_row();
            row[r].seed = 20251;
            row[r].draw = (uint64_t)(n + r);
            for (int c = 0; c < VOCABULARY; c++)
                logits[r * VOCABULARY + c] =
                    c % 25 == 3 && c / 25 < IDS ? (float)log(share[c / 25]) : -INFINITY;
        }
        struct logit_candidate *got = draw(row, ROWS, logits, floors, 0, VOCABULARY);
        for (int r = 0; r < ROWS; r++) {
            assert_int_equal(got[r].id % 25, 3);
            seen[got[r].id / 25]++;
        }
        harness_sweep(NULL);
    }
    for (int i = 0; i < IDS; i++)
        chi += pow(seen[i] - share[i] * DRAWS, 2) / (share[i] * DRAWS);
    assert_true(chi < 31.3);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(philox_gives_the_published_vectors),
        TEST(uniform_lies_inside_the_unit_interval),
        TEST(penalties_bias_bans_and_limit_by_hand),
        TEST(a_shard_beyond_the_limit_has_no_tokens),
        TEST(counts_follow_entries_and_resets),
        TEST(remember_sets_the_newest_token),
        TEST(draws_over_shards_equal_the_whole),
        TEST(draws_follow_the_definition_and_the_floor),
        TEST(greedy_rows_take_the_lowest_best_id),
        TEST(draws_follow_the_distribution),
    };

    return harness_run(tests);
}
