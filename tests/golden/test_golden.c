/* Fixtures through the stages of every mesh, over the threads fabric. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/stage.h"
#include "tests/golden/recorder.h"
#include "tests/golden/scenario.h"
#include "tests/golden/watcher.h"

static const char *const folders[] = {JETD_TEST_DATA "/fixtures/tiny-f32",
                                      JETD_TEST_DATA "/fixtures/tiny-bf16-sharded"};

/* 3: uneven jet heads, query heads that straddle kv heads */
static const struct mesh meshes[] = {{1, 1, 1}, {2, 1, 1}, {1, 1, 2}, {2, 1, 2}, {3, 1, 1},
                                     {4, 1, 1}, {1, 1, 4}, {2, 1, 4}, {3, 1, 2}};

enum { MESHES_F32 = 9, MESHES_BF16 = 4 };

/* Under the thread sanitizer arithmetic is 20 times slower, and the races are the same on one mesh.
 */
#if defined(__SANITIZE_THREAD__)
enum { FIRST_MESH = 3, MOST_MESHES = 4, SLOW = 1 };
#else
enum { FIRST_MESH = 0, MOST_MESHES = 64, SLOW = 0 };
#endif

static void run_everywhere(int folder, int count, void (*scenario)(struct rig *, void *),
                           void *context)
{
    struct fixture *fixture = fixture_open(folders[folder]);
    int failures = 0;
    for (int i = FIRST_MESH; i < count && i < MOST_MESHES; i++)
        failures += rig_threads(fixture, meshes[i], scenario, context);
    fixture_close(fixture);
    assert_int_equal(failures, 0);
}

static void prompt_and_greedy_f32(void **state)
{
    (void)state;
    run_everywhere(0, MESHES_F32, scenario_golden, NULL);
}

static void prompt_and_greedy_bf16(void **state)
{
    (void)state;
    if (SLOW)
        skip(); /* once they are loaded, weights are alike */
    run_everywhere(1, MESHES_BF16, scenario_golden, NULL);
}

static void ragged_chunks(void **state)
{
    struct chunks chunks = {{1, 2, 3, 7, 64, 1, 90}};
    (void)state;
    if (SLOW)
        skip(); /* the test of bits does the same and more */
    run_everywhere(0, 4, scenario_golden, &chunks);
    run_everywhere(1, 4, scenario_golden, &chunks);
}

static void same_bits_in_any_batch(void **state)
{
    (void)state;
    run_everywhere(0, 4, scenario_invariance, NULL);
    if (!SLOW)
        run_everywhere(1, 4, scenario_invariance, NULL);
}

/* A mesh sums in another order, so log-probabilities may differ in their last bits, tokens not. */
static void same_samples_on_every_mesh(void **state)
{
    struct trace *first = malloc(sizeof *first), *other = malloc(sizeof *other);
    struct fixture *fixture = fixture_open(folders[0]);
    (void)state;
    assert_int_equal(rig_threads(fixture, meshes[0], scenario_sampling, first), 0);
    assert_int_equal(first->rows, 25 * 6);
    for (int i = 1 + SLOW * 2; i < MESHES_F32 && i < MOST_MESHES; i++) {
        assert_int_equal(rig_threads(fixture, meshes[i], scenario_sampling, other), 0);
        assert_int_equal(other->rows, first->rows);
        for (int r = 0; r < first->rows; r++) {
            assert_int_equal(other->token[r], first->token[r]);
            assert_true(fabsf(other->logprob[r] - first->logprob[r]) < 1e-3f);
        }
    }
    fixture_close(fixture);
    free(first);
    free(other);
}

static void draws_follow_the_formulas(void **state)
{
    (void)state;
    if (SLOW)
        skip(); /* draws of same_samples_on_every_mesh */
    run_everywhere(0, 5, scenario_draws, NULL);
}

static struct backend poisoned;

/* The head's projection alone writes f32; the first row of every tile gets a NaN. */
static enum status poisoned_gemm(struct device *device, const struct gemm_op *op)
{
    enum status status = backend_find("cpu")->gemm(device, op);
    if (status == STATUS_OK && op->float_out)
        ((float *)op->out)[op->columns / 2] = NAN;
    return status;
}

static void one_bad_row_harms_no_other(void **state)
{
    (void)state;
    poisoned = *backend_find("cpu");
    poisoned.gemm = poisoned_gemm;
    rig_backend = &poisoned;
    run_everywhere(0, 4, scenario_poisoned, NULL);
    rig_backend = NULL;
}

/* `plain`, `partly`: products shown with any rows, and without the few that are always fused. */
static void check_watched(int folder, struct mesh mesh, int rows, int plain, int partly)
{
    rig_backend = watcher_open(rows);
    struct fixture *fixture = fixture_open(folders[folder]);
    assert_int_equal(rig_threads(fixture, mesh, scenario_golden, NULL), 0);
    assert_int_equal(watcher.plain, plain);
    assert_int_equal(watcher.partly, partly);
    assert_true(watcher.coarse > 0);
    assert_true((watcher.fused > 0) == (rows > 0));
    assert_int_equal(watcher.unshown, 0);
    fixture_close(fixture);
    rig_backend = NULL;
}

/* A layer has three products that are shown as such, and the last rank the head's. Over tensor
 * ranks outputs are summed before they are added, and nothing after them can be normed but the
 * head's gathered rows; a stage begins with a whole stream. */
