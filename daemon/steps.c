/* A batch as step bytes. */
#include "daemon/engine_private.h"

/* Numbers that every row must have, also one that only scores. */
static struct sample_row row_plain(int slot, int tops)
{
    return (struct sample_row){
        .slot = slot, .target = -1, .top_p = 1, .repetition = 1, .tops = tops > 0 ? tops : 0};
}

static enum status scored_add(struct step_builder *builder, const struct batch_item *item,
                              const struct request_spec *spec, int base)
{
    for (int i = 0; i < item->scored; i++) {
        struct step_row row = {.token = base + i,
                               .sample = row_plain(item->entry->slot, spec->logprobs)};
        row.sample.target = spec->prompt[item->context + i + 1];
        enum status status = step_add_row(builder, row, NULL, NULL);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status sample_add(struct step_builder *builder, const struct batch_item *item,
                              const struct sequence *sequence, int base)
{
    const struct job *job = sequence->job;
    const struct sampling *sampling = &job->spec->sampling;
    bool banned = item->sample < job->spec->min_new_tokens;
    struct step_row row = {.token = base + item->tokens - 1,
                           .sample = row_plain(item->entry->slot, job->spec->logprobs)};
    struct sample_row *sample = &row.sample;
    sample->temperature = sampling->temperature;
    sample->top_p = sampling->top_p;
    sample->min_p = sampling->min_p;
    sample->top_k = sampling->top_k;
    sample->repetition = sampling->repetition;
    sample->presence = sampling->presence;
    sample->frequency = sampling->frequency;
    sample->seed = sequence->seed;
    sample->draw = (uint64_t)item->sample;
    sample->bias_count = sampling->biases;
    sample->ban_count = banned ? job->stop_ids : 0;
    sample->flags = job->counted ? SAMPLE_COUNTED : 0;
    return step_add_row(builder, row, sampling->bias, job->stop_id);
}

static enum status item_add(struct step_builder *builder, const struct batch_item *item,
                            const int32_t *blocks)
{
    const struct sequence *sequence = (const struct sequence *)item->entry;
    const struct job *job = sequence->job;
    const struct request_spec *spec = job->spec;
    int32_t newest = -1 - item->entry->slot; /* the host may not know it yet */
    bool prompt = item->context < item->entry->inputs;
    struct step_sequence added = {.slot = item->entry->slot,
                                  .tokens = item->tokens,
                                  .context = item->context,
                                  .new_blocks = item->new_blocks,
                                  .counted = job->counted};
    int base = step_tokens(builder);
    enum status status =
        step_add_sequence(builder, &added, prompt ? spec->prompt + item->context : &newest, blocks);
    if (status == STATUS_OK)
        status = scored_add(builder, item, spec, base);
    if (status == STATUS_OK && item->sample >= 0)
        status = sample_add(builder, item, sequence, base);
    return status;
}

enum status batch_build(struct engine *engine, const struct batch *batch, const void **bytes,
                        size_t *length)
{
    const int32_t *blocks = batch->block;
    step_begin(engine->builder, engine->steps);
    for (int i = 0; i < batch->items; i++) {
        const struct batch_item *item = &batch->item[i];
        enum status status = item_add(engine->builder, item, blocks);
        if (status != STATUS_OK)
            return status;
        blocks += item->new_blocks;
    }
    *bytes = step_finish(engine->builder, length);
    return STATUS_OK;
}
