/* Which form of the gated delta rule serves which sequences. */
#include "kernels/cuda/delta.h"

enum status cuda_delta_recurrent(struct device *device, const struct delta_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    return delta_any(device, op, 0, op->batch->sequences);
}

enum status delta_from(struct device *device, const struct delta_op *op, int sequence)
{
    if (delta_chunk_fits(device, op))
        return delta_chunk(device, op, sequence);
    return delta_any(device, op, sequence, op->batch->sequences);
}

enum status cuda_delta_chunked(struct device *device, const struct delta_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    return delta_from(device, op, 0);
}
