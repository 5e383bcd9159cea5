/* Embedding, row gathers and the activations between matrix products. */
#include <string.h>

#include "kernels/cpu/cpu.h"

enum status cpu_resolve(struct device *device, const struct resolve_op *op)
{
    (void)device;
    for (int t = 0; t < op->tokens; t++)
        op->ids[t] = op->source[t] >= 0 ? op->source[t] : op->last[-1 - op->source[t]];
    return STATUS_OK;
}

enum status cpu_embed(struct device *device, const struct embed_op *op)
{
    size_t hidden = (size_t)op->hidden;

    (void)device;
    for (int t = 0; t < op->tokens; t++) {
        float *out = (float *)op->out + (size_t)t * hidden;
        int64_t row = (int64_t)op->ids[t] - op->first;
        if (row >= 0 && row < op->rows)
            memcpy(out, (const float *)op->table + (size_t)row * hidden, hidden * sizeof(float));
        else
            memset(out, 0, hidden * sizeof(float));
    }
    return STATUS_OK;
}

enum status cpu_gather(struct device *device, const struct gather_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++)
        memcpy((float *)op->out + r * op->columns,
               (const float *)op->x + (ptrdiff_t)op->index[r] * op->ld_x,
               (size_t)op->columns * sizeof(float));
    return STATUS_OK;
}

enum status cpu_silu(struct device *device, const struct silu_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++) {
        const float *x = (const float *)op->x + r * op->ld_x;
        float *out = (float *)op->out + r * op->ld_out;
        for (int c = 0; c < op->columns; c++)
            out[c] = silu(x[c]);
    }
    return STATUS_OK;
}

enum status cpu_swiglu(struct device *device, const struct swiglu_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++) {
        const float *gate = (const float *)op->gate + r * op->ld_in;
        const float *up = (const float *)op->up + r * op->ld_in;
        float *out = (float *)op->out + r * op->columns;
        for (int c = 0; c < op->columns; c++)
            out[c] = silu(gate[c]) * up[c];
    }
    return STATUS_OK;
}
