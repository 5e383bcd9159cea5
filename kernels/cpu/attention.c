/* Attention, one query at a time: keys in the order of their positions, in blocks of KEY_BLOCK
 * that start at multiples of KEY_BLOCK, so that a query's bits depend only on its position and on
 * what it sees; softmax as in arXiv 1805.02867 (running maximum and sum). */
#include <math.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/variant.h"

enum { KEY_BLOCK = 64 };

/* Where one query's keys and values are. */
struct key_source {
    const struct attention_op *op;
    ptrdiff_t slot, kv_head;
    int context, start;
};

struct key_value {
    const float *k, *v; /* [head_dim] */
};

static struct key_value cached(const struct kv_cache *cache, ptrdiff_t unit, ptrdiff_t kv_head,
                               ptrdiff_t offset, ptrdiff_t extent)
{
    const float *data = cache->data;
    ptrdiff_t head = extent * cache->head_dim;
    const float *k =
        data + (unit * 2 * cache->kv_heads + kv_head) * head + offset * cache->head_dim;

    return (struct key_value){k, k + cache->kv_heads * head};
}

static struct key_value key_value_at(const struct key_source *source, int position)
{
    const struct attention_op *op = source->op;
    const struct kv_cache *cache = &op->cache;

    if (cache->ring == 0) {
        int32_t block =
            cache->table[source->slot * cache->ld_table + position / cache->block_tokens];
        return cached(cache, block, source->kv_head, position % cache->block_tokens,
                      cache->block_tokens);
    }
    if (position < source->context)
        return cached(cache, source->slot, source->kv_head, position % cache->ring, cache->ring);
    ptrdiff_t at = (ptrdiff_t)(source->start + position - source->context) * op->ld_kv +
                   source->kv_head * cache->head_dim;
    return (struct key_value){(const float *)op->k + at, (const float *)op->v + at};
}

/* Adds keys begin .. end - 1 (at most KEY_BLOCK) to the running softmax of one query. */
static void add_block(const struct key_source *source, const float *q, int begin, int end,
                      float *maximum, float *sum, float *out)
{
    int dim = source->op->cache.head_dim;
    float score[KEY_BLOCK], top = *maximum;

    for (int p = begin; p < end; p++) {
        score[p - begin] = dot(q, key_value_at(source, p).k, dim) * source->op->scale;
        top = score[p - begin] > top ? score[p - begin] : top;
    }
    float shrink = expf(*maximum - top);
    *sum *= shrink;
    for (int i = 0; i < dim; i++)
        out[i] *= shrink;
    for (int p = begin; p < end; p++) {
        const float *v = key_value_at(source, p).v;
        float weight = expf(score[p - begin] - top);
        *sum += weight;
        for (int i = 0; i < dim; i++)
            out[i] += weight * v[i];
    }
    *maximum = top;
}

static void attend(const struct key_source *source, const float *q, int position, float *out,
                   float *lse)
{
    const struct attention_op *op = source->op;
    int dim = op->cache.head_dim, end = position + 1;
    int begin = op->window > 0 && end > op->window ? end - op->window : 0;
    float maximum = -INFINITY, sum = 0.0f;

    memset(out, 0, (size_t)dim * sizeof(float));
    for (int next; begin < end; begin = next) {
        next = (begin / KEY_BLOCK + 1) * KEY_BLOCK;
        next = next < end ? next : end;
        add_block(source, q, begin, next, &maximum, &sum, out);
    }
    for (int i = 0; i < dim; i++)
        out[i] /= sum;
    if (lse != NULL)
        *lse = maximum + logf(sum);
}

void VARIANT(attention)(const void *attention_op, int begin, int end)
{
    const struct attention_op *op = attention_op;
    const struct ragged *batch = op->batch;
    int dim = op->cache.head_dim;

    for (ptrdiff_t t = begin; t < end; t++) {
        int sequence = batch->token_sequence[t];
        struct key_source source = {.op = op,
                                    .slot = batch->slots[sequence],
                                    .context = batch->contexts[sequence],
                                    .start = batch->starts[sequence]};
        int position = source.context + (int)t - source.start;
        for (int h = 0; h < op->heads; h++) {
            source.kv_head = (op->group_offset + h) / op->group;
            attend(&source, (const float *)op->q + t * op->ld_q + (ptrdiff_t)h * dim, position,
                   (float *)op->out + (t * op->heads + h) * dim,
                   op->lse != NULL ? op->lse + t * op->heads + h : NULL);
        }
    }
}
