/* The story of a step on one rank. */
#include <string.h>

#include "daemon/base/guard.h"
#include "partition/stage.h"

_Static_assert((int)STAGE_DEPTH <= (int)DEVICE_LANES, "every step under way may have a fetch");

enum status stage_reduce(struct stage *stage, void *data, uint64_t count)
{
    if (stage->plan->mesh.tensor == 1)
        return STATUS_OK;
    return stage->fabric->ops->all_reduce(stage->fabric, AXIS_TENSOR, data, count,
                                          stage->plan->activation);
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

static enum status layers_run(struct stage *stage)
{
    stage->pending = NULL;
    for (int i = 0; i < span_size(stage->rank->layers); i++) {
        TRY(layout_layer(stage->plan, stage->rank, i) == LAYER_JET ? jet_run(stage, i)
                                                                   : attention_run(stage, i));
        TRY(mlp_run(stage, i));
    }
    return stage->pending != NULL ? norm_run(stage, NULL) : STATUS_OK;
}

static enum status output_send(struct stage *stage)
{
    return stage->fabric->ops->send(stage->fabric, AXIS_PIPELINE, stage->rank->at.pipeline + 1,
                                    stage->scratch.x, hidden_bytes(stage));
}

/* What a step does on the device alone, and what a recording holds. */
static enum status device_run(struct stage *stage, const struct step *step)
{
    TRY(input_run(stage, step));
    TRY(layers_run(stage));
    if (!stage->rank->last)
        return output_send(stage);
    if (sample_resident(stage))
        TRY(sample_run(stage, step));
    return results_streamed(stage) ? results_send(stage, step) : STATUS_OK;
}

/* The last stage's results go to stage 0, rank by rank along the tensor axis; both remember the
 * sampled tokens: stage 0 to embed them, the last to count them. */
static enum status results_run(struct stage *stage, const struct step *step,
                               struct sample_result *results)
{
    const struct rank_plan *rank = stage->rank;
    const struct fabric_ops *ops = stage->fabric->ops;
    size_t bytes = (size_t)step->rows * sizeof *results;
    if (!rank->first && !rank->last)
        return STATUS_OK;
    if (rank->last && !rank->first)
        TRY(ops->send_host(stage->fabric, AXIS_PIPELINE, 0, results, bytes));
    if (rank->first && !rank->last)
        TRY(ops->receive_host(stage->fabric, AXIS_PIPELINE, stage->plan->mesh.pipeline - 1, results,
                              bytes));
    return rank->last && sample_resident(stage) ? STATUS_OK : tokens_remember(stage, step, results);
}

/* Results that the device made on its own come by a fetch, to the rank that wants them: others need
 * not wait for their device. Where they go on by the host it needs them now. */
static enum status results_fetch(struct stage *stage, const struct step *step, int index)
{
    struct lane *lane = &stage->lane[index];
    bool by_host = stage->rank->last && !stage->rank->first;
    if (stage->fabric->rank != 0 && !by_host)
        return STATUS_OK;
    TRY(stage->backend->fetch(stage->device, index, lane->results, stage->scratch.outcome,
                              (size_t)step->rows * sizeof *lane->results));
    lane->fetched = !by_host;
    return by_host ? stage->backend->wait(stage->device, index) : STATUS_OK;
}

/* A step without rows, a piece of a prompt, ends on rank 0 when its device work does, like any
 * other: else more steps than the depth would be under way. */
static enum status nothing_fetch(struct stage *stage, int index)
{
    struct lane *lane = &stage->lane[index];
    if (stage->fabric->rank != 0 || stage->backend->fetch == NULL)
        return STATUS_OK;
    lane->fetched = true;
    return stage->backend->fetch(stage->device, index, lane->results, stage->scratch.x, 0);
}

/* Results of a step whose device work is enqueued. */
static enum status results_take(struct stage *stage, const struct step *step, int index)
{
    struct lane *lane = &stage->lane[index];
    if (step->rows == 0)
        return nothing_fetch(stage, index);
    if (results_streamed(stage))
        return stage->rank->first ? results_expect(stage, step, lane) : STATUS_OK;
    if (stage->rank->last)
        TRY(sample_resident(stage) ? results_fetch(stage, step, index)
                                   : head_run(stage, step, lane->results));
    return results_run(stage, step, lane->results);
}

static enum status step_run(struct stage *stage, const struct step *step, int index,
                            struct error *error)
{
    if (step->tokens == 0)
        return STATUS_OK;
    struct step filled;
    bool recordable = step_recordable(stage, step);
    if (recordable) {
        filled = step_fill(stage, step);
        step = &filled;
    }
    TRY(ragged_upload(stage, step, error));
    if (stage->rank->first && results_streamed(stage))
        TRY(results_need(stage, step));
    if (stage->rank->last) {
        TRY(tokens_count(stage, step));
        TRY(rows_upload(stage, step));
    }
    TRY(recordable ? replay_run(stage, step, device_run) : device_run(stage, step));
    return results_take(stage, step, index);
}

enum status stage_submit(struct stage *stage, const struct step *step, struct error *error)
{
    if (stage->lanes == stage->depth)
        return error_set(error, STATUS_INTERNAL, "stage: more than %d steps under way",
                         stage->depth);
    int index = (stage->first_lane + stage->lanes) % stage->depth;
    stage->lane[index].rows = step->rows;
    stage->lane[index].fetched = stage->lane[index].expected = false;
    guard_enter("step");
    enum status status = step_run(stage, step, index, error);
    guard_leave();
    if (status != STATUS_OK)
        return error_set(error, status, "rank %d, step %llu: %s", stage->rank->rank,
                         (unsigned long long)step->number, status_name(status));
    stage->lanes++;
    return STATUS_OK;
}

static enum status lane_wait(struct stage *stage, const struct lane *lane)
{
    if (lane->fetched)
        return stage->backend->wait(stage->device, stage->first_lane);
    return lane->expected ? stage->fabric->ops->await_turn(stage->fabric, lane->turn) : STATUS_OK;
}

enum status stage_collect(struct stage *stage, struct sample_result *results, int *rows,
                          struct error *error)
{
    if (stage->lanes == 0)
        return error_set(error, STATUS_INTERNAL, "stage: no step is under way");
    const struct lane *lane = &stage->lane[stage->first_lane];
    guard_enter("collect");
    enum status status = lane_wait(stage, lane);
    guard_leave();
    if (status != STATUS_OK)
        return error_set(error, status, "rank %d: waiting for a step: %s", stage->rank->rank,
                         status_name(status));
    if (results != NULL)
        memcpy(results, lane->results, (size_t)lane->rows * sizeof *results);
    *rows = lane->rows;
    stage->first_lane = (stage->first_lane + 1) % stage->depth;
    stage->lanes--;
    return STATUS_OK;
}

bool stage_ready(const struct stage *stage)
{
    const struct lane *lane = &stage->lane[stage->first_lane];
    if (stage->lanes == 0)
        return false;
    if (lane->expected)
        return stage->fabric->ops->arrived(stage->fabric, lane->turn);
    return !lane->fetched || stage->backend->ready(stage->device, stage->first_lane);
}

int stage_pending(const struct stage *stage)
{
    return stage->lanes;
}

enum status stage_run(struct stage *stage, const struct step *step, struct sample_result *results,
                      struct error *error)
{
    int rows;
    TRY(stage_submit(stage, step, error));
    return stage_collect(stage, results, &rows, error);
}
