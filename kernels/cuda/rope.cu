/* Rotary embedding, alone or with the store of the keys that it turned. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"

enum { LANES = 64, GROUPS = 4 };

struct turn {
    float sine, cosine;
};

/* The angle is formed and brought into one turn in double: as a float it is off by 0.03 at position
 * 1e6. */
__device__ static inline struct turn turn_of(const struct rope_op &op, int position, int i)
{
    const double around = 6.283185307179586;
    struct turn turn;
    double angle = (double)position * op.frequencies[i];
    sincosf((float)(angle - rint(angle / around) * around), &turn.sine, &turn.cosine);
    turn.sine *= op.scale;
    turn.cosine *= op.scale;
    return turn;
}

/* Element i of each half of a head. */
__device__ static inline void rotate(bf16 *x, int half, struct turn turn)
{
    float low = __bfloat162float(x[0]);
    float high = __bfloat162float(x[half]);
    x[0] = __float2bfloat16(low * turn.cosine - high * turn.sine);
    x[half] = __float2bfloat16(high * turn.cosine + low * turn.sine);
}

/* One block a token; a thread owns one angle and turns it in every head. */
__global__ static void rope_kernel(struct rope_op op)
{
    const int half = op.head_dim / 2;
    bf16 *row = (bf16 *)op.x + (int64_t)blockIdx.x * op.ld_x;
    launch_next();
    launch_wait();
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const struct turn turn = turn_of(op, op.positions[blockIdx.x], i);
        for (int head = threadIdx.y; head < op.heads; head += blockDim.y)
            rotate(row + (int64_t)head * op.head_dim + i, half, turn);
    }
}

/* One block a token, and as many threads as the heads have halves: each turns one element of each
 * half of its head, or copies one of a value's. Positions and tables are uploaded before a step
 * begins, so that only the projections are waited for. */
__global__ static void rope_store_kernel(struct rope_op op, struct kv_store_op store,
                                         struct ragged batch)
{
    const struct kv_cache &cache = store.cache;
    const int half = op.head_dim / 2, i = threadIdx.x, head = blockIdx.y * blockDim.y + threadIdx.y;
    const int key = head - (op.heads - cache.kv_heads), value = head - op.heads;
    const int64_t token = blockIdx.x; /* one token a sequence */
    launch_next();
    if (i >= half || value >= cache.kv_heads)
        return;
    const int position = op.positions[token], slot = batch.slots[token];
    const struct turn turn = turn_of(op, position, i);
    bf16 *x = (bf16 *)op.x + token * op.ld_x + (int64_t)head * op.head_dim + i, *to = NULL;
    if (value >= 0) {
        x = (bf16 *)store.v + token * store.ld_kv + (int64_t)value * op.head_dim + i;
        to = kv_row(cache, slot, 1, value, position) + i;
    } else if (key >= 0) {
        to = kv_row(cache, slot, 0, key, position) + i;
    }
    launch_wait();
    if (value < 0)
        rotate(x, half, turn);
    if (to != NULL) {
        to[0] = x[0];
        to[half] = x[half];
    }
}

enum status cuda_rope(struct device *device, const struct rope_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->tokens == 0 || op->heads == 0)
        return status;
    return launch_early(device, rope_kernel, dim3(op->tokens), dim3(LANES, GROUPS), 0, "rope", *op);
}

enum status cuda_rope_store(struct device *device, const struct rope_store_op *op)
{
    enum status status = device_enter(device);
    const int half = op->rope.head_dim / 2, heads = op->rope.heads + op->store.cache.kv_heads;
    if (status != STATUS_OK || op->rope.tokens == 0 || heads == 0)
        return status;
    if (half > LANES) {
        status = cuda_rope(device, &op->rope);
        return status == STATUS_OK ? cuda_kv_store(device, &op->store) : status;
    }
    return launch_early(device, rope_store_kernel, dim3(op->rope.tokens, blocks_for(heads, GROUPS)),
                        dim3(LANES, GROUPS), 0, "rope", op->rope, op->store, *op->store.batch);
}
