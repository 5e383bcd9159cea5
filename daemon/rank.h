/* What every rank opens at start, in order: fabric, device, model, plan, weights. The coordinator
 * (rank 0) and the workers build on it. Any failure ends the whole cluster with one message. */
#ifndef JETD_DAEMON_RANK_H
#define JETD_DAEMON_RANK_H

#include "daemon/settings.h"
#include "daemon/tokenizer.h"
#include "partition/partition.h"

struct rank {
    struct fabric *fabric;
    const struct backend *backend;
    struct device *device;
    const char *folder; /* of the checkpoint; NULL: dummy weights of a built-in shape */
    char choices[4096]; /* the file of the device's choices, when none was named */
    char found[4096];   /* the demo model's folder, when none was given */
    struct model_config model;
    struct tokenizer *tokenizer; /* rank 0 only; NULL: token ids alone */
    int limit;                   /* ids from here on are never sampled */
    struct checkpoint *checkpoint;
    struct plan *plan;
    struct step_shape shape;
    struct stage *stage;
    double step_seconds; /* the longest that a step may take */
};

/* --plan: the plan alone, for any mesh, without device, fabric or weights. */
enum status rank_print_plan(const struct settings *settings, struct error *error);

/* Its mesh is not set. */
struct fabric_options rank_fabric_options(const struct settings *settings);

/* Opens all of it, on `fabric` or, when that is NULL, on the one that settings and launcher ask
 * for; the rank owns it either way. On failure everything is closed again and the other ranks were
 * told. */
enum status rank_open(const struct settings *settings, struct fabric *fabric, struct rank *rank,
                      struct error *error);
void rank_close(struct rank *rank);

#endif
