/* The reader of a step: nothing in it is believed. After STATUS_OK every index in the step is
 * within its array and every number is one that the layers can compute with; what only the stage
 * knows (how many blocks a slot already has) the stage checks. */
#include <math.h>
#include <string.h>

#include "partition/batch.h"

#define REFUSE(error, ...) error_set(error, STATUS_PEER_MISMATCH, "step: " __VA_ARGS__)

static enum status check_count(const char *name, int32_t value, int32_t most, struct error *error)
{
    if (value < 0 || value > most)
        return REFUSE(error, "%s = %d is not within 0 .. %d", name, value, most);
    return STATUS_OK;
}

static enum status check_header(const struct step_shape *shape, const struct step_header *h,
                                size_t length, struct error *error)
{
    if (h->magic != STEP_MAGIC)
        return REFUSE(error, "magic is %08x, not %08x", h->magic, STEP_MAGIC);
    if (h->unused != 0)
        return REFUSE(error, "unused header field is %d", h->unused);
    const struct {
        const char *name;
        int32_t value, most;
    } counts[] = {
        {"sequences", h->sequences, shape->max_sequences},
        {"tokens", h->tokens, shape->max_tokens},
        {"rows", h->rows, shape->max_rows},
        {"blocks", h->blocks, shape->max_blocks},
        {"biases", h->biases, shape->max_biases},
        {"bans", h->bans, shape->max_bans},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        enum status status = check_count(counts[i].name, counts[i].value, counts[i].most, error);
        if (status != STATUS_OK)
            return status;
    }
    size_t bytes = step_layout_of(h).bytes;
    if (length != bytes)
        return REFUSE(error, "length is %zu bytes, its counts say %zu", length, bytes);
    return STATUS_OK;
}

static enum status check_sequence(const struct step_shape *shape, const struct step_sequence *s,
                                  int index, struct error *error)
{
    if (s->slot < 0 || s->slot >= shape->slots)
        return REFUSE(error, "sequence %d: slot %d is not within 0 .. %d", index, s->slot,
                      shape->slots - 1);
    if (s->tokens < 1)
        return REFUSE(error, "sequence %d: tokens = %d", index, s->tokens);
    if (s->context < 0 || (int64_t)s->context + s->tokens > shape->max_model_len)
        return REFUSE(error, "sequence %d: context %d and %d tokens exceed max_model_len %d", index,
                      s->context, s->tokens, shape->max_model_len);
    if (s->new_blocks < 0)
        return REFUSE(error, "sequence %d: new_blocks = %d", index, s->new_blocks);
    if (s->counted != 0 && s->counted != 1)
        return REFUSE(error, "sequence %d: counted = %d", index, s->counted);
    return STATUS_OK;
}

/* Two sequences in one slot would write the same state. A bitmap of a window of slots at a time, so
 * that the work stays linear without memory of its own. */
static enum status check_slots_distinct(const struct step_shape *shape, const struct step *step,
                                        struct error *error)
{
    enum { WINDOW = 8192 };
    uint64_t seen[WINDOW / 64];
    for (int first = 0; first < shape->slots; first += WINDOW) {
        memset(seen, 0, sizeof seen);
        for (int i = 0; i < step->sequences; i++) {
            int slot = step->sequence[i].slot - first;
            if (slot < 0 || slot >= WINDOW)
                continue;
            uint64_t bit = UINT64_C(1) << (slot % 64);
            if (seen[slot / 64] & bit)
                return REFUSE(error, "sequence %d: slot %d occurs twice", i, slot + first);
            seen[slot / 64] |= bit;
        }
    }
    return STATUS_OK;
}

static enum status check_sequences(const struct step_shape *shape, const struct step *step,
                                   struct error *error)
{
    int64_t tokens = 0, blocks = 0;
    for (int i = 0; i < step->sequences; i++) {
        const struct step_sequence *s = &step->sequence[i];
        enum status status = check_sequence(shape, s, i, error);
        if (status != STATUS_OK)
            return status;
        if (i > 0 && s->tokens == 1 && step->sequence[i - 1].tokens > 1)
            return REFUSE(error, "sequence %d: one token after longer sequences", i);
        tokens += s->tokens;
        blocks += s->new_blocks;
    }
    if (tokens != step->tokens)
        return REFUSE(error, "sequences have %lld tokens, the step has %d", (long long)tokens,
                      step->tokens);
    if (blocks != step->blocks)
        return REFUSE(error, "sequences have %lld new blocks, the step has %d", (long long)blocks,
                      step->blocks);
    return check_slots_distinct(shape, step, error);
}

static enum status check_ids(const char *name, const int32_t *id, int count, int least, int end,
                             struct error *error)
{
    for (int i = 0; i < count; i++) {
        if (id[i] < least || id[i] >= end)
            return REFUSE(error, "%s %d: %d is not within %d .. %d", name, i, id[i], least,
                          end - 1);
    }
    return STATUS_OK;
}

