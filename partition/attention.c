/* An attn or swa layer's mixer on this rank's query heads and the kv heads that they use. */
#include "partition/stage.h"

static struct rope_op rotation(const struct stage *stage, int column, int heads, int ld)
{
    return (struct rope_op){.tokens = stage->batch.tokens,
                            .heads = heads,
                            .head_dim = stage->plan->model.head_dim,
                            .ld_x = ld,
                            .positions = stage->batch.token_position,
                            .frequencies = stage->weights.rope,
                            .scale = stage->rope_scale,
                            .x = stage_at(stage, stage->scratch.projected, (uint64_t)column)};
}

static struct kv_cache cache_of(const struct stage *stage, int index, bool ring)
{
    return (struct kv_cache){.data = stage->state.layer[index].cache,
                             .kv_heads = span_size(stage->rank->kv_heads),
                             .head_dim = stage->plan->model.head_dim,
                             .block_tokens = stage->plan->limits.block_tokens,
                             .table = stage->scratch.table,
                             .ld_table = stage->plan->max_blocks_per_sequence,
                             .ring = ring ? layout_ring(stage->plan) : 0};
}

/* Paged keys are stored first and all read from the cache; a ring would lose keys that the first
 * new tokens still see, so it is written last, unless there are only decodes. */
static enum status attend(struct stage *stage, int index)
{
    const struct backend *backend = stage->backend;
    const struct rank_plan *rank = stage->rank;
    struct attention_columns at = layout_attention_columns(stage->plan, rank);
    bool ring = layout_layer(stage->plan, rank, index) == LAYER_SWA;
    void *projected = stage->scratch.projected;
    struct kv_store_op store = {.batch = &stage->batch,
                                .ld_kv = at.total,
                                .k = stage_at(stage, projected, (uint64_t)at.k),
                                .v = stage_at(stage, projected, (uint64_t)at.v),
                                .cache = cache_of(stage, index, ring)};
    struct attention_op attention = {.batch = &stage->batch,
                                     .heads = span_size(rank->q_heads),
                                     .group = rank->group,
                                     .group_offset = rank->group_offset,
                                     .ld_q = at.total,
                                     .ld_kv = at.total,
                                     .scale = stage->attention_scale,
                                     .window = ring ? stage->plan->model.window : 0,
                                     .q = projected,
                                     .k = store.k,
                                     .v = store.v,
                                     .cache = store.cache,
                                     .out = stage->scratch.mixed};
    /* Keys follow the queries. */
    struct rope_op rope = rotation(stage, at.q, attention.heads + store.cache.kv_heads, at.total);
    if (backend->rope_store != NULL && stage->batch.decodes == stage->batch.tokens) {
        TRY(backend->rope_store(stage->device, &(struct rope_store_op){rope, store}));
        return backend->attention(stage->device, &attention);
    }
    TRY(backend->rope(stage->device, &rope));
    if (!ring)
        TRY(backend->kv_store(stage->device, &store));
    TRY(backend->attention(stage->device, &attention));
    return ring ? backend->kv_store(stage->device, &store) : STATUS_OK;
}

enum status attention_run(struct stage *stage, int index)
{
    const struct layer_weights *layer = &stage->weights.layer[index];
    const struct attention_weights *w = &layer->attention;
    struct attention_columns at = layout_attention_columns(stage->plan, stage->rank);
    TRY(projection_run(stage, layer->mixer_norm, w->projection, w->bias, at.total));
    TRY(attend(stage, index));
    return output_run(stage, w->output, at.k - at.q);
}
