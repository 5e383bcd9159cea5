/* The first half of a gated MLP. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/gemv.h"

extern "C" const struct backend backend_cuda;

/* In tiles and streams the halves are not rounded: on a batch-invariant device no rows may differ
 * in that. */
bool gate_up_composes(const struct device *device, const struct gate_up_op *op)
{
    return device->options.batch_invariant ||
           !(gemv_gate_up_fits(op) || stream_gate_up_fits(device, op) || gate_up_tile_fits(op));
}

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
    if (gate_up_composes(device, op))
        return compose_gate_up(&backend_cuda, device, op);
    return stream_gate_up_fits(device, op) ? stream_gate_up(device, op) : gate_up_tile(device, op);
}
