/* What settings come to in numbers, and which of them a place refuses by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/capacity.h"
#include "daemon/scheduler.h"

/* As the command line would leave them. */
static struct settings usual(void)
{
    return (struct settings){
        .pipeline = 1, .context = 1, .block_size = 64, .gpu_memory_utilization = 0.9};
}

static const struct capacity_place gpu = {.cuda = true, .tensor = 1};
static const struct capacity_place cpu = {.cuda = false, .tensor = 4};

static void assert_served(struct settings settings, struct capacity_place place)
{
    struct error error = {0};
    if (capacity_check(&settings, &place, &error) != STATUS_OK)
        fail_msg("refused: %s", error.text);
}

static void assert_refused(struct settings settings, struct capacity_place place, const char *a,
                           const char *b)
{
    struct error error = {0};
    assert_int_equal(capacity_check(&settings, &place, &error), STATUS_CONFIG);
    if (strstr(error.text, a) == NULL || strstr(error.text, b) == NULL)
        fail_msg("'%s' does not say '%s' and '%s'", error.text, a, b);
}

static void defaults_are_served_everywhere(void **state)
{
    struct settings settings = usual();
    (void)state;
    for (int invariant = 0; invariant <= 1; invariant++) {
        settings.batch_invariant = invariant;
        assert_served(settings, gpu);
        assert_served(settings, cpu);
    }
}

static void blocks_of_cuda_are_whole_pages(void **state)
{
    struct settings settings = usual();
    (void)state;
    for (int size = 64; size <= 4096; size *= 2) {
        settings.block_size = size;
        assert_served(settings, gpu);
    }
    const int bad[] = {1, 16, 32, 63, 65, 96, 4095};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        settings.block_size = bad[i];
        assert_refused(settings, gpu, "--block-size", "multiple of 64");
        assert_served(settings, cpu);
    }
}

/* The unit that the scheduler comes to. */
static int unit_of(int sequences, int tokens)
{
    const struct step_shape shape = {.max_sequences = sequences,
                                     .max_tokens = tokens,
                                     .max_rows = tokens,
                                     .max_blocks = 64,
                                     .slots = sequences,
                                     .kv_blocks = 64,
                                     .block_tokens = 64,
                                     .max_model_len = 64};
    struct scheduler *scheduler;
    assert_int_equal(scheduler_create(&shape, &scheduler, NULL), STATUS_OK);
    int unit = scheduler_unit(scheduler);
    scheduler_destroy(scheduler);
    return unit;
}

static void invariance_needs_room_for_a_unit(void **state)
{
    struct settings settings = usual();
    (void)state;
    settings.max_num_seqs = 256;
    settings.max_num_batched_tokens = 256;
    assert_served(settings, gpu);
    settings.batch_invariant = true;
    assert_refused(settings, gpu, "--max-num-batched-tokens 320", "--max-num-seqs 256");
    assert_served(settings, cpu);
    settings.max_num_batched_tokens = 319;
    assert_refused(settings, gpu, "--max-num-batched-tokens 320", "it is 319");
    assert_true(unit_of(256, 319) < SCHEDULER_UNIT_MAX);
    settings.max_num_batched_tokens = 320;
    assert_served(settings, gpu);
    assert_int_equal(unit_of(256, 320), SCHEDULER_UNIT_MAX);
    settings.max_num_seqs = 9000; /* the default of tokens grows to that, no further */
    settings.max_num_batched_tokens = 0;
    assert_refused(settings, gpu, "9064", "9000");
}

static void invariance_ends_with_two_ranks_over_nccl(void **state)
{
    struct settings settings = usual();
    struct capacity_place place = {.cuda = true, .nccl = true, .tensor = 2};
    (void)state;
    settings.batch_invariant = true;
    assert_served(settings, place);
    place.tensor = 3;
    assert_refused(settings, place, "--batch-invariant", "--tensor-parallel-size 3 over NCCL");
    place.nccl = false;
    assert_served(settings, place);
    settings.batch_invariant = false;
    place.nccl = true;
    assert_served(settings, place);
}

static void heads_of_cuda_have_a_widest(void **state)
{
    struct capacity_place place = {.cuda = true, .tensor = 1, .head_dim = 256};
    (void)state;
    assert_served(usual(), place);
    place.head_dim = 320;
    assert_refused(usual(), place, "head_dim 320", "256");
    place.cuda = false;
    assert_served(usual(), place);
}

static void ranks_of_one_gpu_share_its_memory(void **state)
{
    struct settings settings = usual();
    (void)state;
    const uint64_t mib = 1 << 20;
    settings.gpu_memory_utilization = 0.5;
    assert_int_equal(capacity_gpu_share(&settings, 80000 * mib, 79000 * mib, 1), 40000 * mib);
    assert_int_equal(capacity_gpu_share(&settings, 80000 * mib, 79000 * mib, 4), 10000 * mib);
    /* where others took theirs, some of what is free stays free */
    assert_int_equal(capacity_gpu_share(&settings, 80000 * mib, 9000 * mib, 4), (2250 - 256) * mib);
    assert_int_equal(capacity_gpu_share(&settings, 80000 * mib, 40000 * mib, 1),
                     (40000 - 256) * mib);
    assert_int_equal(capacity_gpu_share(&settings, 80000 * mib, 1000 * mib, 4), 0);
}

static void meshes_take_what_was_started(void **state)
{
    struct settings settings = usual();
    struct error error = {0};
    struct mesh mesh;
    (void)state;
    settings.pipeline = 2;
    assert_int_equal(capacity_mesh(&settings, 8, &mesh, &error), STATUS_OK);
    assert_int_equal(mesh.tensor, 4);
    settings.tensor = settings.pipeline = settings.context = 4096;
    assert_int_equal(capacity_mesh(&settings, 1, &mesh, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "68719476736 ranks, but 1 was started"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_served_everywhere),
        cmocka_unit_test(blocks_of_cuda_are_whole_pages),
        cmocka_unit_test(invariance_needs_room_for_a_unit),
        cmocka_unit_test(invariance_ends_with_two_ranks_over_nccl),
        cmocka_unit_test(heads_of_cuda_have_a_widest),
        cmocka_unit_test(ranks_of_one_gpu_share_its_memory),
        cmocka_unit_test(meshes_take_what_was_started),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
