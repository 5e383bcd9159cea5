/* The scheduler alone: arithmetic over entries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <time.h>

#include "daemon/scheduler.h"

struct bench {
    struct step_shape shape;
    struct scheduler *scheduler;
    struct batch *batch;
    uint64_t arrivals;
};

static const struct step_shape SHAPE = {
    .max_sequences = 4,
    .max_tokens = 132, /* 4 decodes and two units */
    .max_rows = 132,
    .max_blocks = 64,
    .max_biases = 100,
    .max_bans = 100,
    .slots = 4,
    .vocab = 1000,
    .kv_blocks = 40,
    .block_tokens = 16,
    .max_model_len = 640,
};

static void bench_open(struct bench *bench, const struct step_shape *shape)
{
    *bench = (struct bench){.shape = *shape};
    assert_int_equal(scheduler_create(shape, &bench->scheduler, NULL), STATUS_OK);
    bench->batch = batch_create(shape);
    assert_non_null(bench->batch);
}

static void bench_close(struct bench *bench)
{
    struct blocks_usage usage;
    scheduler_usage(bench->scheduler, &usage);
    assert_int_equal(usage.slots_used, 0);
    assert_int_equal(usage.blocks_reserved, 0);
    assert_int_equal(usage.blocks_given, 0);
    batch_destroy(bench->batch);
    scheduler_destroy(bench->scheduler);
}

static void entry_add(struct bench *bench, struct entry *entry, int inputs, int samples)
{
    entry->inputs = inputs;
    entry->samples = samples;
    entry->arrival = bench->arrivals++;
    scheduler_add(bench->scheduler, entry);
}

static struct batch *compose(struct bench *bench)
{
    assert_int_equal(scheduler_compose(bench->scheduler, bench->batch), STATUS_OK);
    return bench->batch;
}

static void item_expect(const struct batch_item *item, const struct entry *entry, int context,
                        int tokens, int sample)
{
    assert_ptr_equal(item->entry, entry);
    assert_int_equal(item->context, context);
    assert_int_equal(item->tokens, tokens);
    assert_int_equal(item->sample, sample);
}

static void test_decodes_come_first(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {0}, b = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 10, 5);
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 1);
    item_expect(&batch->item[0], &a, 0, 10, 0);
    b.priority = 9; /* a prompt never goes before a decode, whatever its priority */
    entry_add(&bench, &b, 300, 5);
    batch = compose(&bench);
    assert_int_equal(batch->items, 2);
    item_expect(&batch->item[0], &a, 10, 1, 1);
    item_expect(&batch->item[1], &b, 0, 128, -1); /* 131 left, cut at the unit */
    batch = compose(&bench);
    item_expect(&batch->item[0], &a, 11, 1, 2);
    item_expect(&batch->item[1], &b, 128, 128, -1);
    batch = compose(&bench);
    item_expect(&batch->item[1], &b, 256, 44, 0);
    batch = compose(&bench);
    assert_int_equal(batch->items, 2); /* the last sample of a */
    item_expect(&batch->item[0], &b, 300, 1, 1);
    item_expect(&batch->item[1], &a, 13, 1, 4);
    batch = compose(&bench);
    assert_int_equal(batch->items, 1);
    scheduler_release(bench.scheduler, &a);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_groups_take_turns(void **state)
{
    (void)state;
    struct bench bench;
    struct entry entry[3] = {{0}};
    bench_open(&bench, &SHAPE);
    scheduler_set_groups(bench.scheduler, 2);
    for (int i = 0; i < 3; i++)
        entry_add(&bench, &entry[i], 10, 20);
    assert_int_equal(compose(&bench)->items, 3); /* prompts know no turns */
    for (int turn = 0; turn < 4; turn++) {
        struct batch *batch = compose(&bench);
        assert_int_equal(batch->items, turn % 2 == 0 ? 2 : 1);
        item_expect(&batch->item[0], &entry[turn % 2], 10 + turn / 2, 1, 1 + turn / 2);
        if (turn % 2 == 0)
            item_expect(&batch->item[1], &entry[2], 10 + turn / 2, 1, 1 + turn / 2);
    }
    scheduler_release(bench.scheduler, &entry[1]); /* the only one of its group */
    for (int turn = 0; turn < 3; turn++) {
        struct batch *batch = compose(&bench);
        assert_int_equal(batch->items, 2);
        item_expect(&batch->item[0], &entry[0], 12 + turn, 1, 3 + turn);
    }
    struct entry late = {0}; /* into the empty group */
    entry_add(&bench, &late, 5, 20);
    assert_int_equal(compose(&bench)->items, 3);
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 1);
    item_expect(&batch->item[0], &late, 5, 1, 1);
    assert_int_equal(compose(&bench)->items, 2);
    for (int i = 0; i < 3; i += 2)
        scheduler_release(bench.scheduler, &entry[i]);
    scheduler_release(bench.scheduler, &late);
    bench_close(&bench);
}

