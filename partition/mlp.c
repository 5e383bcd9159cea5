/* A layer's gated MLP on this rank's columns. */
#include "partition/stage.h"

static bool gate_up_fuses(const struct stage *stage, const struct gate_up_op *op)
{
    return stage->backend->gate_up_fuses != NULL &&
           stage->backend->gate_up_fuses(stage->device, op);
}

struct gate_up_op mlp_gate_up(const struct stage *stage, int index)
{
    const struct stage_scratch *s = &stage->scratch;
    int hidden = stage->plan->model.hidden;
    return (struct gate_up_op){.columns = span_size(stage->rank->columns),
                               .depth = hidden,
                               .ld_x = hidden,
                               .x = s->normed,
                               .weight = stage->weights.layer[index].gate_up,
                               .scratch = s->projected,
                               .out = s->mixed};
}

enum status mlp_run(struct stage *stage, int index)
{
    const struct layer_weights *w = &stage->weights.layer[index];
    struct gate_up_op op = mlp_gate_up(stage, index), fused;
    op.rows = stage->batch.tokens;
    fused = op;
    fused.x = stage->scratch.x;
    fused.norm = w->mlp_norm;
    fused.epsilon = stage->plan->model.rms_epsilon;
    if (stage->pending == NULL && gate_up_fuses(stage, &fused))
        op = fused;
    else
        TRY(norm_run(stage, w->mlp_norm));
    TRY(stage->backend->gate_up(stage->device, &op));
    return output_run(stage, w->down, op.columns);
}
