#include "partition/batch.h"

#include <stdlib.h>
#include <string.h>

struct step_builder {
    struct step_shape shape;
    struct step_header header;
    bool longer; /* a sequence of several tokens was added: no decode may follow */
    struct step_sequence *sequence;
    int32_t *token, *block, *ban;
    struct step_row *row;
    struct logit_bias *bias;
    unsigned char *flat;
};

static struct step_header header_full(const struct step_shape *shape)
{
    return (struct step_header){.sequences = shape->max_sequences,
                                .tokens = shape->max_tokens,
                                .rows = shape->max_rows,
                                .blocks = shape->max_blocks,
                                .biases = shape->max_biases,
                                .bans = shape->max_bans};
}

size_t step_bytes_max(const struct step_shape *shape)
{
    struct step_header full = header_full(shape);
    return step_layout_of(&full).bytes;
}

/* calloc that gives memory for a count of 0 too. */
static void *array_create(int count, size_t size)
{
    return calloc((size_t)count + 1, size);
}

struct step_builder *step_builder_create(const struct step_shape *shape)
{
    struct step_builder *b = calloc(1, sizeof *b);
    if (b == NULL)
        return NULL;
    b->shape = *shape;
    b->sequence = array_create(shape->max_sequences, sizeof *b->sequence);
    b->token = array_create(shape->max_tokens, sizeof *b->token);
    b->block = array_create(shape->max_blocks, sizeof *b->block);
    b->ban = array_create(shape->max_bans, sizeof *b->ban);
    b->row = array_create(shape->max_rows, sizeof *b->row);
    b->bias = array_create(shape->max_biases, sizeof *b->bias);
    b->flat = calloc(1, step_bytes_max(shape));
    if (b->sequence == NULL || b->token == NULL || b->block == NULL || b->ban == NULL ||
        b->row == NULL || b->bias == NULL || b->flat == NULL) {
        step_builder_destroy(b);
        return NULL;
    }
    step_begin(b, 0);
    return b;
}

void step_builder_destroy(struct step_builder *b)
{
    if (b == NULL)
        return;
    free(b->sequence);
    free(b->token);
    free(b->block);
    free(b->ban);
    free(b->row);
    free(b->bias);
    free(b->flat);
    free(b);
}

void step_begin(struct step_builder *b, uint64_t number)
{
    b->header = (struct step_header){.magic = STEP_MAGIC, .number = number};
    b->longer = false;
}

static bool fits(int32_t used, int32_t more, int32_t room)
{
    return more >= 0 && more <= room - used;
}

/* memcpy that may be given nothing to copy from nowhere. */
static void append(void *to, int32_t used, const void *from, int32_t count, size_t size)
{
    if (count > 0)
        memcpy((unsigned char *)to + (size_t)used * size, from, (size_t)count * size);
}

enum status step_add_sequence(struct step_builder *b, const struct step_sequence *sequence,
                              const int32_t *tokens, const int32_t *blocks)
{
    struct step_header *h = &b->header;
    if (sequence->tokens < 1 || sequence->new_blocks < 0 || (sequence->tokens == 1 && b->longer))
        return STATUS_INTERNAL;
    if (!fits(h->sequences, 1, b->shape.max_sequences) ||
        !fits(h->tokens, sequence->tokens, b->shape.max_tokens) ||
        !fits(h->blocks, sequence->new_blocks, b->shape.max_blocks))
        return STATUS_RESOURCE_EXHAUSTED;
    b->longer = sequence->tokens > 1;
    b->sequence[h->sequences] = *sequence;
    append(b->token, h->tokens, tokens, sequence->tokens, sizeof *tokens);
    append(b->block, h->blocks, blocks, sequence->new_blocks, sizeof *blocks);
    h->sequences++;
    h->tokens += sequence->tokens;
    h->blocks += sequence->new_blocks;
    return STATUS_OK;
}

enum status step_add_row(struct step_builder *b, struct step_row row,
                         const struct logit_bias *biases, const int32_t *bans)
{
    struct step_header *h = &b->header;
    struct sample_row *sample = &row.sample;
    if (row.token < 0 || row.token >= h->tokens || sample->bias_count < 0 || sample->ban_count < 0)
        return STATUS_INTERNAL;
    if (!fits(h->rows, 1, b->shape.max_rows) ||
        !fits(h->biases, sample->bias_count, b->shape.max_biases) ||
        !fits(h->bans, sample->ban_count, b->shape.max_bans))
        return STATUS_RESOURCE_EXHAUSTED;
    sample->bias_begin = h->biases;
    sample->ban_begin = h->bans;
    append(b->bias, h->biases, biases, sample->bias_count, sizeof *biases);
    append(b->ban, h->bans, bans, sample->ban_count, sizeof *bans);
    b->row[h->rows++] = row;
    h->biases += sample->bias_count;
    h->bans += sample->ban_count;
    return STATUS_OK;
}

int step_tokens(const struct step_builder *b)
{
    return b->header.tokens;
}

const void *step_finish(struct step_builder *b, size_t *length)
{
    const struct step_header *h = &b->header;
    struct step_layout at = step_layout_of(h);
    memcpy(b->flat, h, sizeof *h);
    append(b->flat + at.row, 0, b->row, h->rows, sizeof *b->row);
    append(b->flat + at.sequence, 0, b->sequence, h->sequences, sizeof *b->sequence);
    append(b->flat + at.bias, 0, b->bias, h->biases, sizeof *b->bias);
    append(b->flat + at.token, 0, b->token, h->tokens, sizeof *b->token);
    append(b->flat + at.block, 0, b->block, h->blocks, sizeof *b->block);
    append(b->flat + at.ban, 0, b->ban, h->bans, sizeof *b->ban);
    *length = at.bytes;
    return b->flat;
}
