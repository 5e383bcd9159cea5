/* One rank's run of layers: opening its memory, and the story of a step. */
#include "partition/stage.h"

#include <math.h>
#include <stdlib.h>

#include "daemon/base/guard.h"

static enum status region_create(struct stage *stage, int index, uint64_t bytes, const char *what,
                                 struct region *region, struct error *error)
{
    *region = (struct region){0};
    if (bytes == 0)
        return STATUS_OK;
    enum status status = stage->backend->allocate(stage->device, bytes, &stage->memory[index]);
    if (status != STATUS_OK)
        return error_set(error, STATUS_NO_MEMORY, "rank %d: no memory for %llu bytes of %s",
                         stage->rank->rank, (unsigned long long)bytes, what);
    region->base = stage->memory[index];
    return STATUS_OK;
}

/* Bytes of a region by the counting walk; the placing walk must come to the same. */
static enum status check_placed(const struct region *region, uint64_t planned, const char *what,
                                struct error *error)
{
    if (region->base == NULL || region->used == planned)
        return STATUS_OK;
    return error_set(error, STATUS_INTERNAL, "%s: planned %llu bytes, placed %llu", what,
                     (unsigned long long)planned, (unsigned long long)region->used);
}

static enum status memory_open(struct stage *stage, struct error *error)
{
    const struct plan *plan = stage->plan;
    const struct rank_plan *rank = stage->rank;
    struct region state = {0}, kv = {0}, placed;
    layout_state(plan, rank, &state, &stage->state);
    layout_kv(plan, rank, &kv, &stage->state);
    uint64_t planned = rank->weight_bytes + state.used + kv.used + rank->scratch_bytes;
    if (planned != rank->total_bytes)
        return error_set(error, STATUS_INTERNAL, "plan counts %llu bytes, its regions %llu",
                         (unsigned long long)rank->total_bytes, (unsigned long long)planned);
    TRY(region_create(stage, 0, rank->weight_bytes, "weights", &placed, error));
    layout_weights(plan, rank, &placed, &stage->weights);
    TRY(check_placed(&placed, rank->weight_bytes, "weights", error));
    TRY(region_create(stage, 1, state.used, "state", &placed, error));
    layout_state(plan, rank, &placed, &stage->state);
    TRY(check_placed(&placed, state.used, "state", error));
    TRY(region_create(stage, 2, kv.used, "KV blocks", &placed, error));
    layout_kv(plan, rank, &placed, &stage->state);
    TRY(check_placed(&placed, kv.used, "KV blocks", error));
    TRY(region_create(stage, 3, rank->scratch_bytes, "scratch", &placed, error));
    layout_scratch(plan, rank, &placed, &stage->scratch);
    return check_placed(&placed, rank->scratch_bytes, "scratch", error);
}

static enum status host_open(struct stage *stage, struct error *error)
{
    struct step_shape shape;
    plan_step_shape(stage->plan, &shape);
    size_t slots = (size_t)shape.slots, tokens = (size_t)shape.max_tokens;
    size_t rows = (size_t)shape.max_rows;
    stage->meta = calloc(layout_meta(shape.max_sequences, shape.max_tokens), sizeof *stage->meta);
    stage->slot_blocks = calloc(slots, sizeof *stage->slot_blocks);
    stage->slot_length = calloc(slots, sizeof *stage->slot_length);
    stage->entry = calloc(tokens > rows ? tokens : rows, sizeof *stage->entry);
    stage->reset = calloc((size_t)shape.max_sequences, sizeof *stage->reset);
    stage->pairs = calloc(2 * rows, sizeof *stage->pairs);
    stage->row = calloc(rows, sizeof *stage->row);
    if (stage->meta == NULL || stage->slot_blocks == NULL || stage->slot_length == NULL ||
        stage->entry == NULL || stage->reset == NULL || stage->pairs == NULL || stage->row == NULL)
        return error_set(error, STATUS_NO_MEMORY, "stage: out of host memory");
    if (stage->rank->last && head_create(stage) != STATUS_OK)
        return error_set(error, STATUS_NO_MEMORY, "head: out of host memory");
    return STATUS_OK;
}

enum status stage_open(const struct stage_options *options, struct stage **out, struct error *error)
{
    const struct plan *plan = options->plan;
    if (options->fabric->rank >= plan->ranks || options->backend->activation != plan->activation)
        return error_set(error, STATUS_CONFIG,
                         "stage: rank %d of a plan for %d ranks, activations %s of a plan for %s",
                         options->fabric->rank, plan->ranks,
                         dtype_name(options->backend->activation), dtype_name(plan->activation));
    struct stage *stage = calloc(1, sizeof *stage);
    if (stage == NULL)
        return error_set(error, STATUS_NO_MEMORY, "stage: out of host memory");
    stage->plan = plan;
    stage->rank = &plan->rank[options->fabric->rank];
    stage->backend = options->backend;
    stage->device = options->device;
    stage->fabric = options->fabric;
    stage->limit = options->limit;
    stage->attention_scale = 1.0f / sqrtf((float)plan->model.head_dim);
    enum status status = memory_open(stage, error);
    if (status == STATUS_OK)
        status = host_open(stage, error);
    if (status == STATUS_OK)
        status = weights_load(stage, options, error);
    if (status != STATUS_OK) {
        stage_close(stage);
        return status;
    }
    *out = stage;
    return STATUS_OK;
}

