/* The first half of a gated MLP. */
#include "kernels/cuda/gemm.h"

extern "C" const struct backend backend_cuda;

enum status cuda_gate_up(struct device *device, const struct gate_up_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0 || op->columns == 0)
        return status;
    if (!device->options.batch_invariant && stream_gate_up_fits(device, op))
        return stream_gate_up(device, op);
    return compose_gate_up(&backend_cuda, device, op);
}