static bool range_within(int32_t begin, int32_t count, int32_t size)
{
    return begin >= 0 && count >= 0 && begin <= size && count <= size - begin;
}

static enum status check_row_indices(const struct step_shape *shape, const struct step *step,
                                     int index, struct error *error)
{
    const struct step_row *row = &step->row[index];
    const struct sample_row *s = &row->sample;
    if (row->token < 0 || row->token >= step->tokens)
        return REFUSE(error, "row %d: token %d of %d", index, row->token, step->tokens);
    if (s->slot < 0 || s->slot >= shape->slots)
        return REFUSE(error, "row %d: slot %d is not within 0 .. %d", index, s->slot,
                      shape->slots - 1);
    if (s->target < -1 || s->target >= shape->vocab)
        return REFUSE(error, "row %d: target %d is not below %d", index, s->target, shape->vocab);
    if (!range_within(s->bias_begin, s->bias_count, step->biases))
        return REFUSE(error, "row %d: biases %d + %d of %d", index, s->bias_begin, s->bias_count,
                      step->biases);
    if (!range_within(s->ban_begin, s->ban_count, step->bans))
        return REFUSE(error, "row %d: bans %d + %d of %d", index, s->ban_begin, s->ban_count,
                      step->bans);
    if (s->tops < 0 || s->tops > SAMPLE_TOP_MAX || s->tops > shape->vocab)
        return REFUSE(error, "row %d: tops = %d", index, s->tops);
    if ((s->flags & ~SAMPLE_COUNTED) != 0)
        return REFUSE(error, "row %d: flags = %#x", index, (unsigned)s->flags);
    return STATUS_OK;
}

static enum status check_row_numbers(const struct step_row *row, int index, struct error *error)
{
    const struct sample_row *s = &row->sample;
    const struct {
        const char *name;
        double value;
        bool good;
    } numbers[] = {
        {"temperature", s->temperature, s->temperature >= 0},
        {"top_p", s->top_p, s->top_p > 0 && s->top_p <= 1},
        {"min_p", s->min_p, s->min_p >= 0 && s->min_p <= 1},
        {"top_k", s->top_k, s->top_k >= 0},
        {"repetition", s->repetition, s->repetition > 0},
        {"presence", s->presence, true},
        {"frequency", s->frequency, true},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (!isfinite(numbers[i].value) || !numbers[i].good)
            return REFUSE(error, "row %d: %s = %g", index, numbers[i].name, numbers[i].value);
    }
    return STATUS_OK;
}

static enum status check_rows(const struct step_shape *shape, const struct step *step,
                              struct error *error)
{
    for (int i = 0; i < step->rows; i++) {
        enum status status = check_row_indices(shape, step, i, error);
        if (status == STATUS_OK)
            status = check_row_numbers(&step->row[i], i, error);
        if (status != STATUS_OK)
            return status;
    }
    for (int i = 0; i < step->biases; i++) {
        const struct logit_bias *bias = &step->bias[i];
        if (bias->id < 0 || bias->id >= shape->vocab)
            return REFUSE(error, "bias %d: id %d is not below %d", i, bias->id, shape->vocab);
        if (!isfinite(bias->value))
            return REFUSE(error, "bias %d: value %g", i, (double)bias->value);
    }
    return check_ids("ban", step->ban, step->bans, 0, shape->vocab, error);
}

enum status step_decode(const struct step_shape *shape, const void *bytes, size_t length,
                        struct step *step, struct error *error)
{
    if (length < sizeof(struct step_header) || ((uintptr_t)bytes & 7) != 0)
        return REFUSE(error, "length is %zu bytes, a header has %zu", length,
                      sizeof(struct step_header));
    struct step_header h;
    memcpy(&h, bytes, sizeof h);
    enum status status = check_header(shape, &h, length, error);
    if (status != STATUS_OK)
        return status;

    const unsigned char *flat = bytes;
    struct step_layout at = step_layout_of(&h);
    struct step s = {
        .number = h.number,
        .sequences = h.sequences,
        .tokens = h.tokens,
        .rows = h.rows,
        .blocks = h.blocks,
        .biases = h.biases,
        .bans = h.bans,
        .sequence = (const void *)(flat + at.sequence),
        .token = (const void *)(flat + at.token),
        .block = (const void *)(flat + at.block),
        .row = (const void *)(flat + at.row),
        .bias = (const void *)(flat + at.bias),
        .ban = (const void *)(flat + at.ban),
    };
    status = check_sequences(shape, &s, error);
    if (status == STATUS_OK)
        status = check_ids("token", s.token, s.tokens, -shape->slots, shape->vocab, error);
    if (status == STATUS_OK)
        status = check_ids("block", s.block, s.blocks, 0, shape->kv_blocks, error);
    if (status == STATUS_OK)
        status = check_rows(shape, &s, error);
    if (status == STATUS_OK)
        *step = s;
    return status;
}
