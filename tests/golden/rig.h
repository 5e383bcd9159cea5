/* Ranks driven without an engine: rank 0 composes steps and publishes them, the others run what
 * they get. Used with the threads fabric and under mpirun. */
#ifndef JETD_TESTS_GOLDEN_RIG_H
#define JETD_TESTS_GOLDEN_RIG_H

#include "partition/partition.h"
#include "tests/golden/fixture.h"

enum { RIG_SLOTS = 19 };

struct rig {
    struct fixture *fixture;
    struct plan *plan;
    struct fabric *fabric;
    const struct backend *backend;
    struct device *device;
    struct stage *stage;
    struct step_shape shape;
    struct step_builder *builder;
    struct sample_result *results; /* of the newest step */
    unsigned char *bytes;          /* the other ranks' room for a step */
    uint64_t number;
    int failures; /* on this rank */
    /* of log-probabilities against the fixture's */
    double error_squares;
    int errors;
};

/* The table that rigs use; NULL: the cpu's. */
extern const struct backend *rig_backend;
extern int rig_ordinal; /* which accelerator */
/* Device collectives over NCCL: the rig wraps the fabric it is given and closes it too. */
extern bool rig_nccl;
/* device_options.batch_invariant */
extern bool rig_invariant;
/* Tolerances times this: 1 for f32 arithmetic, more for bf16, whose few largest errors of many rows
 * may be five times what is asked of their root mean square. */
extern double rig_slack;

/* Counts a failed check, and says what it was. */
__attribute__((format(printf, 2, 3))) void rig_fail(struct rig *rig, const char *format, ...);

struct rig *rig_open(struct fixture *fixture, struct mesh mesh, struct fabric *fabric);
void rig_close(struct rig *rig); /* not the fabric, unless rig_nccl */

/* Rank 0: a step is composed with step_add_* on rig->builder between these two. */
void rig_begin(struct rig *rig);
void rig_run(struct rig *rig);
/* Rank 0: every rank compares the state of `slot` with the fixture's. */
void rig_check_state(struct rig *rig, int slot);
/* Rank 0: ends rig_serve() everywhere. */
void rig_stop(struct rig *rig);
/* Every other rank. */
void rig_serve(struct rig *rig);

/* Runs `scenario` on rank 0 of `fabric` or serves it there, and returns this rank's failures. */
int rig_scenario(struct fixture *fixture, struct mesh mesh, struct fabric *fabric,
                 void (*scenario)(struct rig *rig, void *context), void *context);
/* The same for all ranks of a mesh over the threads fabric: failures of all ranks. */
int rig_threads(struct fixture *fixture, struct mesh mesh,
                void (*scenario)(struct rig *rig, void *context), void *context);

#endif
