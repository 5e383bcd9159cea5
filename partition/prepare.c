/* Before the first step: the back end is shown every operation with products that a step may ask
 * for, in the memory that steps use; then decode steps that are likely to come are recorded. */
#include <limits.h>
#include <stdlib.h>

#include "partition/head.h"

struct shown {
    struct prepare_op *op;
    int count;
    struct ragged batch; /* of the most tokens */
    int added; /* with no more rows, the output ahead adds to the stream itself: nothing pends */
};

enum { SHOWN_OF_LAYER = 5 };

static void show(struct shown *shown, struct prepare_op op, int least)
{
    op.least = least;
    shown->op[shown->count++] = op;
}

/* Of up to `most` rows; with `fused` and fewer it is never by itself. */
static void show_product(struct shown *shown, struct gemm_op op, int most, int fused)
{
    op.rows = most;
    show(shown, (struct prepare_op){.kind = PREPARE_GEMM, .gemm = op}, fused + 1);
}

/* The most rows, up to `most`, with which the back end takes the product's norm or addition. */
static int rows_fused(const struct stage *stage, struct gemm_op op, int most)
{
    for (op.rows = 1; op.rows <= most && product_fuses(stage, &op);)
        op.rows++;
    return op.rows - 1;
}

static void show_projection(const struct stage *stage, const void *weight, const float *bias,
                            int columns, const float *norm, struct shown *shown)
{
    struct gemm_op op = projection_product(stage, weight, bias, columns);
    int most = shown->batch.tokens;
    int fused = rows_fused(stage, product_normed(stage, op, stage->scratch.x, norm), most);
    show_product(shown, op, most, fused < shown->added ? fused : shown->added);
}

static void show_output(const struct stage *stage, const void *weight, int depth,
                        struct shown *shown)
{
    struct gemm_op op = output_product(stage, weight, depth);
    int most = shown->batch.tokens;
    shown->added = output_adds(stage) ? rows_fused(stage, product_added(stage, op), most) : 0;
    show_product(shown, op, most, shown->added);
}

static void show_head(const struct stage *stage, struct shown *shown)
{
    struct gemm_op op = head_product(stage);
    int most = layout_sample_tile(stage->plan);
    show_product(shown, op, most, rows_fused(stage, head_normed(stage, op), most));
}

static void show_layer(const struct stage *stage, int layer, struct shown *shown)
{
    const struct layer_weights *w = &stage->weights.layer[layer];
    const struct rank_plan *rank = stage->rank;
    if (layout_layer(stage->plan, rank, layer) == LAYER_JET) {
        struct jet_mixer_op mixer = jet_mixer(stage, layer, &shown->batch);
        show_projection(stage, w->jet.projection, NULL, layout_jet_columns(stage->plan, rank).total,
                        w->mixer_norm, shown);
        show(shown, (struct prepare_op){.kind = PREPARE_JET_MIXER, .jet_mixer = mixer}, 1);
        show_output(stage, w->jet.output, mixer.heads * mixer.d_v, shown);
    } else {
        struct attention_columns at = layout_attention_columns(stage->plan, rank);
        const struct attention_weights *attention = &w->attention;
        show_projection(stage, attention->projection, attention->bias, at.total, w->mixer_norm,
                        shown);
        show_output(stage, attention->output, at.k - at.q, shown);
    }
    struct gate_up_op gate_up = mlp_gate_up(stage, layer);
    gate_up.rows = shown->batch.tokens;
    show(shown, (struct prepare_op){.kind = PREPARE_GATE_UP, .gate_up = gate_up}, 1);
    show_output(stage, w->down, gate_up.columns, shown);
}

enum status stage_prepare(struct stage *stage, int *choices, struct error *error)
{
    int layers = span_size(stage->rank->layers);
    struct shown shown = {.batch.tokens = stage->plan->limits.max_num_batched_tokens,
                          .added = INT_MAX};
    *choices = 0;
    if (stage->backend->gemm_prepare == NULL)
        return STATUS_OK;
    shown.op = calloc((size_t)layers * SHOWN_OF_LAYER + 1, sizeof *shown.op);
    if (shown.op == NULL)
        return error_set(error, STATUS_NO_MEMORY, "stage: out of host memory");
    for (int i = 0; i < layers; i++)
        show_layer(stage, i, &shown);
    if (stage->rank->last)
        show_head(stage, &shown);
    enum status status =
        stage->backend->gemm_prepare(stage->device, shown.op, shown.count, choices);
    free(shown.op);
    stage->settled = status == STATUS_OK && stage->plan->ranks == 1;
    if (status != STATUS_OK)
        error_set(error, status, "rank %d: choosing how products are computed: %s",
                  stage->rank->rank, status_name(status));
    return status;
}

/* Likely step `number`: of every class, one that needs nothing of sampling (greedy, or temperature
 * 1), then one with a temperature and top-p; of the shortest context. false: there are no more. */
static bool likely_step(struct stage *stage, int number, struct step *step)
{
    const struct step nothing = {.number = 0};
    int most = stage->plan->limits.max_num_seqs, size = 1;
    for (int i = 0; i < number / 2; i++) {
        if (size == most)
            return false;
        size = class_of(size + 1, most);
    }
    *step = idle_fill(stage, &nothing, size, size);
    if (number % 2 != 0) {
        stage->idle.row[0].sample.temperature = 0.5f;
        stage->idle.row[0].sample.top_p = 0.5f;
    }
    return true;
}

enum status stage_record(struct stage *stage, bool *more, struct error *error)
{
    struct step step;
    *more = stage->settled && stage->replays != NULL && stage->likely < REPLAYS_MAX / 2 &&
            likely_step(stage, stage->likely, &step);
    if (!*more)
        return STATUS_OK;
    stage->likely++;
    enum status status = stage_run(stage, &step, NULL, error);
    if (status != STATUS_OK)
        error_prefix(error, "recording a decode step of %d sequences", step.sequences);
    return status;
}
