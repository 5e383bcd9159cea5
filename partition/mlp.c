#include "partition/stage.h"

enum status mlp_run(struct stage *stage, int index)
{
    const struct layer_weights *w = &stage->weights.layer[index];
    struct stage_scratch *s = &stage->scratch;
    int columns = span_size(stage->rank->columns);
    int hidden = stage->plan->model.hidden;
    TRY(stage->backend->gate_up(stage->device, &(struct gate_up_op){.rows = stage->batch.tokens,
                                                                    .columns = columns,
                                                                    .depth = hidden,
                                                                    .ld_x = hidden,
                                                                    .x = s->normed,
                                                                    .weight = w->gate_up,
                                                                    .scratch = s->projected,
                                                                    .out = s->mixed}));
    return output_run(stage, w->down, columns);
}