void stage_close(struct stage *stage)
{
    if (stage == NULL)
        return;
    for (int i = 0; i < 4; i++)
        stage->backend->release(stage->device, stage->memory[i]);
    head_destroy(stage);
    free(stage->meta);
    free(stage->slot_blocks);
    free(stage->slot_length);
    free(stage->entry);
    free(stage->reset);
    free(stage->pairs);
    free(stage->row);
    free(stage);
}

enum status stage_reduce(struct stage *stage, void *data, uint64_t count)
{
    if (stage->plan->mesh.tensor == 1)
        return STATUS_OK;
    return stage->fabric->ops->all_reduce(stage->fabric, AXIS_TENSOR, data, count,
                                          stage->plan->activation);
}

/* x += delta (if any), normed = norm(x) (if a weight is given). */
static enum status normalise(struct stage *stage, const void *delta, const float *weight)
{
    const struct model_config *m = &stage->plan->model;
    return stage->backend->rms_norm(
        stage->device, &(struct rms_norm_op){.rows = stage->batch.tokens,
                                             .columns = m->hidden,
                                             .epsilon = m->rms_epsilon,
                                             .x = stage->scratch.x,
                                             .delta = delta,
                                             .weight = weight,
                                             .out = weight ? stage->scratch.normed : NULL});
}

static uint64_t hidden_bytes(const struct stage *stage)
{
    return (uint64_t)stage->batch.tokens * (uint64_t)stage->plan->model.hidden *
           dtype_size(stage->plan->activation);
}

static enum status input_run(struct stage *stage, const struct step *step)
{
    if (stage->rank->first)
        return embed_run(stage, step);
    return stage->fabric->ops->receive(stage->fabric, AXIS_PIPELINE, stage->rank->at.pipeline - 1,
                                       stage->scratch.x, hidden_bytes(stage));
}

/* Each mixer's and MLP's output is added to x by the norm that follows it. */
static enum status layers_run(struct stage *stage)
{
    const void *delta = NULL;
    for (int i = 0; i < span_size(stage->rank->layers); i++) {
        const struct layer_weights *w = &stage->weights.layer[i];
        TRY(normalise(stage, delta, w->mixer_norm));
        TRY(layout_layer(stage->plan, stage->rank, i) == LAYER_JET ? jet_run(stage, i)
                                                                   : attention_run(stage, i));
        delta = stage->scratch.delta;
        TRY(normalise(stage, delta, w->mlp_norm));
        TRY(mlp_run(stage, i));
    }
    return normalise(stage, delta, NULL);
}

static enum status output_run(struct stage *stage, const struct step *step,
                              struct sample_result *results)
{
    if (!stage->rank->last)
        return stage->fabric->ops->send(stage->fabric, AXIS_PIPELINE, stage->rank->at.pipeline + 1,
                                        stage->scratch.x, hidden_bytes(stage));
    TRY(tokens_count(stage, step));
    return head_run(stage, step, results);
}

/* The last stage's results go to stage 0, rank by rank along the tensor axis; both remember the
 * sampled tokens: stage 0 to embed them, the last to count them. */
static enum status results_run(struct stage *stage, const struct step *step,
                               struct sample_result *results)
{
    const struct rank_plan *rank = stage->rank;
    const struct fabric_ops *ops = stage->fabric->ops;
    size_t bytes = (size_t)step->rows * sizeof *results;
    if (step->rows == 0 || (!rank->first && !rank->last))
        return STATUS_OK;
    if (rank->last && !rank->first)
        TRY(ops->send_host(stage->fabric, AXIS_PIPELINE, 0, results, bytes));
    if (rank->first && !rank->last)
        TRY(ops->receive_host(stage->fabric, AXIS_PIPELINE, stage->plan->mesh.pipeline - 1, results,
                              bytes));
    return tokens_remember(stage, step, results);
}

static enum status step_run(struct stage *stage, const struct step *step,
                            struct sample_result *results, struct error *error)
{
    if (step->tokens == 0)
        return STATUS_OK;
    TRY(ragged_upload(stage, step, error));
    TRY(input_run(stage, step));
    TRY(layers_run(stage));
    TRY(output_run(stage, step, results));
    return results_run(stage, step, results);
}

enum status stage_run(struct stage *stage, const struct step *step, struct sample_result *results,
                      struct error *error)
{
    guard_enter("step");
    enum status status = step_run(stage, step, results, error);
    guard_leave();
    if (status != STATUS_OK)
        return error_set(error, status, "rank %d, step %llu: %s", stage->rank->rank,
                         (unsigned long long)step->number, status_name(status));
    return STATUS_OK;
}
