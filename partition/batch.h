/* The flat layout of a step, shared by its builder (batch.c) and its reader (batch_decode.c):
 * header, rows, sequences, biases, tokens, blocks, bans, each packed behind the other. Rows come
 * first because they alone need 8-byte alignment. */
#ifndef JETD_PARTITION_BATCH_H
#define JETD_PARTITION_BATCH_H

#include "partition/step.h"

#define STEP_MAGIC UINT32_C(0x5054534a) /* "JSTP" */

struct step_header {
    uint32_t magic;
    int32_t sequences, tokens, rows, blocks, biases, bans;
    int32_t unused;
    uint64_t number;
};

/* Byte offsets of each section, and the bytes in all. */
struct step_layout {
    size_t row, sequence, bias, token, block, ban, bytes;
};

/* Counts must not be negative; they are 32-bit, so that sums cannot overflow 64 bits. */
static inline struct step_layout step_layout_of(const struct step_header *header)
{
    struct step_layout at;
    at.row = sizeof(struct step_header);
    at.sequence = at.row + (size_t)header->rows * sizeof(struct step_row);
    at.bias = at.sequence + (size_t)header->sequences * sizeof(struct step_sequence);
    at.token = at.bias + (size_t)header->biases * sizeof(struct logit_bias);
    at.block = at.token + (size_t)header->tokens * sizeof(int32_t);
    at.ban = at.block + (size_t)header->blocks * sizeof(int32_t);
    at.bytes = at.ban + (size_t)header->bans * sizeof(int32_t);
    return at;
}

#endif
