/* Plans of the published models and of shapes made up here: every piece of the model on exactly one
 * tensor rank, memory that adds up, refusals that name what does not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/partition.h"

static const struct limits usual = {
    .max_model_len = 8192, .max_num_seqs = 16, .max_num_batched_tokens = 512, .block_tokens = 64};

static struct model_config model_named(const char *name)
{
    struct model_config config;
    struct error error = {0};
    assert_int_equal(model_config_builtin(name, &config, &error), STATUS_OK);
    return config;
}

/* Six layers, none of whose sizes is round. */
static struct model_config model_small(void)
{
    struct model_config config = {
        .layers = 6,
        .hidden = 60,
        .intermediate = 101,
        .vocab = 333,
        .attention_heads = 6,
        .kv_heads = 2,
        .head_dim = 10,
        .window = 24,
        .jet_heads = 5,
        .jet_d_k = 12,
        .jet_d_v = 16,
        .conv_taps = 4,
        .generator = 10,
        .max_position = 1000,
        .tied = false,
        .layer = {LAYER_JET, LAYER_ATTN, LAYER_SWA, LAYER_JET, LAYER_JET, LAYER_ATTN}};
    return config;
}

static struct plan *plan_of(const struct model_config *model, struct mesh mesh,
                            struct limits limits)
{
    struct plan *plan = NULL;
    struct error error = {0};
    enum status status = plan_make(model, mesh, limits, DTYPE_BF16, &plan, &error);
    if (status != STATUS_OK)
        print_error("%s\n", error.text);
    assert_int_equal(status, STATUS_OK);
    return plan;
}

/* ---- spans -------------------------------------------------------------------------------- */

/* Adds 1 at every place of the span. */
static void cover(int *covered, struct span span, int size)
{
    assert_true(span.begin >= 0 && span.begin < span.end && span.end <= size);
    for (int i = span.begin; i < span.end; i++)
        covered[i]++;
}

static void assert_covered(const int *covered, int size, int times)
{
    for (int i = 0; i < size; i++)
        assert_int_equal(covered[i], times);
}

static void check_axis(const struct plan *plan, size_t span_offset, int size, int times)
{
    int *covered = calloc((size_t)size, sizeof *covered);
    for (int i = 0; i < plan->ranks; i++) {
        struct span span;
        memcpy(&span, (const char *)&plan->rank[i] + span_offset, sizeof span);
        cover(covered, span, size);
    }
    assert_covered(covered, size, times);
    free(covered);
}

/* Each local query head reads, by attention_op's rule, the kv head that the whole model gives it.
 */
static void check_groups(const struct plan *plan)
{
    const struct model_config *m = &plan->model;
    for (int r = 0; r < plan->ranks; r++) {
        const struct rank_plan *rank = &plan->rank[r];
        assert_int_equal(rank->group, m->attention_heads / m->kv_heads);
        for (int q = rank->q_heads.begin; q < rank->q_heads.end; q++) {
            int local = (rank->group_offset + q - rank->q_heads.begin) / rank->group;
            int global = q / (m->attention_heads / m->kv_heads);
            assert_int_equal(rank->kv_heads.begin + local, global);
            assert_true(local < span_size(rank->kv_heads));
        }
    }
}

static void check_layers(const struct plan *plan)
{
    for (int r = 0; r < plan->ranks; r++) {
        const struct rank_plan *rank = &plan->rank[r];
        assert_int_equal(rank->rank, r);
        assert_int_equal(rank->first, rank->layers.begin == 0);
        assert_int_equal(rank->last, rank->layers.end == plan->model.layers);
        assert_int_equal(rank->jet_layers + rank->attn_layers + rank->swa_layers,
                         span_size(rank->layers));
    }
}

