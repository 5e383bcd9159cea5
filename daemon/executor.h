/* The executor: the one door from the engine to the ranks. On rank 0 it has a thread that publishes
 * each step's bytes to the other ranks, runs rank 0's own stage and hands the results back; on
 * other ranks executor_serve() is that loop. At most shape->depth steps are under way. */
#ifndef JETD_DAEMON_EXECUTOR_H
#define JETD_DAEMON_EXECUTOR_H

#include "partition/partition.h"

struct executor;

struct executor_options {
    struct stage *stage;   /* rank 0's */
    struct fabric *fabric; /* rank 0's */
    const struct step_shape *shape;
};

enum status executor_open(const struct executor_options *options, struct executor **executor,
                          struct error *error);
/* Publishes the stop step: every executor_serve() returns STATUS_OK. */
void executor_close(struct executor *executor);

/* Copies the bytes and returns at once; the caller keeps at most shape->depth uncollected. */
enum status executor_submit(struct executor *executor, const void *bytes, size_t length);
/* Waits for the oldest submitted step. `results` [rows], `*rows` set on success. */
enum status executor_collect(struct executor *executor, struct sample_result *results, int room,
                             int *rows, struct error *error);

/* Every other rank: runs published steps until the stop step. */
enum status executor_serve(struct stage *stage, struct fabric *fabric,
                           const struct step_shape *shape, struct error *error);

#endif
