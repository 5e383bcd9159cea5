#include "partition/stage.h"

enum status mlp_run(struct stage *stage, int index)
{
    const struct layer_weights *w = &stage->weights.layer[index];
    struct stage_scratch *s = &stage->scratch;
    int columns = span_size(stage->rank->columns);
    TRY(projection_run(stage, w->gate_up, NULL, 2 * columns));
    TRY(stage->backend->swiglu(
        stage->device, &(struct swiglu_op){.rows = stage->batch.tokens,
                                           .columns = columns,
                                           .ld_in = 2 * columns,
                                           .gate = s->projected,
                                           .up = stage_at(stage, s->projected, (uint64_t)columns),
                                           .out = s->mixed}));
    return output_run(stage, w->down, columns);
}
