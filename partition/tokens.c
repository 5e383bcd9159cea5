/* What each slot has seen and said: its newest token, and counts where penalties are on. Literal
 * tokens of a step count as prompt as they flow in, sampled ones as output when they are drawn. */
#include "partition/stage.h"

static enum status count_entries(struct stage *stage, int entries, int resets)
{
    if (entries == 0 && resets == 0)
        return STATUS_OK;
    struct stage_scratch *s = &stage->scratch;
    const struct backend *backend = stage->backend;
    struct span columns = sample_columns(stage);
    if (entries > 0)
        TRY(backend->upload(stage->device, s->entry, stage->entry,
                            (size_t)entries * sizeof *stage->entry));
    if (resets > 0)
        TRY(backend->upload(stage->device, s->reset, stage->reset,
                            (size_t)resets * sizeof *stage->reset));
    return backend->count(stage->device, &(struct count_op){.entries = entries,
                                                            .resets = resets,
                                                            .columns = span_size(columns),
                                                            .first = columns.begin,
                                                            .entry = s->entry,
                                                            .reset = s->reset,
                                                            .last = s->last,
                                                            .counts = s->counts});
}

enum status tokens_count(struct stage *stage, const struct step *step)
{
    int entries = 0, resets = 0;
    const int32_t *token = step->token;
    for (int i = 0; i < step->sequences; token += step->sequence[i++].tokens) {
        const struct step_sequence *s = &step->sequence[i];
        if (!s->counted)
            continue;
        if (s->context == 0)
            stage->reset[resets++] = s->slot;
        for (int t = 0; t < s->tokens; t++) {
            if (token[t] >= 0)
                stage->entry[entries++] = (struct count_entry){s->slot, token[t], 1};
        }
    }
    return count_entries(stage, entries, resets);
}

enum status tokens_remember(struct stage *stage, const struct step *step,
                            const struct sample_result *results)
{
    struct stage_scratch *s = &stage->scratch;
    const struct backend *backend = stage->backend;
    int32_t *slots = stage->pairs, *tokens = stage->pairs + step->rows;
    int rows = 0, counted = 0;
    for (int i = 0; i < step->rows; i++) {
        const struct sample_row *row = &step->row[i].sample;
        if (row->target >= 0 || results[i].token < 0)
            continue;
        slots[rows] = row->slot;
        tokens[rows++] = results[i].token;
        if (row->flags & SAMPLE_COUNTED)
            stage->entry[counted++] = (struct count_entry){row->slot, results[i].token, 0};
    }
    if (rows == 0)
        return STATUS_OK;
    TRY(backend->upload(stage->device, s->remember_slots, slots, (size_t)rows * sizeof *slots));
    TRY(backend->upload(stage->device, s->remember_tokens, tokens, (size_t)rows * sizeof *tokens));
    TRY(backend->remember(stage->device, &(struct remember_op){.rows = rows,
                                                               .slots = s->remember_slots,
                                                               .tokens = s->remember_tokens,
                                                               .last = s->last}));
    return stage->rank->last ? count_entries(stage, counted, 0) : STATUS_OK;
}
