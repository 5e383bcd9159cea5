/* jetbench decode and prefill: steps of the real stages, without engine and clients. The context of
 * a decode is injected, not computed: speed does not depend on the values. Under mpirun every rank
 * runs the same steps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"
#include "daemon/base/clock.h"
#include "daemon/rank.h"
#include "daemon/scheduler.h"
#include "tests/perf/bench.h"
#include "tests/perf/samples.h"

struct bench {
    const char *config, *device;
    int batch, context, steps, chunk, tensor, pipeline;
    bool batch_invariant, json, help;
};

#define AT(field) offsetof(struct bench, field)
/* clang-format off */
static const struct option_entry entries[] = {
    {"config", NULL, OPTION_STRING, "jet-nemotron-4b", "NAME", "built-in shape, or a checkpoint folder whose shape is used", 0, 0, NULL, AT(config)},
    {"device", NULL, OPTION_CHOICE, "cuda", NULL, "where", 0, 0, "cpu|cuda", AT(device)},
    {"batch", NULL, OPTION_INT, "1", "N", "sequences", 1, 4096, NULL, AT(batch)},
    {"context", NULL, OPTION_INT, "4096", "TOKENS", "decode: tokens before the first step; prefill: tokens of the prompt", 1, 1 << 28, NULL, AT(context)},
    {"steps", NULL, OPTION_INT, "40", "N", "decode: timed steps; prefill: repeats", 1, 100000, NULL, AT(steps)},
    {"chunk", NULL, OPTION_INT, "8192", "TOKENS", "prefill: tokens of one step", 1, 1 << 20, NULL, AT(chunk)},
    {"tp", NULL, OPTION_INT, "1", "N", "tensor parallel ranks", 1, 64, NULL, AT(tensor)},
    {"pp", NULL, OPTION_INT, "1", "N", "pipeline stages", 1, 64, NULL, AT(pipeline)},
    {"batch-invariant", NULL, OPTION_FLAG, "false", NULL, "as jetd's --batch-invariant", 0, 0, NULL, AT(batch_invariant)},
    {"json", NULL, OPTION_FLAG, "false", NULL, "one JSON object a line", 0, 0, NULL, AT(json)},
    {"help", NULL, OPTION_FLAG, "false", NULL, "print this and exit", 0, 0, NULL, AT(help)},
};
/* clang-format on */

static const struct option_table table = {
    .program = "jetbench",
    .synopsis = "jetbench decode|prefill [options]: random weights, the published shapes.",
    .entries = entries,
    .count = sizeof entries / sizeof entries[0],
};

/* ---- what a step must move and compute ---------------------------------------------------- */

static double layer_count(const struct plan *plan, enum layer_type type)
{
    int count = 0;
    for (int i = 0; i < plan->model.layers; i++)
        count += plan->model.layer[i] == type;
    return count;
}

/* Weights once; state read and written; every key and value that a token sees. */
static double decode_bytes(const struct plan *plan, int batch, double context)
{
    const struct model_config *m = &plan->model;
    double act = (double)dtype_size(plan->activation), weights = 0;
    for (int i = 0; i < plan->ranks; i++)
        weights += (double)plan->rank[i].weight_bytes;
    double row = 2.0 * m->kv_heads * m->head_dim * act;
    double window = context < m->window ? context : m->window;
    double state = 2.0 * m->jet_heads * m->jet_d_k * m->jet_d_v * sizeof(float);
    double rows = 2.0 * (m->conv_taps - 1) * m->jet_heads * m->jet_d_v * act;
    double sequence = layer_count(plan, LAYER_ATTN) * row * context +
                      layer_count(plan, LAYER_SWA) * row * window +
                      layer_count(plan, LAYER_JET) * (state + rows);
    return weights + batch * sequence;
}

/* Multiply-adds twice: dense layers, causal attention, the chunked delta rule (chunks of 64). */
static double prefill_flops(const struct plan *plan, double tokens)
{
    const struct model_config *m = &plan->model;
    double h = m->hidden, values = (double)m->jet_heads * m->jet_d_v;
    double keys = (double)m->jet_heads * m->jet_d_k, heads = m->attention_heads, d = m->head_dim;
    double mlp = 3 * h * m->intermediate;
    double jet = h * (2 * keys + 2 * values + m->generator + 2 * m->jet_heads) +
                 m->generator * values * m->conv_taps + values * h;
    double attention = h * d * (heads + 2 * m->kv_heads) + heads * d * h;
    double delta = m->jet_heads *
                   (2.0 * 64 * m->jet_d_k + 3.0 * m->jet_d_k * m->jet_d_v + 2.0 * 64 * m->jet_d_v);
    double seen = tokens / 2, window = seen < m->window ? seen : m->window;
    double each = m->layers * mlp + layer_count(plan, LAYER_JET) * (jet + delta) +
                  (layer_count(plan, LAYER_ATTN) + layer_count(plan, LAYER_SWA)) * attention +
                  layer_count(plan, LAYER_ATTN) * 2 * heads * d * seen +
                  layer_count(plan, LAYER_SWA) * 2 * heads * d * window;
    return 2 * each * tokens;
}

