/* The scheduler: which sequences run in the next step and with how many tokens each. Pure: waiting,
 * running and free room in, a batch out; no thread, no clock, no I/O.
 *
 * - Admission is arithmetic: a sequence enters when a slot is free and blocks for its whole
 * possible length can be set aside, in order of priority, then arrival; nobody overtakes the first
 * in line.
 * - A step holds one token of every running sequence that is past its prompt, then chunks of
 * prompts in the same order within what is left of max_tokens and max_rows.
 * - With several groups running sequences are dealt to them, and a step has the tokens of one group
 * only, in turns: a pipeline's stages then work on different steps.
 * - Prompts are cut only at multiples of a unit, and never so that one token is left over: the
 * pieces that kernels see inside a chunk are then the same wherever the cuts fall, so that a
 * sequence's numbers do not depend on what else was in its steps. */
#ifndef JETD_DAEMON_SCHEDULER_H
#define JETD_DAEMON_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/blocks.h"
#include "partition/step.h"

enum {
    SCHEDULER_UNIT_MAX = 64, /* tokens between possible cuts of a prompt */
    SCHEDULER_GROUPS_MAX = 8,
};

/* new -> ENTRY_WAITING -> ENTRY_RUNNING -> ENTRY_REMOVED -> (slot given back) ENTRY_NEW */
enum entry_state { ENTRY_NEW, ENTRY_WAITING, ENTRY_RUNNING, ENTRY_REMOVED };

/* One sequence as the scheduler sees it; part of its owner's larger struct. */
struct entry {
    /* set by the owner before scheduler_add */
    int priority;     /* higher first */
    uint64_t arrival; /* lower first among equals; distinct */
    int inputs;       /* prompt tokens to run, >= 1 */
    int scored;       /* of these the leading ones that have a row each */
    int samples;      /* tokens to sample; 0: scored only */
    int biases, bans; /* list entries that its sampled row may carry */
    bool paused;      /* not scheduled while true; may change at any time */
    /* the scheduler's */
    enum entry_state state;
    int slot;    /* -1: none */
    int done;    /* tokens in submitted steps */
    int sampled; /* samples in submitted steps */
    int group;   /* whose turns it decodes in */
    struct entry *previous, *next;
    struct entry *higher, *lower; /* of the first of a priority: the first of the next ones */
};

struct batch_item {
    struct entry *entry;
    int context, tokens; /* tokens before, and in this step */
    int scored;          /* rows of prompt tokens context .. context + scored - 1 */
    int sample;          /* index of the output this step samples, -1: none */
    int new_blocks;
};

/* Items with one token come first. */
struct batch {
    int items, tokens, rows, new_blocks;
    struct batch_item *item; /* [max_sequences] */
    int32_t *block;          /* [max_blocks] new block numbers in order of items */
};

struct scheduler;

/* STATUS_CONFIG: a shape in which a step could run out of room. */
enum status scheduler_create(const struct step_shape *shape, struct scheduler **scheduler,
                             struct error *error);
void scheduler_destroy(struct scheduler *scheduler);
/* How many groups take turns, 1 at first; before the first entry. */
void scheduler_set_groups(struct scheduler *scheduler, int groups);
struct batch *batch_create(const struct step_shape *shape); /* NULL: out of memory */
void batch_destroy(struct batch *batch);

/* Whether the entry could ever run, alone. */
bool scheduler_fits(const struct scheduler *scheduler, const struct entry *entry);
void scheduler_add(struct scheduler *scheduler, struct entry *entry);
/* Not scheduled from now on; keeps its slot and blocks until scheduler_release. Idempotent. */
void scheduler_remove(struct scheduler *scheduler, struct entry *entry);
/* Gives back slot and blocks, when no step that mentions the entry is under way. */
void scheduler_release(struct scheduler *scheduler, struct entry *entry);
/* Admits, fills `batch` and takes its tokens as done. batch->items 0: nothing can run now. */
enum status scheduler_compose(struct scheduler *scheduler, struct batch *batch);

int scheduler_waiting(const struct scheduler *scheduler);
int scheduler_running(const struct scheduler *scheduler);
int scheduler_unit(const struct scheduler *scheduler);
void scheduler_usage(const struct scheduler *scheduler, struct blocks_usage *usage);

#endif