static void check_cover(const struct plan *plan)
{
    const struct model_config *m = &plan->model;
    int tensor = plan->mesh.tensor, pipeline = plan->mesh.pipeline;
    check_axis(plan, offsetof(struct rank_plan, jet_heads), m->jet_heads, pipeline);
    check_axis(plan, offsetof(struct rank_plan, q_heads), m->attention_heads, pipeline);
    check_axis(plan, offsetof(struct rank_plan, columns), m->intermediate, pipeline);
    check_axis(plan, offsetof(struct rank_plan, vocab), m->vocab, pipeline);
    check_axis(plan, offsetof(struct rank_plan, layers), m->layers, tensor);
    check_groups(plan);
    check_layers(plan);
}

static void published_models_at_every_size(void **state)
{
    static const struct {
        const char *name;
        struct mesh mesh;
    } cases[] = {
        {"jet-nemotron-4b", {1, 1, 1}},  {"jet-nemotron-4b", {2, 1, 1}},
        {"jet-nemotron-4b", {4, 1, 1}},  {"jet-nemotron-4b", {8, 1, 1}},
        {"jet-nemotron-4b", {16, 1, 1}}, {"jet-nemotron-4b", {4, 1, 4}},
        {"jet-nemotron-4b", {2, 1, 8}},  {"jet-nemotron-4b", {1, 1, 16}},
        {"jet-nemotron-2b", {1, 1, 1}},  {"jet-nemotron-2b", {2, 1, 1}},
        {"jet-nemotron-2b", {3, 1, 1}},  {"jet-nemotron-2b", {4, 1, 1}},
        {"jet-nemotron-2b", {6, 1, 1}},  {"jet-nemotron-2b", {12, 1, 1}},
        {"jet-nemotron-2b", {3, 1, 4}},  {"jet-nemotron-2b", {2, 1, 3}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config model = model_named(cases[i].name);
        struct plan *plan = plan_of(&model, cases[i].mesh, usual);
        check_cover(plan);
        plan_free(plan);
    }
}

static void uneven_sizes_are_covered(void **state)
{
    struct model_config model = model_small();
    (void)state;
    for (int tensor = 1; tensor <= 5; tensor++) {
        for (int pipeline = 1; pipeline <= 6; pipeline++) {
            struct plan *plan = plan_of(&model, (struct mesh){tensor, 1, pipeline}, usual);
            check_cover(plan);
            plan_free(plan);
        }
    }
}

/* ---- memory --------------------------------------------------------------------------------- */

/* The published tables: parameters, state per sequence and KV per token in bf16. */
static void memory_of_the_published_models(void **state)
{
    static const struct {
        const char *name;
        double parameters;      /* with the embedding once */
        double recurrent, conv; /* bytes per sequence */
        double rings;
        uint64_t kv; /* bytes per token */
    } cases[] = {
        {"jet-nemotron-2b", 1.731e9 + 0.233e9, 28.3e6, 0.44e6, 2.4e6, 2048},
        {"jet-nemotron-4b", 3.649e9 + 0.311e9, 54.5e6, 0.64e6, 14.7e6, 3072},
    };
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct model_config model = model_named(cases[i].name);
        struct plan *plan = plan_of(&model, (struct mesh){1, 1, 1}, usual);
        const struct rank_plan *rank = &plan->rank[0];
        double per_sequence = cases[i].recurrent + cases[i].conv + cases[i].rings;
        assert_true(rank->weight_bytes > 0.995 * 2 * cases[i].parameters);
        assert_true(rank->weight_bytes < 1.01 * 2 * cases[i].parameters);
        assert_true(rank->state_bytes_per_sequence > 0.99 * per_sequence);
        assert_true(rank->state_bytes_per_sequence < 1.01 * per_sequence);
        assert_int_equal(rank->kv_bytes_per_token, cases[i].kv);
        plan_free(plan);
    }
}

