/* The first half of a gated MLP. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/gemv.h"

extern "C" const struct backend backend_cuda;

bool cuda_gate_up_fuses(struct device *device, const struct gate_up_op *op)
{
    return !device->options.batch_invariant && gemv_gate_up_fits(op);
}

enum status cuda_gate_up(struct device *device, const struct gate_up_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0 || op->columns == 0)
        return status;
    if (cuda_gate_up_fuses(device, op))
        return gemv_gate_up(device, op);
    if (op->norm != NULL)
        return STATUS_INTERNAL;
    /* In tiles and streams the halves are not rounded: on a batch-invariant device no rows may
     * differ in that. */
    if (device->options.batch_invariant)
        return compose_gate_up(&backend_cuda, device, op);
    if (stream_gate_up_fits(device, op))
        return stream_gate_up(device, op);
    if (gate_up_tile_fits(op))
        return gate_up_tile(device, op);
    return compose_gate_up(&backend_cuda, device, op);
}
