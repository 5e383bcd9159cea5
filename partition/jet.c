/* A jet layer's mixer on this rank's heads. Between the two projections it is one coarse operation,
 * which a back end may fuse. */
#include "partition/stage.h"

enum status jet_run(struct stage *stage, int index)
{
    const struct backend *backend = stage->backend;
    const struct jet_weights *w = &stage->weights.layer[index].jet;
    const struct layer_state *state = &stage->state.layer[index];
    struct stage_scratch *s = &stage->scratch;
    struct jet_columns at = layout_jet_columns(stage->plan, stage->rank);
    int tokens = stage->batch.tokens, hidden = stage->plan->model.hidden;
    TRY(backend->gemm(stage->device, &(struct gemm_op){.rows = tokens,
                                                       .columns = at.total,
                                                       .depth = hidden,
                                                       .ld_x = hidden,
                                                       .ld_out = at.total,
                                                       .x = s->normed,
                                                       .weight = w->projection,
                                                       .out = s->projected}));
    struct jet_mixer_op op = layout_jet_mixer(stage->plan, stage->rank);
    op.batch = &stage->batch;
    op.projected = s->projected;
    op.w2 = w->w2;
    op.w2_bias = w->w2_bias;
    op.a_log = w->a_log;
    op.dt_bias = w->dt_bias;
    op.norm_weight = w->norm;
    op.rows = state->rows;
    op.state = state->recurrent;
    op.out = s->mixed;
    op.scratch = s->mixer;
    TRY(backend->jet_mixer(stage->device, &op));
    int channels = op.heads * op.d_v;
    TRY(backend->gemm(stage->device, &(struct gemm_op){.rows = tokens,
                                                       .columns = hidden,
                                                       .depth = channels,
                                                       .ld_x = channels,
                                                       .ld_out = hidden,
                                                       .x = s->mixed,
                                                       .weight = w->output,
                                                       .out = s->delta}));
    return stage_reduce(stage, s->delta, (uint64_t)tokens * (uint64_t)hidden);
}