static void test_one_token_is_never_left_over(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {0}, b = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 129, 1); /* fits whole */
    struct batch *batch = compose(&bench);
    item_expect(&batch->item[0], &a, 0, 129, 0);
    entry_add(&bench, &b, 193, 1); /* 128 and 65, 64 and 129: never 192 and 1 */
    batch = compose(&bench);
    item_expect(&batch->item[0], &b, 0, 128, -1);
    batch = compose(&bench);
    item_expect(&batch->item[0], &b, 128, 65, 0);
    scheduler_release(bench.scheduler, &a);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_single_token_prompts_go_among_decodes(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {0}, b = {0}, c = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 20, 1);
    entry_add(&bench, &b, 30, 1);
    entry_add(&bench, &c, 1, 2);
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 3);
    item_expect(&batch->item[0], &c, 0, 1, 0);
    scheduler_release(bench.scheduler, &a);
    scheduler_release(bench.scheduler, &b);
    scheduler_release(bench.scheduler, &c);
    bench_close(&bench);
}

static void test_priority_then_arrival(void **state)
{
    (void)state;
    struct bench bench;
    struct entry entry[6] = {{0}};
    const int priority[6] = {0, 5, 0, 5, -1, 7};
    const int expected[4] = {5, 1, 3, 0}; /* four slots */
    bench_open(&bench, &SHAPE);
    for (int i = 0; i < 6; i++) {
        entry[i].priority = priority[i];
        entry_add(&bench, &entry[i], 20, 4);
    }
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 4);
    for (int i = 0; i < 4; i++)
        assert_ptr_equal(batch->item[i].entry, &entry[expected[i]]);
    assert_int_equal(scheduler_waiting(bench.scheduler), 2);
    scheduler_release(bench.scheduler, &entry[0]);
    batch = compose(&bench);
    bool found = false;
    for (int i = 0; i < batch->items; i++)
        found = found || batch->item[i].entry == &entry[2];
    assert_true(found);
    for (int i = 1; i < 6; i++)
        scheduler_release(bench.scheduler, &entry[i]);
    bench_close(&bench);
}

static void test_blocks_are_set_aside_for_the_whole_length(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {0}, b = {0}, c = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 20, 300); /* 20 blocks of 16 */
    entry_add(&bench, &b, 20, 301); /* 21: 41 of 40 */
    entry_add(&bench, &c, 10, 5);   /* would fit, but does not overtake */
    struct batch *batch = compose(&bench);
    struct blocks_usage usage;
    scheduler_usage(bench.scheduler, &usage);
    assert_int_equal(batch->items, 1);
    assert_int_equal(usage.blocks_reserved, 20);
    assert_int_equal(usage.blocks_given, 2); /* numbers come as tokens come */
    scheduler_release(bench.scheduler, &a);
    batch = compose(&bench);
    assert_int_equal(batch->items, 2);
    scheduler_usage(bench.scheduler, &usage);
    assert_int_equal(usage.blocks_reserved, 22);
    scheduler_release(bench.scheduler, &b);
    scheduler_release(bench.scheduler, &c);
    bench_close(&bench);
}