/* What several ranks hold of weights is what one holds, but for the replicated parts. */
static void memory_is_shared(void **state)
{
    struct model_config model = model_named("jet-nemotron-4b");
    struct plan *one = plan_of(&model, (struct mesh){1, 1, 1}, usual);
    struct plan *many = plan_of(&model, (struct mesh){8, 1, 1}, usual);
    double sum = 0;
    (void)state;
    for (int i = 0; i < many->ranks; i++)
        sum += (double)many->rank[i].weight_bytes;
    assert_true(sum > (double)one->rank[0].weight_bytes);
    assert_true(sum < 1.15 * (double)one->rank[0].weight_bytes);
    for (int i = 0; i < many->ranks; i++) {
        const struct rank_plan *rank = &many->rank[i];
        /* one of each more than can be asked for: for idle sequences */
        uint64_t kv = (rank->kv_blocks + 1) * 64 * rank->kv_bytes_per_token;
        uint64_t state_bytes = (16 + 1) * rank->state_bytes_per_sequence;
        uint64_t parts =
            rank->weight_bytes + rank->scratch_bytes + rank->recording_bytes + kv + state_bytes;
        assert_true(rank->total_bytes >= parts);
        assert_true(rank->total_bytes < parts + 64 * 1024); /* alignment */
    }
    plan_free(one);
    plan_free(many);
}

static void blocks_fill_what_memory_leaves(void **state)
{
    struct model_config model = model_named("jet-nemotron-4b");
    struct limits limits = usual;
    (void)state;
    struct plan *plenty = plan_of(&model, (struct mesh){2, 1, 2}, limits);
    assert_int_equal(plenty->limits.kv_blocks, 16 * 8192 / 64); /* more is of no use */
    uint64_t most = 0;
    for (int i = 0; i < 4; i++) {
        if (plenty->rank[i].total_bytes > most)
            most = plenty->rank[i].total_bytes;
    }
    limits.memory_bytes = most - ((uint64_t)16 << 20);
    struct plan *tight = plan_of(&model, (struct mesh){2, 1, 2}, limits);
    assert_true(tight->limits.kv_blocks < plenty->limits.kv_blocks);
    bool full = false;
    for (int i = 0; i < 4; i++) {
        const struct rank_plan *rank = &tight->rank[i];
        assert_int_equal(rank->kv_blocks, tight->limits.kv_blocks);
        assert_true(rank->total_bytes <= limits.memory_bytes);
        full |= rank->total_bytes + 65 * 64 * rank->kv_bytes_per_token > limits.memory_bytes;
    }
    assert_true(full);
    assert_int_not_equal(tight->digest, plenty->digest);
    plan_free(plenty);
    plan_free(tight);
}

static void a_model_without_attention_has_blocks_for_nothing(void **state)
{
    struct model_config model = model_small();
    (void)state;
    for (int i = 0; i < model.layers; i++)
        model.layer[i] = LAYER_JET;
    struct plan *plan = plan_of(&model, (struct mesh){1, 1, 1}, usual);
    assert_int_equal(plan->rank[0].kv_bytes_per_token, 0);
    assert_int_equal(plan->limits.kv_blocks, 16 * 8192 / 64);
    plan_free(plan);
}

/* ---- pipeline cuts --------------------------------------------------------------------------- */

/* No way of moving one cut by one layer makes the dearest stage cheaper; and no stage of the
 * published models costs twice the mean. */
