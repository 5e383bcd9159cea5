/* Which form of attention serves which tokens. */
#include "kernels/cuda/attention.h"

enum status cuda_attention(struct device *device, const struct attention_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    int done = 0;
    if (op->batch->decodes > 0 && op->heads > 0 && attention_decode_fits(op)) {
        status = attention_decode(device, op);
        if (status != STATUS_OK)
            return status;
        done = op->batch->decodes;
    }
    return attention_any(device, op, done, op->batch->tokens);
}
