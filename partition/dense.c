/* A layer's two kinds of dense product: from the normed input to what it projects, and from what it
 * made back to the residual stream. */
#include "partition/stage.h"

static enum status multiply(struct stage *stage, struct gemm_op op)
{
    op.rows = stage->batch.tokens;
    op.ld_x = op.depth;
    op.ld_out = op.columns;
    return stage->backend->gemm(stage->device, &op);
}

enum status projection_run(struct stage *stage, const void *weight, const float *bias, int columns)
{
    return multiply(stage, (struct gemm_op){.columns = columns,
                                            .depth = stage->plan->model.hidden,
                                            .x = stage->scratch.normed,
                                            .weight = weight,
                                            .bias = bias,
                                            .out = stage->scratch.projected});
}

enum status output_run(struct stage *stage, const void *weight, int depth)
{
    int hidden = stage->plan->model.hidden;
    TRY(multiply(stage, (struct gemm_op){.columns = hidden,
                                         .depth = depth,
                                         .x = stage->scratch.mixed,
                                         .weight = weight,
                                         .out = stage->scratch.delta}));
    return stage_reduce(stage, stage->scratch.delta,
                        (uint64_t)stage->batch.tokens * (uint64_t)hidden);
}
