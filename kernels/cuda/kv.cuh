/* Where a position's key or value lies (struct kv_cache). */
#ifndef JETD_KERNELS_CUDA_KV_CUH
#define JETD_KERNELS_CUDA_KV_CUH

#include "kernels/cuda/tensor.cuh"
#include "kernels/kernels.h"

/* which: 0 keys, 1 values. */
__device__ static inline bf16 *kv_row(const struct kv_cache &cache, int slot, int which, int head,
                                      int position)
{
    int64_t row;
    if (cache.ring > 0) {
        row = (((int64_t)slot * 2 + which) * cache.kv_heads + head) * cache.ring +
              position % cache.ring;
    } else {
        int64_t block = cache.table[(int64_t)slot * cache.ld_table + position / cache.block_tokens];
        row = ((block * 2 + which) * cache.kv_heads + head) * cache.block_tokens +
              position % cache.block_tokens;
    }
    return (bf16 *)cache.data + row * cache.head_dim;
}

#endif
