/* A jet layer's mixer on this rank's heads. Between the two projections it is one coarse operation,
 * which a back end may fuse. */
#include "partition/stage.h"

struct jet_mixer_op jet_mixer(const struct stage *stage, int index, const struct ragged *batch)
{
    const struct jet_weights *w = &stage->weights.layer[index].jet;
    const struct layer_state *state = &stage->state.layer[index];
    const struct stage_scratch *s = &stage->scratch;
    struct jet_mixer_op op = layout_jet_mixer(stage->plan, stage->rank);
    op.batch = batch;
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
    return op;
}

enum status jet_run(struct stage *stage, int index)
{
    const struct layer_weights *layer = &stage->weights.layer[index];
    const struct jet_weights *w = &layer->jet;
    TRY(projection_run(stage, layer->mixer_norm, w->projection, NULL,
                       layout_jet_columns(stage->plan, stage->rank).total));
    const struct jet_mixer_op op = jet_mixer(stage, index, &stage->batch);
    TRY(stage->backend->jet_mixer(stage->device, &op));
    return output_run(stage, w->output, op.heads * op.d_v);
}
