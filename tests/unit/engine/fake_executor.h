/* A model and its ranks in a few lines, behind the engine's door (daemon/executor.h): the token
 * drawn is a hash of everything the slot has seen, the seed and the draw, so that any mix-up of
 * slots, contexts or draws changes the output. Every step is decoded with step_decode and checked
 * against what a device would hold; the first violation is kept and fails every later collect. */
#ifndef JETD_TEST_FAKE_EXECUTOR_H
#define JETD_TEST_FAKE_EXECUTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/executor.h"
#include "daemon/request.h"

enum {
    FAKE_EOS = 7,        /* drawn about once in 16 */
    FAKE_NOT_FINITE = 9, /* a prompt with this id gives -1 as every result */
    FAKE_FIRST = 100,    /* other drawn ids: FAKE_FIRST .. FAKE_FIRST + FAKE_RANGE - 1 */
    FAKE_RANGE = 800,
};

struct fake_options {
    struct step_shape shape;
    int delay_us;      /* of every collect */
    int64_t fail_step; /* this step's collect fails with STATUS_PEER_LOST; -1: none */
    int64_t hold_step; /* this step's collect waits for fake_executor_release; -1: none */
    bool eos;          /* whether FAKE_EOS is ever drawn */
};

struct executor *fake_executor_create(const struct fake_options *options);
void fake_executor_destroy(struct executor *executor);
/* Goes on from the step that is held, or does not stop at it; `next`: the step to be held then.
 * Time stands still for the engine's sequences while a step is held, however slow the machine is.
 */
void fake_executor_release(struct executor *executor, int64_t next);
/* What was wrong first, "" when all is well. Call when the engine is closed. */
const char *fake_executor_violation(const struct executor *executor);
uint64_t fake_executor_steps(const struct executor *executor);
int fake_executor_deepest(const struct executor *executor); /* most steps under way */

/* The newest row that was sampled, and whether its sequence's tokens were counted. */
struct fake_drawn {
    struct sample_row row;
    struct logit_bias bias[REQUEST_BIASES_MAX]; /* [row.bias_count] */
    bool counted;
};
/* Call when the engine is idle. */
const struct fake_drawn *fake_executor_drawn(const struct executor *executor);

/* The same arithmetic for expectations. */
uint64_t fake_seen(uint64_t seen, int32_t id); /* 0 before the first token */
int32_t fake_draw(uint64_t seen, uint64_t seed, uint64_t draw, bool eos, const int32_t *bans,
                  int ban_count);
float fake_logprob(uint64_t seen, int32_t id);

#endif
