/* One sequence's state as plain f32, for tests, snapshots and hand-over. Not part of a step: it
 * may allocate. */
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "partition/stage.h"

/* Downloads `count` elements of the activation dtype, widened. */
static enum status widen(struct stage *stage, void *from, uint64_t first, size_t count, float *out)
{
    from = stage_at(stage, from, first);
    if (stage->plan->activation == DTYPE_F32)
        return stage->backend->download(stage->device, out, from, count * sizeof *out);
    /* bf16 lands in the upper half of the room, and is widened from the front */
    uint16_t *half = (uint16_t *)(void *)out + count;
    TRY(stage->backend->download(stage->device, half, from, count * sizeof *half));
    for (size_t i = 0; i < count; i++) {
        uint16_t value;
        memcpy(&value, &half[i], sizeof value);
        out[i] = f32_from_bf16(value);
    }
    return STATUS_OK;
}

static enum status export_recurrent(struct stage *stage, int slot, int index, float *out,
                                    size_t count)
{
    return stage->backend->download(stage->device, out,
                                    stage->state.layer[index].recurrent + (size_t)slot * count,
                                    count * sizeof *out);
}

static enum status table_row(struct stage *stage, int slot, int32_t **table)
{
    size_t width = (size_t)stage->plan->max_blocks_per_sequence;
    *table = calloc(width, sizeof **table);
    if (*table == NULL)
        return STATUS_NO_MEMORY;
    return stage->backend->download(
        stage->device, *table, stage->scratch.table + (size_t)slot * width, width * sizeof **table);
}

/* Keys (part 0) or values (part 1) at positions [begin, length) of a cache, position by position:
 * `table` NULL is a ring. */
static enum status export_cache(struct stage *stage, int slot, int index, int part,
                                const int32_t *table, struct span positions, float *out)
{
    int heads = span_size(stage->rank->kv_heads), dim = stage->plan->model.head_dim;
    int page = table == NULL ? layout_ring(stage->plan) : stage->plan->limits.block_tokens;
    for (int p = positions.begin; p < positions.end; p++) {
        int block = table == NULL ? slot : table[p / page];
        for (int h = 0; h < heads; h++, out += dim) {
            uint64_t row =
                (((uint64_t)block * 2 + (uint64_t)part) * (uint64_t)heads + (uint64_t)h) *
                    (uint64_t)page +
                (uint64_t)(p % page);
            TRY(widen(stage, stage->state.layer[index].cache, row * (uint64_t)dim, (size_t)dim,
                      out));
        }
    }
    return STATUS_OK;
}

static size_t export_count(const struct stage *stage, enum layer_type type, enum state_kind kind,
                           int length)
{
    const struct model_config *m = &stage->plan->model;
    size_t values = (size_t)span_size(stage->rank->jet_heads) * (size_t)m->jet_d_v;
    size_t keys = (size_t)span_size(stage->rank->kv_heads) * (size_t)m->head_dim;
    if (kind == STATE_RECURRENT)
        return values * (size_t)m->jet_d_k;
    if (kind == STATE_CONV)
        return values * (size_t)(m->conv_taps - 1);
    int kept = type == LAYER_SWA && length > m->window ? m->window : length;
    return keys * (size_t)kept;
}

static enum status export_keys(struct stage *stage, int slot, int index, enum state_kind kind,
                               int length, float *out)
{
    int part = kind == STATE_V, window = stage->plan->model.window;
    if (layout_layer(stage->plan, stage->rank, index) == LAYER_SWA) {
        struct span kept = {length > window ? length - window : 0, length};
        return export_cache(stage, slot, index, part, NULL, kept, out);
    }
    int32_t *table = NULL;
    enum status status = table_row(stage, slot, &table);
    if (status == STATUS_OK)
        status = export_cache(stage, slot, index, part, table, (struct span){0, length}, out);
    free(table);
    return status;
}

enum status stage_export(struct stage *stage, int slot, int layer, enum state_kind kind, int length,
                         float *out, size_t room, size_t *count, struct error *error)
{
    const struct rank_plan *rank = stage->rank;
    if (layer < rank->layers.begin || layer >= rank->layers.end)
        return error_set(error, STATUS_NOT_FOUND, "layer %d is not on rank %d", layer, rank->rank);
    if (slot < 0 || slot >= stage->plan->limits.max_num_seqs || length < 0 ||
        length > stage->slot_length[slot])
        return error_set(error, STATUS_INVALID_ARGUMENT, "slot %d has no %d tokens", slot, length);
    int index = layer - rank->layers.begin;
    enum layer_type type = layout_layer(stage->plan, rank, index);
    if ((type == LAYER_JET) != (kind == STATE_RECURRENT || kind == STATE_CONV))
        return error_set(error, STATUS_NOT_FOUND, "layer %d has no such state", layer);
    size_t needed = export_count(stage, type, kind, length);
    if (needed > room)
        return error_set(error, STATUS_INVALID_ARGUMENT, "state has %zu numbers, room for %zu",
                         needed, room);
    enum status status;
    if (kind == STATE_RECURRENT)
        status = export_recurrent(stage, slot, index, out, needed);
    else if (kind == STATE_CONV)
        status = widen(stage, stage->state.layer[index].rows, (uint64_t)slot * needed, needed, out);
    else
        status = export_keys(stage, slot, index, kind, length, out);
    if (status != STATUS_OK)
        return error_set(error, status, "state of layer %d: %s", layer, status_name(status));
    *count = needed;
    return STATUS_OK;
}
