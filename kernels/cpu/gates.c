/* beta and g of the delta rule. */
#include "kernels/cpu/cpu.h"

/* log(1 + exp(x)) without overflow, exact far below 0. */
static float softplus(float x)
{
    return (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x)));
}

enum status cpu_gates(struct device *device, const struct gates_op *op)
{
    (void)device;
    for (ptrdiff_t t = 0; t < op->tokens; t++) {
        const float *a = (const float *)op->a + t * op->ld_a;
        const float *b = (const float *)op->b + t * op->ld_b;
        for (ptrdiff_t h = 0; h < op->heads; h++) {
            op->g[t * op->heads + h] = -expf(op->a_log[h]) * softplus(a[h] + op->dt_bias[h]);
            op->beta[t * op->heads + h] = 1.0f / (1.0f + expf(-b[h]));
        }
    }
    return STATUS_OK;
}
