/* What is asked of every mesh. */
#ifndef JETD_TESTS_GOLDEN_SCENARIO_H
#define JETD_TESTS_GOLDEN_SCENARIO_H

#include "tests/golden/rig.h"

enum { TRACE_ROWS = 1024 };

/* Tokens and log-probabilities of one sequence, to be compared bit by bit. */
struct trace {
    int rows;
    int32_t token[TRACE_ROWS];
    float logprob[TRACE_ROWS];
};

/* How a prompt is cut into steps; 0 ends the list, the rest goes in one piece. */
struct chunks {
    int size[64];
};

/* The prompt in `chunks`, scored at every position, then greedy decoding, against the fixture;
 * states compared after the prompt. */
void scenario_golden(struct rig *rig, void *chunks);

/* The same sequence alone in whatever chunks, and among others: the same bits. */
void scenario_invariance(struct rig *rig, void *unused);

/* Decode steps of many sizes, every other sequence with counts and penalties: each sequence has the
 * bits that it has alone, and no more rows come than were asked for. */
void scenario_classes(struct rig *rig, void *unused);

/* More shapes of decode steps than are kept recorded. */
void scenario_shapes(struct rig *rig, void *unused);

/* Sampled tokens of several seeded requests into a trace: the same on every mesh. */
void scenario_sampling(struct rig *rig, void *trace);

/* Many draws from the prompt's last distribution under every knob, against the plain formulas. */
void scenario_draws(struct rig *rig, void *unused);

/* Two sequences draw in one step whose logits at row 0 the caller has poisoned. */
void scenario_poisoned(struct rig *rig, void *unused);

#endif
