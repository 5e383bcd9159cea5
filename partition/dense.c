/* A layer's two kinds of dense product: from the normed input to what it projects, and from what it
 * made back to the residual stream. */
#include "partition/stage.h"

struct gemm_op projection_product(const struct stage *stage, const void *weight, const float *bias,
                                  int columns)
{
    int hidden = stage->plan->model.hidden;
    return (struct gemm_op){.columns = columns,
                            .depth = hidden,
                            .ld_x = hidden,
                            .ld_out = columns,
                            .x = stage->scratch.normed,
                            .weight = weight,
                            .bias = bias,
                            .out = stage->scratch.projected};
}

struct gemm_op output_product(const struct stage *stage, const void *weight, int depth)
{
    int hidden = stage->plan->model.hidden;
    return (struct gemm_op){.columns = hidden,
                            .depth = depth,
                            .ld_x = depth,
                            .ld_out = hidden,
                            .x = stage->scratch.mixed,
                            .weight = weight,
                            .out = stage->scratch.delta};
}

enum status projection_run(struct stage *stage, const void *weight, const float *bias, int columns)
{
    struct gemm_op op = projection_product(stage, weight, bias, columns);
    op.rows = stage->batch.tokens;
    return stage->backend->gemm(stage->device, &op);
}

enum status output_run(struct stage *stage, const void *weight, int depth)
{
    struct gemm_op op = output_product(stage, weight, depth);
    op.rows = stage->batch.tokens;
    TRY(stage->backend->gemm(stage->device, &op));
    return stage_reduce(stage, stage->scratch.delta, (uint64_t)op.rows * (uint64_t)op.columns);
}