static void steps_ask_for_shown_products_alone(void **state)
{
    enum { LAYERS = 8 };
    (void)state;
    if (SLOW)
        skip(); /* the same code as in other tests */
    check_watched(0, meshes[0], 0, 3 * LAYERS + 1, 0);
    check_watched(1, meshes[0], 0, 3 * LAYERS + 1, 0);
    check_watched(0, meshes[0], 3, 0, 3 * LAYERS + 1);
    check_watched(0, (struct mesh){2, 1, 1}, 3, 2 * (3 * LAYERS - 1), 2 * 2);
    check_watched(0, (struct mesh){1, 1, 2}, 3, 0, 3 * LAYERS + 1);
}

/* A device that works on after its calls have returned, until `done`. */
static struct backend late;
static struct {
    bool done;
    int waits;
} device_work;

static enum status late_fetch(struct device *device, int lane, void *to_host, const void *from,
                              size_t bytes)
{
    (void)lane;
    device_work.done = false;
    return backend_find("cpu")->download(device, to_host, from, bytes);
}

static enum status late_wait(struct device *device, int lane)
{
    (void)device;
    (void)lane;
    device_work.waits++;
    device_work.done = true;
    return STATUS_OK;
}

static bool late_ready(struct device *device, int lane)
{
    (void)device;
    (void)lane;
    return device_work.done;
}

static void piece_of_a_prompt(struct rig *rig, void *unused)
{
    const struct step_sequence sequence = {.tokens = 8, .new_blocks = 1};
    const int32_t block = 0;
    struct error error = {.status = STATUS_OK};
    struct step step;
    size_t length;
    int rows = -1;
    (void)unused;
    rig_begin(rig);
    if (step_add_sequence(rig->builder, &sequence, rig->fixture->prompt, &block) != STATUS_OK)
        rig_fail(rig, "no room for a sequence");
    const void *bytes = step_finish(rig->builder, &length);
    if (step_decode(&rig->shape, bytes, length, &step, &error) != STATUS_OK ||
        stage_submit(rig->stage, &step, &error) != STATUS_OK)
        rig_fail(rig, "%s", error.text);
    if (stage_ready(rig->stage))
        rig_fail(rig, "ready while its device works");
    device_work.done = true;
    if (!stage_ready(rig->stage))
        rig_fail(rig, "not ready when its device is done");
    if (stage_collect(rig->stage, rig->results, &rows, &error) != STATUS_OK || rows != 0)
        rig_fail(rig, "%d rows, %s", rows, error.text);
    if (device_work.waits != 1)
        rig_fail(rig, "%d waits for the device", device_work.waits);
}

static void a_piece_without_rows_is_waited_for(void **state)
{
    (void)state;
    late = *backend_find("cpu");
    late.fetch = late_fetch;
    late.wait = late_wait;
    late.ready = late_ready;
    rig_backend = &late;
    struct fixture *fixture = fixture_open(folders[0]);
    assert_int_equal(rig_threads(fixture, meshes[0], piece_of_a_prompt, NULL), 0);
    fixture_close(fixture);
    rig_backend = NULL;
}

/* Whatever the pools hold, NaN even, is nothing to a new sequence, an idle one included. */
static void spoil(struct stage *stage)
{
    struct region state = {0}, kv = {0};
    struct stage_state places;
    layout_state(stage->plan, stage->rank, &state, &places);
    layout_kv(stage->plan, stage->rank, &kv, &places);
    memset(stage->memory[1], 0xff, state.used);
    memset(stage->memory[2], 0xff, kv.used);
}

static void spoiled_classes(struct rig *rig, void *unused)
{
    spoil(rig->stage);
    scenario_classes(rig, unused);
}

static void check_recorded(bool prepares, void (*scenario)(struct rig *, void *), int least,
                           int most)
{
    rig_backend = recorder_open(prepares);
    struct fixture *fixture = fixture_open(folders[0]);
    assert_int_equal(rig_threads(fixture, meshes[0], scenario, NULL), 0);
    assert_in_range(recorder.recorded, least, most);
    assert_int_equal(recorder.freed, recorder.recorded);
    fixture_close(fixture);
    rig_backend = NULL;
}

/* Before the first step: two of each of the 13 sizes. Then of 1 (with and without penalties), 3,
 * 10, 12 and 19 sequences, with the best ids, which were not thought likely. */
static void few_recordings_serve_every_size(void **state)
{
    (void)state;
    check_recorded(true, spoiled_classes, 26 + 6, 26 + 6);
    int replays = recorder.replayed;
    check_recorded(false, spoiled_classes, 4, 4); /* 3 and 12 came once */
    assert_int_equal(recorder.replayed, replays - 26 - 6);
}

static void recordings_give_way(void **state)
{
    (void)state;
    check_recorded(true, scenario_shapes, REPLAYS_MAX + 1, 10 * REPLAYS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_and_greedy_f32),
        cmocka_unit_test(prompt_and_greedy_bf16),
        cmocka_unit_test(ragged_chunks),
        cmocka_unit_test(same_bits_in_any_batch),
        cmocka_unit_test(same_samples_on_every_mesh),
        cmocka_unit_test(draws_follow_the_formulas),
        cmocka_unit_test(one_bad_row_harms_no_other),
        cmocka_unit_test(steps_ask_for_shown_products_alone),
        cmocka_unit_test(a_piece_without_rows_is_waited_for),
        cmocka_unit_test(few_recordings_serve_every_size),
        cmocka_unit_test(recordings_give_way),
    };
    /* Where a run costs much: a pattern of tests to leave out. */
    if (getenv("JETD_TEST_SKIP") != NULL)
        cmocka_set_skip_filter(getenv("JETD_TEST_SKIP"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