static void cuts_are_balanced(void **state)
{
    struct model_config model = model_named("jet-nemotron-4b");
    (void)state;
    for (int stages = 2; stages <= 8; stages *= 2) {
        struct plan *plan = plan_of(&model, (struct mesh){1, 1, stages}, usual);
        double most = 0, sum = 0;
        for (int i = 0; i < stages; i++) {
            most = plan->rank[i].cost > most ? plan->rank[i].cost : most;
            sum += plan->rank[i].cost;
        }
        assert_true(most < 1.35 * sum / stages);
        plan_free(plan);
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void assert_refused(const struct model_config *model, struct mesh mesh, struct limits limits,
                           const char *a, const char *b)
{
    struct plan *plan = NULL;
    struct error error = {0};
    assert_int_equal(plan_make(model, mesh, limits, DTYPE_BF16, &plan, &error), STATUS_CONFIG);
    assert_null(plan);
    if (strstr(error.text, a) == NULL || strstr(error.text, b) == NULL)
        fail_msg("'%s' does not say '%s' and '%s'", error.text, a, b);
}

static void refusals_name_axis_and_size(void **state)
{
    struct model_config four = model_named("jet-nemotron-4b");
    struct model_config two = model_named("jet-nemotron-2b");
    struct model_config small = model_small();
    struct limits limits = usual;
    (void)state;
    assert_refused(&four, (struct mesh){32, 1, 1}, usual, "tensor parallel size 32", "16 jet");
    assert_refused(&two, (struct mesh){16, 1, 1}, usual, "tensor parallel size 16", "1 .. 12");
    assert_refused(&small, (struct mesh){6, 1, 1}, usual, "tensor parallel size 6", "5 jet heads");
    small.jet_heads = 16; /* the shorter of both kinds of heads is named */
    assert_refused(&small, (struct mesh){20, 1, 1}, usual, "6 query heads", "1 .. 6 work");
    assert_refused(&four, (struct mesh){1, 2, 1}, usual, "context parallel size 2", "size 1");
    assert_refused(&four, (struct mesh){1, 1, 37}, usual, "pipeline parallel size 37", "36 layers");
    assert_refused(&four, (struct mesh){0, 1, 1}, usual, "mesh 0 x 1 x 1", "at least 1");
    assert_refused(&four, (struct mesh){64, 1, 128}, usual, "mesh 64 x 1 x 128", "4096");
    limits.max_num_seqs = 0;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "max_num_seqs 0", "1 ..");
    limits = usual;
    limits.max_num_batched_tokens = 8;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "max_num_batched_tokens 8", "16");
    limits = usual;
    limits.block_tokens = -1;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "block_tokens -1", "1 ..");
    limits = usual;
    limits.max_model_len = -5;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "max_model_len -5", "1 ..");
}

static void refusals_name_memory(void **state)
{
    struct model_config four = model_named("jet-nemotron-4b");
    struct limits limits = usual;
    (void)state;
    limits.memory_bytes = 1000000000;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "memory_bytes is 1000000000", "weights");
    struct plan *plan = plan_of(&four, (struct mesh){1, 1, 1}, usual);
    uint64_t without = plan->rank[0].total_bytes - plan->limits.kv_blocks * 64 * 3072;
    plan_free(plan);
    limits.memory_bytes = without + 10 * 64 * 3072; /* ten blocks, not a sequence of 8192 */
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "KV blocks", "would fit");
    limits.kv_blocks = 5000;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "5000 KV blocks", "max_num_seqs");
    limits = usual; /* 8192 tokens are 128 blocks of 64 */
    limits.kv_blocks = 127;
    assert_refused(&four, (struct mesh){1, 1, 1}, limits, "kv_blocks 127", "needs 128");
    limits.kv_blocks = 128;
    plan_free(plan_of(&four, (struct mesh){1, 1, 1}, limits));
}

/* Each region alone can be more than 64 bits count; with a limit and without one. */
static void sizes_beyond_64_bits_are_refused(void **state)
{
    const struct limits most = {.max_model_len = 1 << 24,
                                .max_num_seqs = 65535,
                                .max_num_batched_tokens = 65536,
                                .block_tokens = 4096};
    struct model_config model = model_small();
    struct mesh one = {1, 1, 1};
    (void)state;
    model.layers = MODEL_LAYERS_MAX;
    model.window = 1 << 24;
    model.attention_heads = model.kv_heads = 8;
    model.head_dim = 1024;
    for (int i = 0; i < model.layers; i++)
        model.layer[i] = LAYER_SWA;
    for (int gib = 0; gib <= 16; gib += 16) {
        struct limits limits = most;
        limits.memory_bytes = (uint64_t)gib << 30;
        assert_refused(&model, one, limits, "64 bits can count (state)", "max_num_seqs 65535");
    }
    for (int i = 0; i < model.layers; i++)
        model.layer[i] = LAYER_ATTN;
    model.attention_heads = model.kv_heads = 1024;
    struct limits limits = usual;
    limits.block_tokens = 4096;
    limits.kv_blocks = INT32_MAX;
    assert_refused(&model, one, limits, "64 bits can count (KV blocks)", "2147483647 KV blocks");
}