static void test_removed_keeps_its_room_until_released(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {0}, b = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 600, 40); /* everything */
    entry_add(&bench, &b, 10, 5);
    compose(&bench);
    scheduler_remove(bench.scheduler, &a);
    assert_int_equal(compose(&bench)->items, 0);
    scheduler_release(bench.scheduler, &a);
    assert_int_equal(compose(&bench)->items, 1);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_what_can_never_fit(void **state)
{
    (void)state;
    struct bench bench;
    bench_open(&bench, &SHAPE);
    struct entry fits = {.inputs = 600, .samples = 40};
    struct entry longer = {.inputs = 600, .samples = 41};
    struct entry most = {.inputs = 1, .samples = INT32_MAX};
    struct entry biased = {.inputs = 1, .samples = 1, .biases = 101};
    struct entry banned = {.inputs = 1, .samples = 1, .bans = 101};
    assert_true(scheduler_fits(bench.scheduler, &fits));
    assert_false(scheduler_fits(bench.scheduler, &longer));
    assert_false(scheduler_fits(bench.scheduler, &most));
    assert_false(scheduler_fits(bench.scheduler, &biased));
    assert_false(scheduler_fits(bench.scheduler, &banned));
    bench_close(&bench);

    struct step_shape shape = SHAPE;
    shape.kv_blocks = 39;
    bench_open(&bench, &shape);
    assert_false(scheduler_fits(bench.scheduler, &fits));
    bench_close(&bench);
    shape.kv_blocks = 0; /* a model without paged layers needs none */
    bench_open(&bench, &shape);
    assert_true(scheduler_fits(bench.scheduler, &fits));
    bench_close(&bench);
}

static void test_biases_are_set_aside(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {.biases = 60}, b = {.biases = 41};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 10, 5);
    entry_add(&bench, &b, 10, 5);
    assert_int_equal(compose(&bench)->items, 1);
    scheduler_release(bench.scheduler, &a);
    assert_int_equal(compose(&bench)->items, 1);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_rows_bound_scored_chunks(void **state)
{
    (void)state;
    struct step_shape shape = SHAPE;
    shape.max_rows = 70; /* unit 64 */
    struct bench bench;
    struct entry a = {.scored = 199}, b = {0};
    bench_open(&bench, &shape);
    assert_int_equal(scheduler_unit(bench.scheduler), 64);
    entry_add(&bench, &a, 200, 2);
    entry_add(&bench, &b, 60, 2);
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 2);
    item_expect(&batch->item[0], &a, 0, 64, -1);
    assert_int_equal(batch->item[0].scored, 64);
    item_expect(&batch->item[1], &b, 0, 60, 0);
    batch = compose(&bench);
    batch = compose(&bench);
    batch = compose(&bench);
    item_expect(&batch->item[0], &a, 192, 8, 0);
    assert_int_equal(batch->item[0].scored, 7);
    scheduler_release(bench.scheduler, &a);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_paused_are_passed_by(void **state)
{
    (void)state;
    struct bench bench;
    struct entry a = {.paused = true}, b = {0};
    bench_open(&bench, &SHAPE);
    entry_add(&bench, &a, 10, 5);
    entry_add(&bench, &b, 10, 5);
    struct batch *batch = compose(&bench);
    assert_int_equal(batch->items, 1);
    assert_ptr_equal(batch->item[0].entry, &b);
    a.paused = false;
    b.paused = true;
    batch = compose(&bench);
    assert_int_equal(batch->items, 1);
    item_expect(&batch->item[0], &a, 0, 10, 0);
    scheduler_release(bench.scheduler, &a);
    scheduler_release(bench.scheduler, &b);
    bench_close(&bench);
}

static void test_shapes_that_cannot_work(void **state)
{
    (void)state;
    struct scheduler *scheduler = NULL;
    struct step_shape shape = SHAPE;
    struct error error = {0};
    shape.max_blocks = 10;
    assert_int_equal(scheduler_create(&shape, &scheduler, &error), STATUS_CONFIG);
    shape = SHAPE;
    shape.max_rows = 0;
    assert_int_equal(scheduler_create(&shape, &scheduler, NULL), STATUS_CONFIG);
    assert_null(scheduler);
}

/* ---- at random ---------------------------------------------------------------------------- */

static uint64_t random_state;

static int random_below(int end)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int)((random_state >> 33) % (uint64_t)end);
}

enum { ENTRIES = 60 };

struct watched {
    struct entry entry; /* first */
    int tokens, samples, scored, blocks;
    int idle; /* compositions while running, not paused and without an item */
};

