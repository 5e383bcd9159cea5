/* Private to the nccl fabric's files. */
#ifndef JETD_CLUSTER_FABRIC_NCCL_H
#define JETD_CLUSTER_FABRIC_NCCL_H

#include <pthread.h>

#include "cluster/fabric.h"
#include "cluster/nccl_calls.h"

/* A communicator along each axis, and one against the direction of the pipeline: what goes from a
 * later stage to an earlier one never stands in line behind what goes forward. */
enum { COMM_BACK = AXIS_WORLD + 1, COMMS };

struct fabric_nccl {
    struct fabric_core core; /* first; its watch and its `aborted` are the host fabric's */
    struct fabric *host;
    struct nccl_calls calls;
    cudaStream_t stream;
    ncclComm_t comm[COMMS]; /* NULL: one member, or the world along another axis */
    pthread_mutex_t lock;   /* one thread at a time talks to NCCL */
    atomic_bool failed, closing;
    /* Receives beside the stream. */
    cudaStream_t aside;
    cudaEvent_t before[FABRIC_EXPECTED], after[FABRIC_EXPECTED];
    unsigned turns;
    bool polling;
    pthread_t poller;
};

extern const char *const nccl_names[COMMS];

static inline struct fabric_nccl *fabric_nccl(struct fabric *fabric)
{
    return (struct fabric_nccl *)fabric;
}

static inline bool nccl_is_over(struct fabric_nccl *end)
{
    return atomic_load(&end->failed) || atomic_load(end->core.aborted);
}

/* Whose fault a failed call is: STATUS_INTERNAL, STATUS_DEVICE (our own), STATUS_PEER_LOST. */
enum status nccl_status(ncclResult_t result);

/* Waits until NCCL's own thread has done what `result` is the first answer to; under the lock.
 * `until`: 0 is forever, which the watch bounds. */
enum status nccl_settle(struct fabric_nccl *end, ncclComm_t comm, ncclResult_t result,
                        int64_t until, const char *what);

/* A communicator along every axis with several members; collective. */
enum status nccl_groups_open(struct fabric_nccl *end, struct error *error);
/* Uses every connection once. */
enum status nccl_groups_warm(struct fabric_nccl *end, struct error *error);
void nccl_groups_close(struct fabric_nccl *end);

#endif
