/* One rank's run of layers: its memory, from open to close. run.c has the story of a step. */
#include "partition/stage.h"

#include <math.h>
#include <stdlib.h>

/* Taking gigabytes of a host's memory is progress too: it takes seconds. */
static enum status region_create(struct stage *stage, const struct stage_options *options,
                                 int index, uint64_t bytes, const char *what, struct region *region,
                                 struct error *error)
{
    if (options->progress != NULL)
        options->progress(options->progress_context, 0, stage->rank->weight_bytes);
    *region = (struct region){0};
    if (bytes == 0)
        return STATUS_OK;
    enum status status = stage->backend->allocate(stage->device, bytes, &stage->memory[index]);
    if (status != STATUS_OK)
        return error_set(error, status, "rank %d: %llu bytes for %s: %s", stage->rank->rank,
                         (unsigned long long)bytes, what, status_name(status));
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

static enum status memory_open(struct stage *stage, const struct stage_options *options,
                               struct error *error)
{
    const struct plan *plan = stage->plan;
    const struct rank_plan *rank = stage->rank;
    struct region state = {0}, kv = {0}, placed;
    layout_state(plan, rank, &state, &stage->state);
    layout_kv(plan, rank, &kv, &stage->state);
    uint64_t planned =
        rank->weight_bytes + state.used + kv.used + rank->scratch_bytes + rank->recording_bytes;
    if (planned != rank->total_bytes)
        return error_set(error, STATUS_INTERNAL, "plan counts %llu bytes, its parts %llu",
                         (unsigned long long)rank->total_bytes, (unsigned long long)planned);
    TRY(region_create(stage, options, 0, rank->weight_bytes, "weights", &placed, error));
    layout_weights(plan, rank, &placed, &stage->weights);
    TRY(check_placed(&placed, rank->weight_bytes, "weights", error));
    TRY(region_create(stage, options, 1, state.used, "state", &placed, error));
    layout_state(plan, rank, &placed, &stage->state);
    TRY(check_placed(&placed, state.used, "state", error));
    TRY(region_create(stage, options, 2, kv.used, "KV blocks", &placed, error));
    layout_kv(plan, rank, &placed, &stage->state);
    TRY(check_placed(&placed, kv.used, "KV blocks", error));
    TRY(region_create(stage, options, 3, rank->scratch_bytes, "scratch", &placed, error));
    layout_scratch(plan, rank, &placed, &stage->scratch);
    return check_placed(&placed, rank->scratch_bytes, "scratch", error);
}

static enum status lanes_open(struct stage *stage, size_t rows)
{
    for (int i = 0; i < stage->depth; i++) {
        void *memory = NULL;
        size_t bytes = (rows ? rows : 1) * sizeof(struct sample_result);
        if (stage->backend->host_allocate != NULL)
            TRY(stage->backend->host_allocate(stage->device, bytes, &memory));
        else if ((memory = calloc(1, bytes)) == NULL)
            return STATUS_NO_MEMORY;
        stage->lane[i].results = memory;
    }
    return STATUS_OK;
}

static void lanes_close(struct stage *stage)
{
    for (int i = 0; i < stage->depth; i++) {
        if (stage->backend->host_release != NULL && stage->lane[i].results != NULL)
            stage->backend->host_release(stage->device, stage->lane[i].results);
        else
            free(stage->lane[i].results);
    }
}

static enum status host_open(struct stage *stage, struct error *error)
{
    struct step_shape shape;
    plan_step_shape(stage->plan, &shape);
    size_t slots = (size_t)layout_slots(stage->plan), tokens = (size_t)shape.max_tokens;
    size_t rows = (size_t)shape.max_rows;
    stage->meta = calloc(layout_meta(shape.max_sequences, shape.max_tokens), sizeof *stage->meta);
    stage->slot_blocks = calloc(slots, sizeof *stage->slot_blocks);
    stage->slot_length = calloc(slots, sizeof *stage->slot_length);
    stage->entry = calloc(tokens > rows ? tokens : rows, sizeof *stage->entry);
    stage->reset = calloc((size_t)shape.max_sequences, sizeof *stage->reset);
    stage->pairs = calloc(2 * rows, sizeof *stage->pairs);
    stage->row = calloc(rows, sizeof *stage->row);
    stage->returns.slot = calloc(slots, sizeof *stage->returns.slot);
    if (stage->meta == NULL || stage->slot_blocks == NULL || stage->slot_length == NULL ||
        stage->entry == NULL || stage->reset == NULL || stage->pairs == NULL ||
        stage->row == NULL || stage->returns.slot == NULL)
        return error_set(error, STATUS_NO_MEMORY, "stage: out of host memory");
    if (stage->rank->last && head_create(stage) != STATUS_OK)
        return error_set(error, STATUS_NO_MEMORY, "head: out of host memory");
    enum status status = lanes_open(stage, rows);
    if (status == STATUS_OK)
        status = replays_create(stage);
    return status == STATUS_OK ? status
                               : error_set(error, status, "rank %d: room for steps: %s",
                                           stage->rank->rank, status_name(status));
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
    stage->depth = plan_depth(plan);
    stage->rank = &plan->rank[options->fabric->rank];
    stage->backend = options->backend;
    stage->device = options->device;
    stage->fabric = options->fabric;
    stage->limit = options->limit;
    stage->attention_scale = 1.0f / sqrtf((float)plan->model.head_dim);
    enum status status = memory_open(stage, options, error);
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
    replays_destroy(stage);
    lanes_close(stage);
    head_destroy(stage);
    free(stage->meta);
    free(stage->slot_blocks);
    free(stage->slot_length);
    free(stage->entry);
    free(stage->reset);
    free(stage->pairs);
    free(stage->row);
    free(stage->returns.slot);
    free(stage);
}
