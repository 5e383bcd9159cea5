/* State out of nothing: for benchmarks, whose speed does not depend on the values. */
#include <stdlib.h>
#include <string.h>

#include "partition/stage.h"

enum { PATTERN_BYTES = 16 << 20 };

struct pattern {
    unsigned char *f32, *activation; /* [PATTERN_BYTES] host */
};

/* Uniform in +-1/16: xorshift (Marsaglia), good enough to be far from zeros. */
static void pattern_fill(struct pattern *pattern, enum dtype dtype, uint64_t seed)
{
    uint64_t x = seed * 2 + 1;
    for (size_t i = 0; i < PATTERN_BYTES / sizeof(float); i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        float value = ((float)(x >> 40) * 0x1p-23f - 1.0f) * 0.0625f;
        memcpy(pattern->f32 + i * sizeof value, &value, sizeof value);
        if (dtype == DTYPE_F32) {
            memcpy(pattern->activation + i * sizeof value, &value, sizeof value);
            continue;
        }
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t pair[2] = {(uint16_t)(bits >> 16), (uint16_t)((bits >> 16) ^ 0x8000)};
        memcpy(pattern->activation + i * sizeof pair, pair, sizeof pair);
    }
}

/* The first piece from the host, the rest by copies on the device. */
static enum status memory_fill(struct stage *stage, void *to, uint64_t bytes,
                               const unsigned char *pattern)
{
    uint64_t first = bytes < PATTERN_BYTES ? bytes : PATTERN_BYTES;
    if (to == NULL || bytes == 0)
        return STATUS_OK;
    TRY(stage->backend->upload(stage->device, to, pattern, first));
    for (uint64_t at = first; at < bytes;) {
        uint64_t part = bytes - at < at ? bytes - at : at;
        TRY(stage->backend->copy(stage->device, (unsigned char *)to + at, to, part));
        at += part;
    }
    return STATUS_OK;
}

static enum status layer_fill(struct stage *stage, int index, const struct pattern *pattern)
{
    const struct plan *plan = stage->plan;
    const struct rank_plan *rank = stage->rank;
    const struct model_config *m = &plan->model;
    const struct layer_state *state = &stage->state.layer[index];
    uint64_t slots = (uint64_t)plan->limits.max_num_seqs, act = dtype_size(plan->activation);
    uint64_t channels = (uint64_t)span_size(rank->jet_heads) * (uint64_t)m->jet_d_v;
    uint64_t row = 2 * (uint64_t)span_size(rank->kv_heads) * (uint64_t)m->head_dim * act;
    switch (layout_layer(plan, rank, index)) {
    case LAYER_JET:
        TRY(memory_fill(stage, state->recurrent,
                        slots * channels * (uint64_t)m->jet_d_k * sizeof(float), pattern->f32));
        return memory_fill(stage, state->rows,
                           slots * (uint64_t)(m->conv_taps - 1) * channels * act,
                           pattern->activation);
    case LAYER_ATTN:
        return memory_fill(stage, state->cache,
                           rank->kv_blocks * (uint64_t)plan->limits.block_tokens * row,
                           pattern->activation);
    case LAYER_SWA:
        return memory_fill(stage, state->cache, slots * (uint64_t)layout_ring(plan) * row,
                           pattern->activation);
    }
    return STATUS_INTERNAL;
}

enum status stage_randomise(struct stage *stage, uint64_t seed, struct error *error)
{
    struct pattern pattern = {malloc(PATTERN_BYTES), malloc(PATTERN_BYTES)};
    enum status status = STATUS_NO_MEMORY;
    if (pattern.f32 != NULL && pattern.activation != NULL) {
        status = STATUS_OK;
        pattern_fill(&pattern, stage->plan->activation, seed);
    }
    for (int i = 0; status == STATUS_OK && i < span_size(stage->rank->layers); i++)
        status = layer_fill(stage, i, &pattern);
    free(pattern.f32);
    free(pattern.activation);
    return status == STATUS_OK ? STATUS_OK
                               : error_set(error, status, "random state: %s", status_name(status));
}

enum status stage_inject(struct stage *stage, int slot, int length, const int32_t *blocks,
                         int count, struct error *error)
{
    const struct plan *plan = stage->plan;
    if (slot < 0 || slot >= plan->limits.max_num_seqs || length < 0 ||
        length > plan->limits.max_model_len || count < 0 || count > plan->max_blocks_per_sequence)
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "slot %d cannot hold %d tokens in %d blocks", slot, length, count);
    stage->slot_length[slot] = length;
    stage->slot_blocks[slot] = count;
    if (count == 0 || stage->rank->attn_layers == 0)
        return STATUS_OK;
    int32_t *table = stage->scratch.table + (size_t)slot * (size_t)plan->max_blocks_per_sequence;
    return stage->backend->upload(stage->device, table, blocks, (size_t)count * sizeof *blocks);
}