static void batch_check(const struct step_shape *shape, const struct batch *batch, int unit,
                        char *owned)
{
    int tokens = 0, rows = 0, blocks = 0;
    assert_true(batch->items <= shape->max_sequences);
    for (int i = 0; i < batch->items; i++) {
        const struct batch_item *item = &batch->item[i];
        struct watched *watched = (struct watched *)item->entry;
        const struct entry *entry = item->entry;
        assert_false(entry->paused);
        assert_int_equal(item->context, watched->tokens);
        assert_true(i == 0 || item->tokens > 1 || batch->item[i - 1].tokens == 1);
        bool prompt = item->context < entry->inputs;
        int end = item->context + item->tokens;
        if (prompt && end < entry->inputs) {
            assert_int_equal(end % unit, 0);
            assert_true(unit == 1 || end + 1 < entry->inputs);
        }
        if (!prompt)
            assert_int_equal(item->tokens, 1);
        assert_int_equal(item->sample,
                         end >= entry->inputs && entry->samples > 0 ? watched->samples : -1);
        watched->tokens = end;
        watched->samples += item->sample >= 0;
        watched->scored += item->scored;
        watched->blocks += item->new_blocks;
        watched->idle = -1;
        if (shape->kv_blocks > 0)
            assert_int_equal(watched->blocks,
                             (end + shape->block_tokens - 1) / shape->block_tokens);
        for (int b = 0; b < item->new_blocks; b++) {
            assert_int_equal(owned[batch->block[blocks + b]], 0);
            owned[batch->block[blocks + b]] = (char)(1 + entry->slot);
        }
        tokens += item->tokens;
        rows += item->scored + (item->sample >= 0);
        blocks += item->new_blocks;
    }
    assert_int_equal(tokens, batch->tokens);
    assert_int_equal(rows, batch->rows);
    assert_int_equal(blocks, batch->new_blocks);
    assert_true(tokens <= shape->max_tokens && rows <= shape->max_rows &&
                blocks <= shape->max_blocks);
}

static bool watched_done(const struct watched *watched)
{
    return watched->tokens >= watched->entry.inputs && watched->samples == watched->entry.samples;
}

static void watched_fill(struct watched *watched, const struct step_shape *shape)
{
    struct entry *entry = &watched->entry;
    do {
        bool score = random_below(5) == 0;
        int inputs = 1 + random_below(random_below(3) == 0 ? shape->max_model_len : 40);
        *watched = (struct watched){.entry = {.priority = random_below(3),
                                              .inputs = inputs,
                                              .samples = score ? 0 : 1 + random_below(50),
                                              .scored = score ? inputs : 0,
                                              .biases = random_below(20),
                                              .bans = random_below(3)}};
        if (!score && random_below(6) == 0)
            entry->scored = inputs - 1;
    } while (entry->inputs + entry->samples > shape->max_model_len ||
             (entry->inputs + entry->samples + shape->block_tokens - 1) / shape->block_tokens >
                 shape->kv_blocks);
}

static void random_run(uint64_t seed)
{
    static struct watched watched[ENTRIES];
    char owned[64] = {0};
    random_state = seed;
    struct step_shape shape = SHAPE;
    shape.slots = 1 + random_below(6);
    shape.max_sequences = shape.slots;
    shape.max_tokens = shape.slots + random_below(140);
    shape.max_rows = shape.slots + random_below(140);
    shape.kv_blocks = 10 + random_below(31);
    struct bench bench;
    bench_open(&bench, &shape);
    int unit = scheduler_unit(bench.scheduler), added = 0, finished = 0;
    for (int turn = 0; finished < ENTRIES; turn++) {
        assert_true(turn < 40000); /* every one finishes */
        if (added < ENTRIES && random_below(4) == 0) {
            watched_fill(&watched[added], &shape);
            watched[added].entry.arrival = (uint64_t)added;
            assert_true(scheduler_fits(bench.scheduler, &watched[added].entry));
            scheduler_add(bench.scheduler, &watched[added++].entry);
        }
        struct batch *batch = compose(&bench);
        batch_check(&shape, batch, unit, owned);
        for (int i = 0; i < added; i++) {
            struct watched *at = &watched[i];
            if (at->entry.state != ENTRY_RUNNING)
                continue;
            bool decodes = at->tokens >= at->entry.inputs && !watched_done(at);
            /* a decode that is not paused is in every step */
            if (decodes && !at->entry.paused)
                assert_int_equal(at->idle, -1);
            at->idle = 0;
            if (random_below(20) == 0)
                at->entry.paused = !at->entry.paused;
            if (!watched_done(at) && random_below(200) != 0)
                continue;
            if (watched_done(at))
                assert_int_equal(at->scored, at->entry.scored);
            for (int b = 0; b < shape.kv_blocks; b++)
                owned[b] = owned[b] == 1 + at->entry.slot ? 0 : owned[b];
            scheduler_release(bench.scheduler, &at->entry);
            finished++;
        }
    }
    bench_close(&bench);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++)
        random_run(seed);
}

