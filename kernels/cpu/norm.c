/* The three normalisations; sums of squares in sixteen lanes, then a fixed tree. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

enum status cpu_rms_norm(struct device *device, const struct rms_norm_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++) {
        float *x = (float *)op->x + r * op->columns;
        const float *delta = (const float *)op->delta;
        if (delta != NULL)
            for (int c = 0; c < op->columns; c++)
                x[c] += delta[r * op->columns + c];
        if (op->out == NULL)
            continue;
        float *out = (float *)op->out + r * op->columns;
        float scale = 1.0f / sqrtf(dot(x, x, op->columns) / (float)op->columns + op->epsilon);
        for (int c = 0; c < op->columns; c++)
            out[c] = x[c] * scale * op->weight[c];
    }
    return STATUS_OK;
}

enum status cpu_head_norm(struct device *device, const struct head_norm_op *op)
{
    (void)device;
    for (ptrdiff_t t = 0; t < op->tokens; t++) {
        for (ptrdiff_t h = 0; h < op->heads; h++) {
            const float *x = (const float *)op->x + t * op->ld_x + h * op->dim;
            float *out = (float *)op->out + (t * op->heads + h) * op->dim;
            for (int i = 0; i < op->dim; i++)
                out[i] = silu(x[i]);
            float scale = op->scale / sqrtf(dot(out, out, op->dim) + op->epsilon);
            for (int i = 0; i < op->dim; i++)
                out[i] *= scale;
        }
    }
    return STATUS_OK;
}

enum status cpu_gated_norm(struct device *device, const struct gated_norm_op *op)
{
    (void)device;
    for (ptrdiff_t t = 0; t < op->tokens; t++) {
        for (ptrdiff_t h = 0; h < op->heads; h++) {
            ptrdiff_t at = (t * op->heads + h) * op->dim;
            const float *o = (const float *)op->o + at;
            const float *gate = (const float *)op->gate + t * op->ld_gate + h * op->dim;
            float *out = (float *)op->out + at;
            float scale = 1.0f / sqrtf(dot(o, o, op->dim) / (float)op->dim + op->epsilon);
            for (int i = 0; i < op->dim; i++)
                out[i] = o[i] * scale * op->weight[i] * silu(gate[i]);
        }
    }
    return STATUS_OK;
}
