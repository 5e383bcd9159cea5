/* The first half of a gated MLP. */
#include "kernels/cuda/device.h"

extern "C" const struct backend backend_cuda;

enum status cuda_gate_up(struct device *device, const struct gate_up_op *op)
{
    return compose_gate_up(&backend_cuda, device, op);
}