/* ---- the stage ---------------------------------------------------------------------------- */

struct rig {
    struct settings settings;
    struct option_store *store;
    struct rank rank;
    struct step_builder *builder;
    struct ceilings ceilings;
};

static enum status rig_open(const struct bench *bench, int max_tokens, int max_len, struct rig *rig,
                            struct error *error)
{
    char text[8][32];
    if (bench->batch_invariant) /* jetd's scheduler needs room to cut prompts evenly: capacity.c */
        max_tokens += SCHEDULER_UNIT_MAX;
    const int numbers[8] = {
        bench->tensor, bench->pipeline, bench->batch, max_tokens, max_len, 64, 0, 0};
    for (int i = 0; i < 8; i++)
        snprintf(text[i], sizeof text[i], "%d", numbers[i]);
    bool folder = strchr(bench->config, '/') != NULL;
    char *argv[] = {(char *)"jetbench",
                    (char *)"--load-format",
                    (char *)"dummy",
                    (char *)(folder ? "--model" : "--model-config"),
                    (char *)bench->config,
                    (char *)"--device",
                    (char *)bench->device,
                    (char *)"--tensor-parallel-size",
                    text[0],
                    (char *)"--pipeline-parallel-size",
                    text[1],
                    (char *)"--max-num-seqs",
                    text[2],
                    (char *)"--max-num-batched-tokens",
                    text[3],
                    (char *)"--max-model-len",
                    text[4],
                    (char *)"--gpu-memory-utilization",
                    (char *)"0.97",
                    (char *)"--batch-invariant"}; /* last: left out unless asked for */
    int given = (int)(sizeof argv / sizeof argv[0]) - !bench->batch_invariant;
    enum status status =
        option_load(&settings_table, given, argv, &rig->settings, &rig->store, error);
    if (status == STATUS_OK)
        status = rank_open(&rig->settings, NULL, &rig->rank, error);
    if (status != STATUS_OK)
        return status;
    rig->builder = step_builder_create(&rig->rank.shape);
    if (rig->builder == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a step");
    status = stage_randomise(rig->rank.stage, 1, error);
    if (status == STATUS_OK &&
        ceilings_measure(rig->rank.backend, rig->rank.device, &rig->ceilings) != STATUS_OK)
        status = error_set(error, STATUS_NO_MEMORY, "no memory to measure the device with");
    return status;
}

static void rig_close(struct rig *rig)
{
    step_builder_destroy(rig->builder);
    rank_close(&rig->rank);
    option_free(rig->store);
}

static enum status submit(struct rig *rig, struct error *error)
{
    size_t length;
    struct step step;
    const void *bytes = step_finish(rig->builder, &length);
    enum status status = step_decode(&rig->rank.shape, bytes, length, &step, error);
    return status == STATUS_OK ? stage_submit(rig->rank.stage, &step, error) : status;
}

static struct step_row greedy_row(int token, int slot)
{
    return (struct step_row){
        .token = token,
        .sample = {.slot = slot, .target = -1, .top_p = 1, .repetition = 1},
    };
}

/* ---- decode ------------------------------------------------------------------------------- */

/* All sequences at `context`, their blocks dealt out in turn so that no two neighbours touch. */
static enum status inject_all(const struct bench *bench, struct rig *rig, int total,
                              struct error *error)
{
    const struct plan *plan = rig->rank.plan;
    int each = plan->max_blocks_per_sequence > 0
                   ? (int)divide_up((uint64_t)total, (uint64_t)plan->limits.block_tokens)
                   : 0;
    int32_t *blocks = calloc((size_t)each + 1, sizeof *blocks);
    if (blocks == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory");
    enum status status = STATUS_OK;
    for (int slot = 0; status == STATUS_OK && slot < bench->batch; slot++) {
        for (int i = 0; i < each; i++)
            blocks[i] = (int32_t)(i * bench->batch + slot);
        status = stage_inject(rig->rank.stage, slot, bench->context, blocks, each, error);
    }
    free(blocks);
    return status;
}

/* Stages of a pipeline work on different sequences: groups take turns, as the engine has them. */
static int decode_groups(const struct bench *bench)
{
    int groups = bench->pipeline < STAGE_DEPTH ? bench->pipeline : STAGE_DEPTH;
    return bench->batch % groups == 0 ? groups : 1;
}

static enum status decode_submit(const struct bench *bench, struct rig *rig, int number,
                                 struct error *error)
{
    int groups = decode_groups(bench), size = bench->batch / groups;
    step_begin(rig->builder, (uint64_t)number + 1);
    for (int i = 0; i < size; i++) {
        int slot = number % groups * size + i;
        struct step_sequence sequence = {
            .slot = slot, .tokens = 1, .context = bench->context + number / groups};
        int32_t token = -1 - slot;
        enum status status = step_add_sequence(rig->builder, &sequence, &token, NULL);
        if (status == STATUS_OK)
            status = step_add_row(rig->builder, greedy_row(i, slot), NULL, NULL);
        if (status != STATUS_OK)
            return error_set(error, status, "a step has no room for %d sequences", bench->batch);
    }
    return submit(rig, error);
}

/* As many steps under way as the executor keeps; the time of a step is from one collect to the next
 * of the same group. */
static enum status decode_run(const struct bench *bench, struct rig *rig, int warm,
                              struct samples *samples, struct error *error)
{
    int groups = decode_groups(bench), total = (warm + bench->steps) * groups, rows, submitted = 0;
    int64_t last[STAGE_DEPTH] = {0};
    enum status status = STATUS_OK;
    for (int i = 0; status == STATUS_OK && i < total; i++) {
        while (status == STATUS_OK && submitted < total &&
               submitted - i < plan_depth(rig->rank.plan))
            status = decode_submit(bench, rig, submitted++, error);
        if (status == STATUS_OK)
            status = stage_collect(rig->rank.stage, NULL, &rows, error);
        int64_t now = clock_now();
        if (i >= warm * groups && i < total - 1)
            samples_add(samples, clock_seconds(now - last[i % groups]));
        last[i % groups] = now;
    }
    return status;
}

static void decode_print(const struct bench *bench, const struct rig *rig, struct samples *samples)
{
    double step = samples_quantile(samples, 0.5), rate = bench->batch / step;
    double bytes = decode_bytes(rig->rank.plan, bench->batch, bench->context);
    double ranks = rig->rank.plan->ranks, share = bytes / step / (rig->ceilings.copy * ranks);
    if (rig->rank.fabric->rank != 0)
        return;
    printf(bench->json
               ? "{\"part\":\"decode\",\"config\":\"%s\",\"batch\":%d,\"context\":%d,"
                 "\"tokens_per_second\":%.1f,\"step_ms\":%.4f,\"p90_ms\":%.4f,\"gb_per_step\":%.3f,"
                 "\"tb_per_second\":%.3f,\"share_of_copy\":%.3f,\"copy_tb_per_second\":%.3f}\n"
               : "decode %s batch %d context %d: %.1f tok/s, step %.3f ms (p90 %.3f), %.2f GB a "
                 "step = %.2f TB/s, %.1f %% of copy %.2f TB/s\n",
           bench->config, bench->batch, bench->context, rate, step * 1e3,
           samples_quantile(samples, 0.9) * 1e3, bytes * 1e-9, bytes / step * 1e-12,
           (bench->json ? 1 : 100) * share, rig->ceilings.copy * 1e-12);
}

static enum status decode(const struct bench *bench, struct rig *rig, struct error *error)
{
    enum { WARM = 6 };
    int total = bench->context + WARM + bench->steps + 1;
    enum status status = rig_open(bench, bench->batch > 64 ? bench->batch : 64, total, rig, error);
    if (status == STATUS_OK)
        status = inject_all(bench, rig, total, error);
    struct samples samples = {0};
    if (status == STATUS_OK)
        status = decode_run(bench, rig, WARM, &samples, error);
    if (status == STATUS_OK)
        decode_print(bench, rig, &samples);
    samples_free(&samples);
    return status;
}

/* ---- prefill ------------------------------------------------------------------------------ */

/* One prompt a slot, slot after slot, each in chunks; every prompt starts anew. */
static enum status prefill_once(const struct bench *bench, struct rig *rig, struct error *error)
{
    const struct plan *plan = rig->rank.plan;
    int32_t *tokens = calloc((size_t)bench->chunk, sizeof *tokens);
    int32_t *blocks = calloc((size_t)plan->max_blocks_per_sequence + 1, sizeof *blocks);
    int each = plan->max_blocks_per_sequence, rows;
    enum status status = tokens && blocks ? STATUS_OK : STATUS_NO_MEMORY;
    for (int i = 0; status == STATUS_OK && i < bench->chunk; i++)
        tokens[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)(plan->model.vocab / 2));
    for (int slot = 0; slot < bench->batch; slot++) {
        for (int i = 0; status == STATUS_OK && i < each; i++)
            blocks[i] = i + slot * each;
        for (int at = 0; status == STATUS_OK && at < bench->context; at += bench->chunk) {
            int count = bench->context - at < bench->chunk ? bench->context - at : bench->chunk;
            struct step_sequence sequence = {
                .slot = slot, .tokens = count, .context = at, .new_blocks = at == 0 ? each : 0};
            step_begin(rig->builder, 1);
            status = step_add_sequence(rig->builder, &sequence, tokens, blocks);
            if (status == STATUS_OK && at + count == bench->context)
                status = step_add_row(rig->builder, greedy_row(count - 1, slot), NULL, NULL);
            if (status == STATUS_OK)
                status = submit(rig, error);
            if (status == STATUS_OK && stage_pending(rig->rank.stage) == plan_depth(plan))
                status = stage_collect(rig->rank.stage, NULL, &rows, error);
        }
    }
    while (status == STATUS_OK && stage_pending(rig->rank.stage) > 0)
        status = stage_collect(rig->rank.stage, NULL, &rows, error);
    if (status == STATUS_OK)
        status = rig->rank.backend->synchronize(rig->rank.device);
    free(tokens);
    free(blocks);
    return status == STATUS_OK ? status : error_set(error, status, "prefill step failed");
}

static void prefill_print(const struct bench *bench, const struct rig *rig, struct samples *samples)
{
    double seconds = samples_quantile(samples, 0.5);
    double tokens = (double)bench->batch * bench->context;
    double flops = bench->batch * prefill_flops(rig->rank.plan, bench->context);
    double share = flops / seconds / (rig->ceilings.gemm * rig->rank.plan->ranks);
    if (rig->rank.fabric->rank != 0)
        return;
    printf(bench->json
               ? "{\"part\":\"prefill\",\"config\":\"%s\",\"batch\":%d,\"tokens\":%d,\"chunk\":%d,"
                 "\"tokens_per_second\":%.0f,\"seconds\":%.4f,\"tflops\":%.1f,"
                 "\"share_of_gemm\":%.3f,\"gemm_tflops\":%.1f}\n"
               : "prefill %s %d x %d in chunks of %d: %.0f tok/s, %.3f s, %.1f TFLOP/s, %.1f %% of "
                 "gemm %.1f TFLOP/s\n",
           bench->config, bench->batch, bench->context, bench->chunk, tokens / seconds, seconds,
           flops / seconds * 1e-12, (bench->json ? 1 : 100) * share, rig->ceilings.gemm * 1e-12);
}

static enum status prefill(const struct bench *bench, struct rig *rig, struct error *error)
{
    enum status status = rig_open(bench, bench->chunk, bench->context, rig, error);
    struct samples samples = {0};
    for (int i = 0; status == STATUS_OK && i <= bench->steps; i++) {
        int64_t start = clock_now();
        status = prefill_once(bench, rig, error);
        if (i > 0) /* the first warms up */
            samples_add(&samples, clock_seconds(clock_now() - start));
    }
    if (status == STATUS_OK)
        prefill_print(bench, rig, &samples);
    samples_free(&samples);
    return status;
}

/* ---- the two parts ------------------------------------------------------------------------ */

static int run(int argc, char **argv, int own,
               enum status (*part)(const struct bench *, struct rig *, struct error *))
{
    (void)argc;
    struct bench bench;
    struct option_store *store;
    struct error error = {0};
    if (option_load(&table, own, argv, &bench, &store, &error) != STATUS_OK) {
        fprintf(stderr, "jetbench: %s\n", error.text);
        return 2;
    }
    enum status status = STATUS_OK;
    if (bench.help) {
        option_help(&table, stdout);
    } else {
        struct rig rig = {0};
        status = part(&bench, &rig, &error);
        rig_close(&rig);
    }
    if (status != STATUS_OK)
        fprintf(stderr, "jetbench: %s: %s\n", status_name(status), error.text);
    option_free(store);
    return status == STATUS_OK ? 0 : 1;
}

int bench_decode(int argc, char **argv, int own)
{
    return run(argc, argv, own, decode);
}

int bench_prefill(int argc, char **argv, int own)
{
    return run(argc, argv, own, prefill);
}
