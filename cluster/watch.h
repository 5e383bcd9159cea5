/* Private to cluster/. Each rank's watch is a thread that sends a beat to rank 0 every fifth of a
 * second (rank 0: to all), looks at the beats it gets and judges by them (verdict.h).
 *
 *   watching --(verdict found or received)--> condemned: logged, told on by rank 0, all end
 *            --(watch_close)--> leaving --(all peers leave too)--> done */
#ifndef JETD_CLUSTER_WATCH_H
#define JETD_CLUSTER_WATCH_H

#include "cluster/cluster.h"
#include "cluster/verdict.h"

/* How beats travel. Called by the watch's thread only; nothing but `end` may block. */
struct watch_link {
    void *context;
    /* False: `peer` has not yet taken the last one; try at the next tick. */
    bool (*tell)(void *context, int peer, const struct beat *beat);
    bool (*hear)(void *context, int peer, struct beat *beat);
    /* A rank whose process on this host has ended, or -1. May be NULL. */
    int (*dead)(void *context);
    /* Logs `why` unless this rank already ends for another reason; its steps end from now on. */
    void (*announce)(void *context, const char *why);
    /* Ends every rank. Called after announce, when the other survivors had time for theirs. */
    void (*end)(void *context);
    /* Ranks are told of a verdict before the end, and closing waits until all peers close. */
    bool together;
};

struct watch;

enum status watch_open(const struct fabric_options *options, int rank, int world,
                       const struct watch_link *link, struct watch **watch, struct error *error);
void watch_close(struct watch *watch); /* NULL is fine */

/* Any thread. */
void watch_limit_steps(struct watch *watch, double seconds);
/* How long it may take to judge a rank that has died or fallen silent, in nanoseconds. */
int64_t watch_patience(const struct watch *watch);

/* From the thread that runs steps. */
void watch_load_mark(struct watch *watch);
void watch_load_end(struct watch *watch);
void watch_step_begin(struct watch *watch, uint64_t step);
void watch_step_end(struct watch *watch);
void watch_wait_begin(struct watch *watch);
void watch_wait_end(struct watch *watch);        /* an exchange is done */
void watch_device_wait_end(struct watch *watch); /* it was no exchange */

#endif
