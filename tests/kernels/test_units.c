/* Tables by name, a device's memory, threads, and the choice of the delta rule's form. */
#include <stdlib.h>
#include <string.h>

#include "kernels/compose.h"
#include "kernels/cpu/team.h"
#include "tests/kernels/harness.h"

static void tables_are_found_by_name(void **state)
{
    (void)state;
    assert_string_equal(backend_find("cpu")->name, "cpu");
    assert_string_equal(backend_find("cuda")->name, "cuda");
    assert_null(backend_find("tpu"));
    assert_null(backend_find(""));
    assert_int_equal(dtype_size(DTYPE_F32), 4);
    assert_int_equal(dtype_size(DTYPE_BF16), 2);
    assert_string_equal(dtype_name(DTYPE_BF16), "bf16");
}

static void opening_fails_with_a_reason(void **state)
{
    struct device_options options = {.threads = 0};
    struct device *device = NULL;
    struct error error = {0};

    (void)state;
    assert_int_equal(backend_find("cpu")->open(&options, &device, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "threads"));
    assert_null(device);
}

static void memory_is_zeroed_aligned_and_copied(void **state)
{
    static const char text[] = "sixteen letters.";
    char back[sizeof(text)], zeros[sizeof(text)] = {0};
    size_t available, total;
    void *a, *b, *none;

    (void)state;
    MUST(h.backend->memory(h.device, &available, &total));
    assert_true(available > 0 && available <= total);
    MUST(h.backend->allocate(h.device, 1000, &a));
    MUST(h.backend->allocate(h.device, sizeof(text), &b));
    MUST(h.backend->allocate(h.device, 0, &none));
    assert_true((uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0);
    MUST(h.backend->download(h.device, back, (char *)a + 900, sizeof(back)));
    assert_memory_equal(back, zeros, sizeof(back));
    MUST(h.backend->upload(h.device, a, text, sizeof(text)));
    MUST(h.backend->copy(h.device, b, a, sizeof(text)));
    MUST(h.backend->zero(h.device, a, sizeof(text)));
    MUST(h.backend->synchronize(h.device));
    MUST(h.backend->download(h.device, back, b, sizeof(back)));
    assert_memory_equal(back, text, sizeof(text));
    MUST(h.backend->download(h.device, back, a, sizeof(back)));
    assert_memory_equal(back, zeros, sizeof(text));
    h.backend->release(h.device, a);
    h.backend->release(h.device, b);
    h.backend->release(h.device, none);
    h.backend->release(h.device, NULL);
    assert_int_equal(h.backend->allocate(h.device, SIZE_MAX - 1000, &a), STATUS_NO_MEMORY);
    assert_int_equal(h.backend->allocate(h.device, SIZE_MAX, &a), STATUS_NO_MEMORY);
}

static void empty_operations_do_nothing(void **state)
{
    struct ragged *batch = make_batch(NULL, 0, 1);

    (void)state;
    MUST(h.backend->gemm(h.device, &(struct gemm_op){.rows = 0, .columns = 8, .depth = 8}));
    MUST(h.backend->embed(h.device, &(struct embed_op){.hidden = 8, .rows = 8}));
    MUST(h.backend->attention(h.device, &(struct attention_op){.batch = batch, .heads = 2}));
    MUST(h.backend->delta_recurrent(h.device, &(struct delta_op){.batch = batch, .heads = 2}));
    MUST(h.backend->logit_summary(h.device, &(struct logit_summary_op){.columns = 8}));
    MUST(h.backend->count(h.device, &(struct count_op){.columns = 8}));
}

static void the_form_of_the_delta_rule(void **state)
{
    static const struct backend other = {.name = "other"};
    const struct ragged ones = {.sequences = 9, .tokens = 9, .max_tokens = 1};
    const struct ragged mixed = {.sequences = 9, .tokens = 20, .max_tokens = 12};

    (void)state;
    assert_int_equal(compose_delta_chunk(backend_find("cpu"), &ones), 0);
    assert_int_equal(compose_delta_chunk(backend_find("cpu"), &mixed), 0);
    assert_int_equal(compose_delta_chunk(&other, &ones), 0);
    assert_int_equal(compose_delta_chunk(&other, &mixed), 64);
}

/* ---- threads ---- */

struct tally {
    int *visits; /* by unit: each is touched by one thread */
};

static void visit(const void *op, int begin, int end)
{
    const struct tally *tally = op;

    for (int i = begin; i < end; i++)
        tally->visits[i]++;
}

static void a_team_visits_every_unit_once(void **state)
{
    struct team *team;

    (void)state;
    MUST(team_create(3, &team, NULL));
    for (int units = 0; units < 200; units += 7) {
        struct tally tally = {host_memory(200, sizeof(int))};
        team_run(team, visit, &tally, units, 1 + units % 16);
        for (int i = 0; i < 200; i++)
            assert_int_equal(tally.visits[i], i < units);
    }
    team_destroy(team);
}

static void threads_do_not_change_the_bits(void **state)
{
    enum { ROWS = 5, COLUMNS = 100, DEPTH = 70 };
    const struct device_options options = {.threads = 3, .max_tokens = 8, .max_sequences = 8};
    float *x = random_floats(ROWS * DEPTH, 1.0), *w = random_floats(COLUMNS * DEPTH, 1.0);
    float *one = host_memory(ROWS * COLUMNS, 4), *three = host_memory(ROWS * COLUMNS, 4);
    const struct backend *cpu = backend_find("cpu");
    struct device *alone, *team;
    struct device_options single = options;
    struct gemm_op op = {.rows = ROWS,
                         .columns = COLUMNS,
                         .depth = DEPTH,
                         .ld_x = DEPTH,
                         .ld_out = COLUMNS,
                         .x = x,
                         .weight = w};

    (void)state;
    single.threads = 1;
    MUST(cpu->open(&single, &alone, NULL));
    MUST(cpu->open(&options, &team, NULL));
    op.out = one;
    MUST(cpu->gemm(alone, &op));
    op.out = three;
    MUST(cpu->gemm(team, &op));
    assert_same_bits(one, three, ROWS * COLUMNS);
    cpu->close(alone);
    cpu->close(team);
}

/* Freed while the device has milliseconds of replays before it: they end as they would have. */
static void a_recording_may_go_while_it_replays(void **state)
{
    enum { ROWS = 8192, COLUMNS = 2048, ADDITIONS = 50, REPLAYS = 4 };
    const size_t count = (size_t)ROWS * COLUMNS;
    struct recording *recording;
    (void)state;
    if (h.backend->record_begin == NULL)
        skip();
    float *ones = host_memory(count, sizeof *ones);
    for (size_t i = 0; i < count; i++)
        ones[i] = 1.0f;
    void *zeros = put(host_memory(count, sizeof(float)), count);
    struct rms_norm_op add = {
        .rows = ROWS, .columns = COLUMNS, .x = zeros, .delta = put(ones, count)};
    MUST(h.backend->record_begin(h.device));
    for (int i = 0; i < ADDITIONS; i++)
        MUST(h.backend->rms_norm(h.device, &add));
    MUST(h.backend->record_end(h.device, &recording));
    for (int i = 0; i < REPLAYS; i++)
        MUST(h.backend->replay(h.device, recording));
    h.backend->recording_free(h.device, recording);
    float *got = get(zeros, count);
    for (size_t i = 0; i < count; i++)
        assert_true(got[i] == ADDITIONS * REPLAYS);
    h.backend->recording_free(h.device, NULL);
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tables_are_found_by_name),
        TEST(opening_fails_with_a_reason),
        TEST(memory_is_zeroed_aligned_and_copied),
        TEST(a_recording_may_go_while_it_replays),
        TEST(empty_operations_do_nothing),
        TEST(the_form_of_the_delta_rule),
        TEST(a_team_visits_every_unit_once),
        TEST(threads_do_not_change_the_bits),
    };

    return harness_run(tests);
}
