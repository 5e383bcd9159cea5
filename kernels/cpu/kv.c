/* New keys and values into the paged cache or the ring. */
#include <string.h>

#include "kernels/cpu/cpu.h"

/* Where the key of (slot, position, kv head) is written; its value lies `*to_value` further. */
static float *key_place(const struct kv_cache *cache, ptrdiff_t slot, int position, ptrdiff_t head,
                        ptrdiff_t *to_value)
{
    ptrdiff_t extent = cache->ring > 0 ? cache->ring : cache->block_tokens;
    ptrdiff_t unit =
        cache->ring > 0 ? slot : cache->table[slot * cache->ld_table + position / extent];
    ptrdiff_t head_size = extent * cache->head_dim;

    *to_value = cache->kv_heads * head_size;
    return (float *)cache->data + (unit * 2 * cache->kv_heads + head) * head_size +
           position % extent * cache->head_dim;
}

static void store_token(const struct kv_store_op *op, ptrdiff_t slot, ptrdiff_t token, int position)
{
    const struct kv_cache *cache = &op->cache;
    size_t bytes = (size_t)cache->head_dim * sizeof(float);
    ptrdiff_t to_value;

    for (ptrdiff_t head = 0; head < cache->kv_heads; head++) {
        float *key = key_place(cache, slot, position, head, &to_value);
        ptrdiff_t from = token * op->ld_kv + head * cache->head_dim;
        memcpy(key, (const float *)op->k + from, bytes);
        memcpy(key + to_value, (const float *)op->v + from, bytes);
    }
}

enum status cpu_kv_store(struct device *device, const struct kv_store_op *op)
{
    const struct ragged *batch = op->batch;

    (void)device;
    for (int s = 0; s < batch->sequences; s++) {
        int start = batch->starts[s], end = batch->starts[s + 1], first = start;
        if (op->cache.ring > 0 && end - start > op->cache.ring)
            first = end - op->cache.ring; /* older ones would only be overwritten */
        for (int t = first; t < end; t++)
            store_token(op, batch->slots[s], t, batch->contexts[s] + t - start);
    }
    return STATUS_OK;
}
