/* Private to the watch. Who is at fault: a pure function of what a rank last heard of the others.
 *
 *   rank 0 judges all others, all others judge rank 0: no beat for the silence limit -> SILENT
 *   a process of this host that ended without leaving, as seen by any rank -> DEAD
 *   rank 0 judges by the beats' content: too long in one step -> SLOW, no progress while loading ->
 *   LOADING; it names the rank that holds the rest up, not one that waits for it
 *   rank 0 judges who does not close; the others judge rank 0 until it closes itself -> LINGERS */
#ifndef JETD_CLUSTER_VERDICT_H
#define JETD_CLUSTER_VERDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum verdict_kind {
    VERDICT_NONE,
    VERDICT_SILENT,
    VERDICT_SLOW,
    VERDICT_LOADING,
    VERDICT_DEAD,
    VERDICT_LINGERS
};

enum phase { PHASE_IDLE, PHASE_LOADING, PHASE_STEP };

/* Phase and step are those of the rank's last beat. */
struct verdict {
    int32_t kind;
    int32_t rank;
    int32_t phase, unused;
    uint64_t step; /* the one it is in, or the last one */
    double seconds;
};

/* What one rank tells; plain data, the same layout on every rank. */
struct beat {
    uint64_t step;      /* the one it is in, or the last one */
    double seconds;     /* in this phase; loading: since it last made progress */
    uint64_t transfers; /* exchanges finished since start */
    int32_t phase;
    int32_t waiting;        /* inside an exchange, for a step or for its device */
    int32_t dead;           /* rank + 1 of a process of this host that ended; 0: none */
    int32_t closing;        /* this rank wants to end */
    int32_t leaving;        /* the last beat of this rank */
    int32_t agreed;         /* rank 0's verdict came and was logged */
    struct verdict verdict; /* of rank 0: everything ends */
};

struct peer {
    int rank;
    bool left;     /* its leaving beat came */
    bool told;     /* it took our leaving beat */
    int64_t heard; /* when its last beat came */
    struct beat last;
};

struct verdict_limits {
    double silence, step, load, close; /* seconds */
};

struct evidence {
    int rank;
    struct beat own;
    const struct peer *peers; /* whom this rank judges */
    int peer_count;
    int64_t now;
    bool held_up;   /* this process was lately; what the others spent waiting for it is not their
                       fault */
    double closing; /* seconds since this rank wants all to close; negative: it does not */
    struct verdict_limits limits;
};

/* False: nobody is at fault. */
bool verdict_find(const struct evidence *evidence, struct verdict *verdict);

/* "rank 3 stalled in step 17 (no sign of life for 5.0 s)" */
void verdict_text(const struct verdict *verdict, char *text, size_t room);

#endif
