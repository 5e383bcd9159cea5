/* Rotary embedding (arXiv 2104.09864), rotate-half form. The angle is formed in double: at position
 * 1e6 a float angle is off by 0.03. */
#include "kernels/cpu/cpu.h"

enum status cpu_rope(struct device *device, const struct rope_op *op)
{
    int half = op->head_dim / 2;

    (void)device;
    for (ptrdiff_t t = 0; t < op->tokens; t++) {
        for (int i = 0; i < half; i++) {
            double angle = (double)op->positions[t] * op->frequencies[i];
            float c = (float)cos(angle) * op->scale, s = (float)sin(angle) * op->scale;
            for (ptrdiff_t h = 0; h < op->heads; h++) {
                float *x = (float *)op->x + t * op->ld_x + h * op->head_dim + i;
                float low = x[0], high = x[half];
                x[0] = low * c - high * s;
                x[half] = high * c + low * s;
            }
        }
    }
    return STATUS_OK;
}
