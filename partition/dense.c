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

enum status norm_run(struct stage *stage, const float *weight)
{
    const struct model_config *m = &stage->plan->model;
    struct rms_norm_op op = {.rows = stage->batch.tokens,
                             .columns = m->hidden,
                             .epsilon = m->rms_epsilon,
                             .x = stage->scratch.x,
                             .delta = stage->pending,
                             .weight = weight,
                             .out = weight ? stage->scratch.normed : NULL};
    stage->pending = NULL;
    return stage->backend->rms_norm(stage->device, &op);
}

struct gemm_op product_normed(const struct stage *stage, struct gemm_op op, const void *x,
                              const float *norm)
{
    op.x = x;
    op.norm = norm;
    op.epsilon = stage->plan->model.rms_epsilon;
    return op;
}

struct gemm_op product_added(const struct stage *stage, struct gemm_op op)
{
    op.out = stage->scratch.x;
    op.add = true;
    return op;
}

bool output_adds(const struct stage *stage)
{
    return stage->plan->mesh.tensor == 1;
}

bool product_fuses(const struct stage *stage, const struct gemm_op *op)
{
    return stage->backend->gemm_fuses != NULL && stage->backend->gemm_fuses(stage->device, op);
}

enum status projection_run(struct stage *stage, const float *norm, const void *weight,
                           const float *bias, int columns)
{
    struct gemm_op op = projection_product(stage, weight, bias, columns);
    op.rows = stage->batch.tokens;
    const struct gemm_op fused = product_normed(stage, op, stage->scratch.x, norm);
    if (stage->pending == NULL && product_fuses(stage, &fused))
        return stage->backend->gemm(stage->device, &fused);
    TRY(norm_run(stage, norm));
    return stage->backend->gemm(stage->device, &op);
}

enum status output_run(struct stage *stage, const void *weight, int depth)
{
    struct gemm_op op = output_product(stage, weight, depth);
    op.rows = stage->batch.tokens;
    const struct gemm_op fused = product_added(stage, op);
    if (output_adds(stage) && product_fuses(stage, &fused))
        return stage->backend->gemm(stage->device, &fused);
    TRY(stage->backend->gemm(stage->device, &op));
    stage->pending = stage->scratch.delta;
    return stage_reduce(stage, stage->scratch.delta, (uint64_t)op.rows * (uint64_t)op.columns);
}
