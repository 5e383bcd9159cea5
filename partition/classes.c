/* Batch-size classes: a decode step that may be recorded is filled up with idle sequences to one of
 * few sizes, so that few recordings (replay.c) serve every size.
 *
 * An idle sequence is a new one of one token, id 0, in the slot and the KV block that no request
 * is given: behind the last of each. It reads one key and no state (context 0 counts as zeros,
 * whatever the slot holds, so that nothing lives on there, no NaN either). All of a step's are
 * equal, so that the places they share get the same values from each. Its row is greedy, behind the
 * step's own, and its outcome is told to nobody. Everything here follows from the step alone: every
 * rank fills it alike. */
#include <stdlib.h>
#include <string.h>

#include "partition/stage.h"

/* Exact where a sequence more is felt; then steps of an eighth to a quarter of the count, of less
 * for large ones: a step that is filled up costs nearly what its class costs. */
int class_of(int count, int most)
{
    int unit = 1;
    while (unit < 16 && count > 8 * unit)
        unit *= 2;
    unit = count <= 256 ? unit : count <= 1024 ? 32 : 64;
    int size = (count + unit - 1) / unit * unit;
    return size < most ? size : most;
}

int idle_slot(const struct plan *plan)
{
    return plan->limits.max_num_seqs;
}

/* The table of the idle slot has one block. */
static enum status table_fill(struct stage *stage)
{
    const struct plan *plan = stage->plan;
    int32_t block = (int32_t)plan->limits.kv_blocks;
    size_t at = (size_t)idle_slot(plan) * (size_t)plan->max_blocks_per_sequence;
    if (stage->rank->attn_layers == 0)
        return STATUS_OK;
    return stage->backend->upload(stage->device, stage->scratch.table + at, &block, sizeof block);
}

enum status idle_create(struct stage *stage)
{
    struct step_shape shape;
    struct idle *idle = &stage->idle;
    plan_step_shape(stage->plan, &shape);
    idle->sequence = calloc((size_t)shape.max_sequences, sizeof *idle->sequence);
    idle->token = calloc((size_t)shape.max_sequences, sizeof *idle->token);
    idle->row = calloc((size_t)shape.max_rows, sizeof *idle->row);
    if (idle->sequence == NULL || idle->token == NULL || idle->row == NULL)
        return STATUS_NO_MEMORY;
    return table_fill(stage);
}

void idle_destroy(struct stage *stage)
{
    free(stage->idle.sequence);
    free(stage->idle.token);
    free(stage->idle.row);
}

/* memcpy that may be given nothing to copy from nowhere. */
static void take(void *to, const void *from, int count, size_t size)
{
    if (count > 0)
        memcpy(to, from, (size_t)count * size);
}

struct step idle_fill(struct stage *stage, const struct step *step, int sequences, int rows)
{
    const struct idle *idle = &stage->idle;
    int slot = idle_slot(stage->plan);
    struct step filled = *step;
    take(idle->sequence, step->sequence, step->sequences, sizeof *idle->sequence);
    take(idle->token, step->token, step->tokens, sizeof *idle->token);
    take(idle->row, step->row, step->rows, sizeof *idle->row);
    for (int i = step->sequences; i < sequences; i++) {
        idle->sequence[i] = (struct step_sequence){.slot = slot, .tokens = 1};
        idle->token[i] = 0;
    }
    for (int i = step->rows; i < rows; i++)
        idle->row[i] = (struct step_row){
            .token = sequences - 1, /* the last of the step's tokens, idle where any is */
            .sample = {.slot = slot, .target = -1, .top_p = 1, .repetition = 1}};
    filled.sequences = filled.tokens = sequences;
    filled.rows = rows;
    filled.sequence = idle->sequence;
    filled.token = idle->token;
    filled.row = idle->row;
    return filled;
}

struct step step_fill(struct stage *stage, const struct step *step)
{
    struct step_shape shape;
    plan_step_shape(stage->plan, &shape);
    int sequences = class_of(step->sequences, shape.max_sequences);
    int rows = class_of(step->rows, shape.max_rows);
    if (sequences == step->sequences && rows == step->rows)
        return *step;
    return idle_fill(stage, step, sequences, rows);
}