/* ---- digest and print ------------------------------------------------------------------------ */

static uint64_t digest_of(struct model_config model, struct mesh mesh, struct limits limits)
{
    struct plan *plan = plan_of(&model, mesh, limits);
    uint64_t digest = plan->digest;
    plan_free(plan);
    return digest;
}

static void digests_tell_plans_apart(void **state)
{
    struct model_config model = model_small(), other = model_small();
    struct limits limits = usual;
    struct mesh one = {1, 1, 1};
    (void)state;
    uint64_t digest = digest_of(model, one, usual);
    assert_int_equal(digest, digest_of(model, one, usual));
    assert_int_not_equal(digest, digest_of(model, (struct mesh){2, 1, 1}, usual));
    other.rms_epsilon = 1e-5f;
    assert_int_not_equal(digest, digest_of(other, one, usual));
    other = model;
    other.rope.theta = 5;
    assert_int_not_equal(digest, digest_of(other, one, usual));
    limits.max_num_seqs = 17;
    assert_int_not_equal(digest, digest_of(model, one, limits));
}

/* The caller frees it. */
static char *print_of(const struct plan *plan)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    plan_print(plan, out);
    fclose(out);
    return text;
}

static void the_print_names_every_rank(void **state)
{
    struct model_config model = model_named("jet-nemotron-2b");
    struct plan *plan = plan_of(&model, (struct mesh){3, 1, 2}, usual);
    char *text = print_of(plan);
    (void)state;
    for (int i = 0; i < plan->ranks; i++) {
        char line[32];
        snprintf(line, sizeof line, "rank %d (tensor %d,", i, i % 3);
        assert_non_null(strstr(text, line));
    }
    assert_non_null(strstr(text, "kv heads     0 .. 1 (2)"));
    free(text);
    plan_free(plan);
}

/* Whether it fits is said with a limit, and without one that nothing was compared. */
static void the_print_says_what_fits(void **state)
{
    struct model_config model = model_named("jet-nemotron-4b");
    struct limits limits = usual;
    (void)state;
    struct plan *plan = plan_of(&model, (struct mesh){1, 1, 1}, limits);
    char *text = print_of(plan);
    assert_non_null(strstr(text, "memory limit: none given; --memory BYTES"));
    assert_null(strstr(text, "8192 "));
    free(text);
    uint64_t block = 64 * plan->rank[0].kv_bytes_per_token;
    limits.memory_bytes = plan->rank[0].total_bytes - (plan->limits.kv_blocks - 3 * 128) * block;
    plan_free(plan);

    limits.memory_bytes += block; /* alignment: 3 sequences of 128 blocks and a little */
    plan = plan_of(&model, (struct mesh){1, 1, 1}, limits);
    text = print_of(plan);
    assert_non_null(strstr(text, "\nmemory limit: "));
    assert_non_null(strstr(text, " MiB a rank\n"));
    assert_non_null(strstr(text, "\n  1024         16\n")); /* slots bound these */
    assert_non_null(strstr(text, "\n  4096         6\n"));
    assert_non_null(strstr(text, "\n  8192         3\n"));
    free(text);
    plan_free(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_models_at_every_size),
        cmocka_unit_test(uneven_sizes_are_covered),
        cmocka_unit_test(memory_of_the_published_models),
        cmocka_unit_test(memory_is_shared),
        cmocka_unit_test(blocks_fill_what_memory_leaves),
        cmocka_unit_test(a_model_without_attention_has_blocks_for_nothing),
        cmocka_unit_test(cuts_are_balanced),
        cmocka_unit_test(refusals_name_axis_and_size),
        cmocka_unit_test(refusals_name_memory),
        cmocka_unit_test(sizes_beyond_64_bits_are_refused),
        cmocka_unit_test(digests_tell_plans_apart),
        cmocka_unit_test(the_print_names_every_rank),
        cmocka_unit_test(the_print_says_what_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
