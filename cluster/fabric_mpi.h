/* Private to the mpi fabric's two files. */
#ifndef JETD_CLUSTER_FABRIC_MPI_H
#define JETD_CLUSTER_FABRIC_MPI_H

#include <mpi.h>

#include "cluster/fabric.h"
#include "cluster/watch.h"

/* The watch's messages with one peer. */
struct mpi_line {
    MPI_Request sending, hearing; /* MPI_REQUEST_NULL: none under way */
    struct beat out, in;
};

struct fabric_mpi {
    struct fabric_core core; /* first */
    MPI_Comm bytes;          /* steps and collectives; tags keep axes apart */
    MPI_Comm beats;          /* the watch's own, so that its thread never meets the other one */
    MPI_Request *requests;   /* [2 world] */
    MPI_Status *statuses;    /* [2 world] */
    struct mpi_line *lines;  /* [world] by peer */
    int *pidfds;             /* [world] processes of this host, -1 for others */
    double close_timeout;    /* seconds */
    bool condemned;          /* by this rank's watch; its thread's own */
};

/* MPI_SUCCESS, or logged by name. */
enum status mpi_check(int code, const char *what);

/* Collective over `beats`. Finds out who runs on this host and starts the watch. */
enum status mpi_watch_open(struct fabric_mpi *end, const struct fabric_options *options,
                           struct error *error);
/* Returns when every rank closes. */
void mpi_watch_close(struct fabric_mpi *end);

/* Stops this rank's steps. True for the first caller, whose `why` is logged and who ends all; the
 * others await it. */
bool mpi_announce(struct fabric_mpi *end, const char *why);
_Noreturn void mpi_end_all(int exit_code);
_Noreturn void mpi_await_end(void);

#endif
