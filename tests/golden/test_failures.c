/* Calls of a back end fail, one in each of many lives of a stage: loading, preparing or a step then
 * ends with an error that says where, and what was taken is given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/partition.h"
#include "tests/golden/fixture.h"
#include "tests/golden/recorder.h"

enum { SLOTS = 4, TOKENS = 40 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOWER = 20 };
#else
enum { SLOWER = 1 };
#endif

static struct backend table;
static const struct backend *base; /* what the table calls */
static int calls, failing;         /* so far in this life; which one fails, -1: none */
static const char *called[2000];   /* what each is, as the life without a failure has them */
static int held;                   /* allocations not yet released */

static bool fails(const char *name)
{
    if (failing < 0 && calls < (int)(sizeof called / sizeof *called))
        called[calls] = name;
    return calls++ == failing;
}

#define ENTRY(name)                                                                                \
    static enum status name##_entry(struct device *device, const struct name##_op *op)             \
    {                                                                                              \
        return fails(#name) ? STATUS_DEVICE : base->name(device, op);                              \
    }
ENTRY(resolve)
ENTRY(embed)
ENTRY(rms_norm)
ENTRY(gemm)
ENTRY(gather)
ENTRY(silu)
ENTRY(rope)
ENTRY(kv_store)
ENTRY(attention)
ENTRY(logit_summary)
ENTRY(logit_pick)
ENTRY(logit_top)
ENTRY(logit_adjust)
ENTRY(logit_histogram)
ENTRY(logit_draw)
ENTRY(count)
ENTRY(remember)
ENTRY(gate_up)
ENTRY(jet_mixer)
#undef ENTRY

static enum status allocate(struct device *device, size_t bytes, void **memory)
{
    enum status status =
        fails("allocate") ? STATUS_NO_MEMORY : base->allocate(device, bytes, memory);
    held += status == STATUS_OK;
    return status;
}

static void release(struct device *device, void *memory)
{
    held -= memory != NULL;
    base->release(device, memory);
}

static enum status upload(struct device *device, void *to, const void *from, size_t bytes)
{
    return fails("upload") ? STATUS_DEVICE : base->upload(device, to, from, bytes);
}

static enum status download(struct device *device, void *to, const void *from, size_t bytes)
{
    return fails("download") ? STATUS_DEVICE : base->download(device, to, from, bytes);
}

static enum status copy(struct device *device, void *to, const void *from, size_t bytes)
{
    return fails("copy") ? STATUS_DEVICE : base->copy(device, to, from, bytes);
}

static enum status zero(struct device *device, void *to, size_t bytes)
{
    return fails("zero") ? STATUS_DEVICE : base->zero(device, to, bytes);
}

static enum status synchronize(struct device *device)
{
    return fails("synchronize") ? STATUS_DEVICE : base->synchronize(device);
}

static enum status prepare(struct device *device, const struct prepare_op *ops, int count,
                           int *choices)
{
    return fails("gemm_prepare") ? STATUS_DEVICE : base->gemm_prepare(device, ops, count, choices);
}

static enum status replay(struct device *device, const struct recording *recording)
{
    return fails("replay") ? STATUS_DEVICE : base->replay(device, recording);
}

static void table_make(const struct backend *backend)
{
    base = backend;
    table = *backend;
#define USE(name) table.name = name##_entry
    USE(resolve), USE(embed), USE(rms_norm), USE(gemm), USE(gather), USE(silu), USE(rope);
    USE(kv_store), USE(attention), USE(logit_summary), USE(logit_pick), USE(logit_top);
    USE(logit_adjust), USE(logit_histogram), USE(logit_draw), USE(count), USE(remember);
    USE(gate_up), USE(jet_mixer);
#undef USE
    table.allocate = allocate;
    table.release = release;
    table.upload = upload;
    table.download = download;
    table.copy = copy;
    table.zero = zero;
    table.synchronize = synchronize;
    if (backend->gemm_prepare != NULL)
        table.gemm_prepare = prepare;
    if (backend->replay != NULL)
        table.replay = replay;
}

/* ---- a short life of a stage ---------------------------------------------------------------- */

struct life {
    struct fixture *fixture;
    struct checkpoint *checkpoint;
    struct plan *plan;
    struct fabric *fabric;
    struct device *device;
    struct stage *stage;
    struct step_shape shape;
    struct step_builder *builder;
};

/* A prompt with everything that sampling can be asked for beside one with nothing, then each one's
 * next token. */
static const void *step_compose(struct life *life, int number, size_t *length)
{
    const struct logit_bias bias = {.id = 3, .value = 1.0f};
    const int32_t bans[] = {5};
    step_begin(life->builder, (uint64_t)number);
    for (int slot = 0, token = 0; slot < 2; slot++) {
        struct step_sequence sequence = {.slot = slot,
                                         .context = number == 1 ? 0 : 9 + number - 2,
                                         .tokens = number == 1 ? 9 : 1,
                                         .new_blocks = number == 1,
                                         .counted = slot == 1};
        const int32_t block = slot, last = -1 - slot;
        const int32_t *tokens = number == 1 ? life->fixture->prompt + slot : &last;
        struct step_row row = {.sample = {.slot = slot, .target = -1, .top_p = 1, .repetition = 1}};
        assert_int_equal(step_add_sequence(life->builder, &sequence, tokens, &block), STATUS_OK);
        token += sequence.tokens;
        row.token = token - 1;
        row.sample.draw = (uint64_t)number;
        if (slot == 1)
            row.sample = (struct sample_row){.slot = slot,
                                             .target = -1,
                                             .temperature = 0.8f,
                                             .top_p = 0.9f,
                                             .min_p = 0.01f,
                                             .top_k = 50,
                                             .repetition = 1.1f,
                                             .presence = 0.1f,
                                             .frequency = 0.1f,
                                             .draw = (uint64_t)number,
                                             .bias_count = 1,
                                             .ban_count = 1,
                                             .tops = 3,
                                             .flags = SAMPLE_COUNTED};
        assert_int_equal(step_add_row(life->builder, row, &bias, bans), STATUS_OK);
    }
    return step_finish(life->builder, length);
}

static enum status steps_run(struct life *life, struct error *error)
{
    struct sample_result results[SLOTS];
    enum status status = STATUS_OK;
    for (int number = 1; number <= 4 && status == STATUS_OK; number++) {
        size_t length;
        struct step step;
        const void *bytes = step_compose(life, number, &length);
        assert_int_equal(step_decode(&life->shape, bytes, length, &step, error), STATUS_OK);
        status = stage_run(life->stage, &step, results, error);
    }
    return status;
}

static enum status life_run(struct life *life, struct error *error)
{
    struct stage_options options = {.plan = life->plan,
                                    .checkpoint = life->checkpoint,
                                    .backend = &table,
                                    .device = life->device,
                                    .fabric = life->fabric,
                                    .limit = life->fixture->vocab};
    int choices;
    bool more = true;
    enum status status = stage_open(&options, &life->stage, error);
    if (status != STATUS_OK)
        return status;
    status = stage_prepare(life->stage, &choices, error);
    while (status == STATUS_OK && more)
        status = stage_record(life->stage, &more, error);
    if (status == STATUS_OK)
        status = steps_run(life, error);
    stage_close(life->stage);
    return status;
}

static void life_open(struct life *life)
{
    struct limits limits = {.max_model_len = 64,
                            .max_num_seqs = SLOTS,
                            .max_num_batched_tokens = TOKENS,
                            .block_tokens = 16};
    const struct device_options device = {
        .threads = 1, .max_tokens = TOKENS, .max_sequences = SLOTS};
    struct model_config config;
    struct error error = {0};
    const struct mesh mesh = {1, 1, 1};
    life->fixture = fixture_open(JETD_TEST_DATA "/fixtures/tiny-f32");
    if (model_config_load(life->fixture->folder, &config, &error) != STATUS_OK ||
        plan_make(&config, mesh, limits, table.activation, &life->plan, &error) != STATUS_OK ||
        checkpoint_open(life->fixture->folder, &config, &life->checkpoint, &error) != STATUS_OK ||
        table.open(&device, &life->device, &error) != STATUS_OK ||
        fabric_open_self(&(struct fabric_options){.mesh = mesh}, &life->fabric, &error) !=
            STATUS_OK ||
        fabric_attach(life->fabric, &(struct fabric_memory){&table, life->device}) != STATUS_OK)
        fail_msg("%s", error.text);
    plan_step_shape(life->plan, &life->shape);
    life->builder = step_builder_create(&life->shape);
}

static void life_close(struct life *life)
{
    step_builder_destroy(life->builder);
    fabric_close(life->fabric);
    table.close(life->device);
    checkpoint_close(life->checkpoint);
    plan_free(life->plan);
    fixture_close(life->fixture);
}

/* The first two of a kind, and every `apart`th. */
static bool is_chosen(int call, int apart)
{
    int same = 0;
    for (int i = 0; i < call; i++)
        same += strcmp(called[i], called[call]) == 0;
    return same < 2 || call % apart == 0;
}

/* A whole life makes `least` calls at least. */
static void check_all(const struct backend *backend, int apart, int least)
{
    struct life life = {0};
    struct error error = {0};
    table_make(backend);
    life_open(&life);
    calls = 0;
    failing = -1;
    assert_int_equal(life_run(&life, &error), STATUS_OK);
    int all = calls;
    assert_in_range(all, least, sizeof called / sizeof *called);
    assert_int_equal(held, 0);
    for (failing = 0; failing < all; failing++) {
        if (!is_chosen(failing, apart))
            continue;
        error = (struct error){0};
        calls = 0;
        enum status status = life_run(&life, &error);
        enum status given =
            strcmp(called[failing], "allocate") == 0 ? STATUS_NO_MEMORY : STATUS_DEVICE;
        assert_true(calls > failing);
        assert_int_equal(recorder.recorded, recorder.freed);
        if (status != given || error.text[0] == '\0')
            fail_msg("call %d, %s, failed: %s, '%s'", failing, called[failing], status_name(status),
                     error.text);
        assert_int_equal(held, 0);
    }
    life_close(&life);
}

static void any_call_may_fail(void **state)
{
    (void)state;
    check_all(backend_find("cpu"), 7 * SLOWER, 500);
}

static void so_may_a_replayed_step(void **state)
{
    (void)state;
    check_all(recorder_open(true), 29 * SLOWER, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_call_may_fail),
        cmocka_unit_test(so_may_a_replayed_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
