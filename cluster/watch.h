/* Private to cluster/. Each rank's watch is a thread that sends a beat to rank 0 every fifth of a
 * second (rank 0: to all) and looks at the beats it gets.
 *
 *   rank 0 judges all others, all others judge rank 0: no beat for heartbeat_timeout -> stalled
 *   rank 0 also judges by the beats' content: too long in one step -> stalled, and it names the
 *   rank that holds the rest up: one that computes rather than waits, else the one furthest behind
 *   processes of the same host are seen to die at once (the link says so)
 *
 *   watching --(verdict found or received)--> condemned: logged once, everything aborted
 *            --(watch_close)--> leaving --(all peers leave too)--> done */
#ifndef JETD_CLUSTER_WATCH_H
#define JETD_CLUSTER_WATCH_H

#include "cluster/cluster.h"

enum verdict_kind { VERDICT_NONE, VERDICT_SILENT, VERDICT_SLOW, VERDICT_DEAD, VERDICT_LINGERS };

struct verdict {
    int32_t kind;
    int32_t rank;
    uint64_t step;
    double seconds;
};

/* What one rank tells; plain data, the same layout on every rank. */
struct beat {
    uint64_t step;      /* 0: idle */
    double seconds;     /* in this step so far */
    uint64_t transfers; /* exchanges finished since start */
    int32_t waiting;    /* inside an exchange */
    int32_t leaving;    /* the last beat of this rank */
    int32_t dead;       /* rank + 1 of a process of this host that ended; 0: none */
    int32_t unused;
    struct verdict verdict; /* of rank 0: everything ends */
};

/* How beats travel. Called by the watch's thread only; nothing may block. */
struct watch_link {
    void *context;
    /* False: `peer` has not yet taken the last one; try at the next tick. */
    bool (*tell)(void *context, int peer, const struct beat *beat);
    bool (*hear)(void *context, int peer, struct beat *beat);
    /* A rank whose process on this host has ended, or -1. May be NULL. */
    int (*dead)(void *context);
    /* Ends everything, after the verdict was logged. `why` is its text. */
    void (*condemn)(void *context, const struct verdict *verdict, const char *why);
    /* Closing waits until all peers close. */
    bool together;
};

struct watch;

enum status watch_open(const struct fabric_options *options, int rank, int world,
                       const struct watch_link *link, struct watch **watch, struct error *error);
void watch_close(struct watch *watch); /* NULL is fine */

/* From the thread that runs steps. */
void watch_step_begin(struct watch *watch, uint64_t step);
void watch_step_end(struct watch *watch);
void watch_wait_begin(struct watch *watch);
void watch_wait_end(struct watch *watch);

/* "rank 3 stalled in step 17 (no sign of life for 5.0 s)" */
void verdict_text(const struct verdict *verdict, char *text, size_t room);

#endif
