/* The step's arrays on the device: one packed upload, and the blocks that slots gained. */
#include "daemon/base/checked.h"
#include "partition/stage.h"

static enum status check_slot(const struct stage *stage, const struct step_sequence *s,
                              struct error *error)
{
    const struct plan *plan = stage->plan;
    if (s->slot == idle_slot(plan)) /* ours, not the step's; it has its block */
        return STATUS_OK;
    if (s->context > 0 && s->context != stage->slot_length[s->slot])
        return error_set(error, STATUS_PEER_MISMATCH,
                         "step: slot %d continues at %d but holds %d tokens", s->slot, s->context,
                         stage->slot_length[s->slot]);
    int64_t blocks = (int64_t)(s->context > 0 ? stage->slot_blocks[s->slot] : 0) + s->new_blocks;
    if (blocks > plan->max_blocks_per_sequence)
        return error_set(error, STATUS_PEER_MISMATCH,
                         "step: slot %d would have %lld blocks, a sequence has at most %d", s->slot,
                         (long long)blocks, plan->max_blocks_per_sequence);
    int64_t end = (int64_t)s->context + s->tokens;
    if (stage->rank->attn_layers > 0 && blocks * plan->limits.block_tokens < end)
        return error_set(error, STATUS_PEER_MISMATCH,
                         "step: slot %d has %lld blocks of %d tokens, too few for %lld tokens",
                         s->slot, (long long)blocks, plan->limits.block_tokens, (long long)end);
    return STATUS_OK;
}

static enum status slot_extend(struct stage *stage, const struct step_sequence *s,
                               const int32_t *blocks)
{
    if (s->slot == idle_slot(stage->plan))
        return STATUS_OK;
    if (s->context == 0)
        stage->slot_blocks[s->slot] = 0;
    int32_t *table = stage->scratch.table +
                     (size_t)s->slot * (size_t)stage->plan->max_blocks_per_sequence +
                     stage->slot_blocks[s->slot];
    stage->slot_blocks[s->slot] += s->new_blocks;
    stage->slot_length[s->slot] = s->context + s->tokens;
    if (s->new_blocks == 0 || stage->rank->attn_layers == 0)
        return STATUS_OK;
    return stage->backend->upload(stage->device, table, blocks,
                                  (size_t)s->new_blocks * sizeof *blocks);
}

/* Where each array begins among the packed integers. */
struct meta_layout {
    size_t starts, slots, contexts, token_sequence, token_position, source, end;
};

static struct meta_layout meta_layout_of(const struct step *step)
{
    size_t sequences = round_up((uint64_t)step->sequences + 1, META_ALIGN);
    size_t tokens = round_up((uint64_t)step->tokens, META_ALIGN);
    struct meta_layout at = {.starts = 0};
    at.slots = sequences;
    at.contexts = 2 * sequences;
    at.token_sequence = 3 * sequences;
    at.token_position = at.token_sequence + tokens;
    at.source = at.token_position + tokens;
    at.end = at.source + tokens;
    return at;
}

static void meta_fill(const struct step *step, const struct meta_layout *at, int32_t *meta)
{
    int token = 0;
    for (int i = 0; i < step->sequences; i++) {
        const struct step_sequence *s = &step->sequence[i];
        meta[at->starts + (size_t)i] = token;
        meta[at->slots + (size_t)i] = s->slot;
        meta[at->contexts + (size_t)i] = s->context;
        for (int t = 0; t < s->tokens; t++, token++) {
            meta[at->token_sequence + (size_t)token] = i;
            meta[at->token_position + (size_t)token] = s->context + t;
            meta[at->source + (size_t)token] = step->token[token];
        }
    }
    meta[at->starts + (size_t)step->sequences] = token;
}

static void batch_point(struct stage *stage, const struct meta_layout *at)
{
    const int32_t *device = stage->scratch.meta, *host = stage->meta;
    struct ragged *b = &stage->batch;
    b->starts = device + at->starts;
    b->slots = device + at->slots;
    b->contexts = device + at->contexts;
    b->token_sequence = device + at->token_sequence;
    b->token_position = device + at->token_position;
    b->host_starts = host + at->starts;
    b->host_slots = host + at->slots;
    b->host_contexts = host + at->contexts;
    stage->source = device + at->source;
}

static void batch_measure(struct stage *stage, const struct step *step)
{
    struct ragged *b = &stage->batch;
    *b = (struct ragged){.sequences = step->sequences, .tokens = step->tokens};
    for (int i = 0; i < step->sequences; i++) {
        const struct step_sequence *s = &step->sequence[i];
        int end = s->context + s->tokens;
        b->decodes += s->tokens == 1;
        b->max_tokens = s->tokens > b->max_tokens ? s->tokens : b->max_tokens;
        b->max_context = end > b->max_context ? end : b->max_context;
    }
}

enum status ragged_upload(struct stage *stage, const struct step *step, struct error *error)
{
    for (int i = 0; i < step->sequences; i++)
        TRY(check_slot(stage, &step->sequence[i], error));
    const int32_t *blocks = step->block;
    for (int i = 0; i < step->sequences; i++) {
        TRY(slot_extend(stage, &step->sequence[i], blocks));
        blocks += step->sequence[i].new_blocks;
    }
    struct meta_layout at = meta_layout_of(step);
    meta_fill(step, &at, stage->meta);
    batch_measure(stage, step);
    if (stage->batch.decodes == stage->batch.sequences)
        stage->batch.max_context = replay_context(stage, stage->batch.max_context);
    batch_point(stage, &at);
    return stage->backend->upload(stage->device, stage->scratch.meta, stage->meta,
                                  at.end * sizeof(int32_t));
}
