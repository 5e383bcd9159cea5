#include "partition/stage.h"

enum status mlp_run(struct stage *stage, int index)
{
    const struct backend *backend = stage->backend;
    const struct layer_weights *w = &stage->weights.layer[index];
    struct stage_scratch *s = &stage->scratch;
    int tokens = stage->batch.tokens, hidden = stage->plan->model.hidden;
    int columns = span_size(stage->rank->columns);
    TRY(backend->gemm(stage->device, &(struct gemm_op){.rows = tokens,
                                                       .columns = 2 * columns,
                                                       .depth = hidden,
                                                       .ld_x = hidden,
                                                       .ld_out = 2 * columns,
                                                       .x = s->normed,
                                                       .weight = w->gate_up,
                                                       .out = s->projected}));
    TRY(backend->swiglu(stage->device,
                        &(struct swiglu_op){.rows = tokens,
                                            .columns = columns,
                                            .ld_in = 2 * columns,
                                            .gate = s->projected,
                                            .up = stage_at(stage, s->projected, (uint64_t)columns),
                                            .out = s->mixed}));
    TRY(backend->gemm(stage->device, &(struct gemm_op){.rows = tokens,
                                                       .columns = hidden,
                                                       .depth = columns,
                                                       .ld_x = columns,
                                                       .ld_out = hidden,
                                                       .x = s->mixed,
                                                       .weight = w->down,
                                                       .out = s->delta}));
    return stage_reduce(stage, s->delta, (uint64_t)tokens * (uint64_t)hidden);
}
