/* One step as flat bytes: what rank 0 broadcasts and every rank runs. The builder side is the
 * engine's, the reader side the stage's; both check every length.
 *
 * A step holds sequences (in order: those with one new token first), their tokens, KV blocks newly
 * given to their slots, rows (tokens whose logits are wanted) and the lists rows refer to.
 * Little-endian, as the hosts are; ranks of one cluster run the same binary (compared at start). */
#ifndef JETD_PARTITION_STEP_H
#define JETD_PARTITION_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/status.h"
#include "kernels/kernels.h"

struct step_sequence {
    int32_t slot;
    int32_t tokens;  /* new tokens, >= 1 */
    int32_t context; /* tokens before them; 0 starts a new sequence in the slot */
    int32_t
        new_blocks;  /* KV blocks appended to the slot's table (it is emptied when context is 0) */
    int32_t counted; /* 1: penalties are on, keep token counts for the slot */
};

/* A token whose logits are wanted. */
struct step_row {
    int32_t token;            /* index among the step's tokens */
    struct sample_row sample; /* target >= 0: score; else sample and remember under sample.slot */
};

struct step_shape { /* capacities of a builder, limits of a reader */
    int max_sequences, max_tokens, max_rows, max_blocks, max_biases, max_bans;
    int slots;
    int vocab;     /* literal token ids and bias, ban and target ids must be below this */
    int kv_blocks; /* block numbers must be below this */
    int block_tokens, max_model_len;
    int depth; /* steps under way, as plan_depth() */
};

/* The decoded form; pointers lead into the flat bytes. */
struct step {
    uint64_t number;
    int sequences, tokens, rows, blocks, biases, bans;
    const struct step_sequence *sequence; /* [sequences] */
    const int32_t *token;          /* [tokens] id, or -1 - slot: that slot's newest sampled token */
    const int32_t *block;          /* [blocks] in order of sequences */
    const struct step_row *row;    /* [rows] */
    const struct logit_bias *bias; /* [biases] */
    const int32_t *ban;            /* [bans] */
};

struct step_builder;

/* A builder with room for `shape`; all memory is taken here. NULL: out of memory. */
struct step_builder *step_builder_create(const struct step_shape *shape);
void step_builder_destroy(struct step_builder *builder);

void step_begin(struct step_builder *builder, uint64_t number);
/* tokens [sequence->tokens], blocks [sequence->new_blocks]. STATUS_RESOURCE_EXHAUSTED: no room
 * left; the step is as before. Sequences with one token must be added before longer ones. */
enum status step_add_sequence(struct step_builder *builder, const struct step_sequence *sequence,
                              const int32_t *tokens, const int32_t *blocks);
/* `row->sample.bias_begin` and ban_begin are set here from the lists given. */
enum status step_add_row(struct step_builder *builder, struct step_row row,
                         const struct logit_bias *biases, const int32_t *bans);
int step_tokens(const struct step_builder *builder);
/* The flat bytes, valid until the next step_begin. */
const void *step_finish(struct step_builder *builder, size_t *length);
/* The most bytes a step of this shape has. */
size_t step_bytes_max(const struct step_shape *shape);

/* Checks and decodes flat bytes from a peer (8-byte aligned). STATUS_PEER_MISMATCH names the field.
 */
enum status step_decode(const struct step_shape *shape, const void *bytes, size_t length,
                        struct step *step, struct error *error);

#endif
