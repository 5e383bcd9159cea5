/* New keys and values into the cache. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"

/* One block a token; grid.y: k, then v. */
template <bool WIDE>
__global__ static void kv_store_kernel(struct kv_store_op op, struct ragged batch)
{
    const struct kv_cache &cache = op.cache;
    int64_t token = blockIdx.x;
    launch_next();
    launch_wait();
    int sequence = batch.token_sequence[token];
    int slot = batch.slots[sequence];
    int position = batch.token_position[token];
    if (cache.ring > 0) {
        int total = batch.contexts[sequence] + batch.starts[sequence + 1] - batch.starts[sequence];
        if (position < total - cache.ring)
            return;
    }
    const bf16 *from = (const bf16 *)(blockIdx.y == 0 ? op.k : op.v) + token * op.ld_kv;
    const int step = WIDE ? 8 : 1;
    int per_head = cache.head_dim / step;
    for (int i = threadIdx.x; i < cache.kv_heads * per_head; i += blockDim.x) {
        int head = i / per_head;
        int at = i % per_head * step;
        bf16 *to = kv_row(cache, slot, blockIdx.y, head, position) + at;
        if (WIDE)
            *(uint4 *)to = *(const uint4 *)(from + head * cache.head_dim + at);
        else
            *to = from[head * cache.head_dim + at];
    }
}

enum status cuda_kv_store(struct device *device, const struct kv_store_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->batch->tokens == 0)
        return status;
    bool wide = op->cache.head_dim % 8 == 0 && op->ld_kv % 8 == 0 && aligned16(op->k) &&
                aligned16(op->v) && aligned16(op->cache.data);
    auto kernel = wide ? kv_store_kernel<true> : kv_store_kernel<false>;
    return launch_early(device, kernel, dim3(op->batch->tokens, 2), dim3(32), 0, "kv_store", *op,
                        *op->batch);
}