/* The one that has to run next, looked for in all that wait; NULL: none waits. */
static struct entry *first_waiting(struct entry *entry, int count)
{
    struct entry *first = NULL;
    for (int i = 0; i < count; i++) {
        if (entry[i].state != ENTRY_WAITING)
            continue;
        if (first == NULL || entry[i].priority > first->priority ||
            (entry[i].priority == first->priority && entry[i].arrival < first->arrival))
            first = &entry[i];
    }
    return first;
}

static void test_random_priorities(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    static struct entry entry[COUNT];
    struct step_shape shape = SHAPE;
    struct bench bench;
    shape.slots = shape.max_sequences = 1;
    bench_open(&bench, &shape);
    random_state = 11;
    int added = 0;
    for (;;) {
        int more = random_below(6);
        for (; more > 0 && added < COUNT; more--) {
            entry[added].priority = random_below(random_below(2) == 0 ? 3 : 100) - 1;
            entry_add(&bench, &entry[added++], 1, 1);
        }
        if (added > 0) /* some leave before their turn */
            scheduler_remove(bench.scheduler, &entry[random_below(added)]);
        struct entry *next = first_waiting(entry, added);
        struct batch *batch = compose(&bench);
        if (next == NULL && added == COUNT)
            break;
        assert_int_equal(batch->items, next != NULL);
        if (next == NULL)
            continue;
        assert_ptr_equal(batch->item[0].entry, next);
        scheduler_release(bench.scheduler, next);
    }
    bench_close(&bench);
}

/* As many as 1024 requests of 128 choices: those of a higher priority must not walk past them all.
 * Processor time, with room for a factor of 50; the walk took minutes. */
static void test_many_of_lower_priority(void **state)
{
    (void)state;
    enum { COUNT = 1 << 17 };
    struct bench bench;
    struct entry *entry = calloc(2 * COUNT, sizeof *entry);
    assert_non_null(entry);
    bench_open(&bench, &SHAPE);
    clock_t began = clock();
    for (int i = 0; i < 2 * COUNT; i++) {
        entry[i].priority = i < COUNT ? 0 : 1 + i % 7;
        entry_add(&bench, &entry[i], 1, 1);
    }
    assert_int_equal(scheduler_waiting(bench.scheduler), 2 * COUNT);
    for (int i = 0; i < 2 * COUNT; i++)
        scheduler_remove(bench.scheduler, &entry[i]);
    assert_true(clock() - began < 2 * CLOCKS_PER_SEC);
    assert_int_equal(scheduler_waiting(bench.scheduler), 0);
    bench_close(&bench);
    free(entry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_come_first),
        cmocka_unit_test(test_groups_take_turns),
        cmocka_unit_test(test_one_token_is_never_left_over),
        cmocka_unit_test(test_single_token_prompts_go_among_decodes),
        cmocka_unit_test(test_priority_then_arrival),
        cmocka_unit_test(test_blocks_are_set_aside_for_the_whole_length),
        cmocka_unit_test(test_removed_keeps_its_room_until_released),
        cmocka_unit_test(test_what_can_never_fit),
        cmocka_unit_test(test_biases_are_set_aside),
        cmocka_unit_test(test_rows_bound_scored_chunks),
        cmocka_unit_test(test_paused_are_passed_by),
        cmocka_unit_test(test_shapes_that_cannot_work),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_random_priorities),
        cmocka_unit_test(test_many_of_lower_priority),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
