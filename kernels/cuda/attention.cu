/* Which form of attention serves which tokens. */
#include "kernels/cuda/attention.h"

enum status cuda_attention(struct device *device, const struct attention_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    return attention_any(device, op, 0, op->batch->tokens);
}
