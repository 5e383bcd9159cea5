/* The jet mixer. */
#include "kernels/cuda/device.h"

extern "C" const struct backend backend_cuda;

enum status cuda_jet_mixer(struct device *device, const struct jet_mixer_op *op)
{
    return compose_jet_mixer(&backend_cuda, device, op);
}

size_t cuda_jet_mixer_scratch(const struct jet_mixer_op *shape, int max_tokens)
{
    return compose_jet_mixer_scratch(&backend_cuda, shape, max_tokens);
}
