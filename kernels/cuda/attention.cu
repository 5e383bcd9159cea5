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
    /* The first `done` sequences have one token each, so both counts are the same. */
    if (attention_prefill_fits(op) && op->heads > 0)
        return attention_prefill(device, op, done);
    return attention_any(device, op, done, op->batch->tokens);
}
