/* The door of cluster/: who the ranks are and how bytes travel between them. Computes nothing;
 * alone sees mpi.h and nccl.h.
 *
 * A `fabric` is one rank's end of a transport: self (one rank), threads (all ranks in one process,
 * for tests), mpi, nccl. Collectives run along one axis of the mesh. Every rank of a group calls
 * the same collectives in the same order, from one thread (the one that runs steps). All fabrics
 * give the same numbers: sums are taken in rank order (nccl: see fabric_open_nccl). */
#ifndef JETD_CLUSTER_H
#define JETD_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/status.h"
#include "kernels/kernels.h"

enum axis { AXIS_TENSOR, AXIS_CONTEXT, AXIS_PIPELINE, AXIS_WORLD };

/* Sizes along each axis, all >= 1. Rank order: tensor fastest, then context, then pipeline. */
struct mesh {
    int tensor, context, pipeline;
};

struct coordinates {
    int tensor, context, pipeline;
};

/* tensor * context * pipeline; 0 if a size is < 1 or the product exceeds 4096. */
int mesh_size(struct mesh mesh);
int mesh_rank(struct mesh mesh, struct coordinates at);
struct coordinates mesh_coordinates(struct mesh mesh, int rank);
int mesh_axis_size(struct mesh mesh, enum axis axis);
/* The rank's index in its group along `axis`, and the world rank of member `index` of it. */
int mesh_axis_index(struct mesh mesh, int rank, enum axis axis);
int mesh_axis_member(struct mesh mesh, int rank, enum axis axis, int index);

struct fabric;

enum { FABRIC_EXPECTED = 8 };

struct fabric_expected {
    int index; /* group member */
    void *data;
    size_t bytes;
    void *host; /* pinned; gets the bytes from `data` + `skip` on; NULL: none */
    size_t skip;
};

struct fabric_ops {
    const char *name;
    void (*close)(struct fabric *fabric);

    /* Step bytes from rank 0 to every rank (host memory). Rank 0 sends; every other rank receives
     * into `bytes` (capacity `room`), sleeping, not spinning, while nothing comes. */
    enum status (*publish)(struct fabric *, const void *bytes, size_t length);
    enum status (*await)(struct fabric *, void *bytes, size_t room, size_t *length);

    /* Element-wise sum over the group along `axis`, in place, in group order on every member. */
    enum status (*all_reduce)(struct fabric *, enum axis, void *data, size_t count, enum dtype);
    /* Member i's `bytes` bytes land at out + i * bytes on every member. Host memory. */
    enum status (*all_gather)(struct fabric *, enum axis, const void *in, void *out, size_t bytes);
    /* Point to point along `axis` to or from group member `index`; device memory. */
    enum status (*send)(struct fabric *, enum axis, int index, const void *data, size_t bytes);
    enum status (*receive)(struct fabric *, enum axis, int index, void *data, size_t bytes);
    /* The same for host memory. */
    enum status (*send_host)(struct fabric *, enum axis, int index, const void *data, size_t bytes);
    enum status (*receive_host)(struct fabric *, enum axis, int index, void *data, size_t bytes);
    /* Receives beside the device's stream, which goes on without waiting; optional, NULL where
     * !streamed. `data` is written after what the stream holds now, then copied to the host. At
     * most FABRIC_EXPECTED turns are under way. After arrive() the stream goes on when the turn has
     * come, await_turn() waits for it, arrived() says whether that would wait. */
    enum status (*expect)(struct fabric *, enum axis, const struct fabric_expected *what,
                          unsigned *turn);
    enum status (*arrive)(struct fabric *, unsigned turn);
    enum status (*await_turn)(struct fabric *, unsigned turn);
    bool (*arrived)(struct fabric *, unsigned turn);
    enum status (*barrier)(struct fabric *);
    /* Ends every rank: their pending and later calls return STATUS_ABORTED (threads) or their
     * process is ended (mpi) with the exit code of `status`. Any thread; the first call wins, and
     * where there are other ranks `why` is logged. */
    void (*abort)(struct fabric *, enum status status, const char *why);
};

struct fabric {
    const struct fabric_ops *ops;
    struct mesh mesh;
    int rank;      /* in the world */
    bool streamed; /* device collectives are enqueued on the device's stream: nothing waits for them
                    */
    struct coordinates at;
};

/* Where collectives find device memory: host staging for fabrics that cannot see it.
 * May be attached after open and before the first device collective. */
struct fabric_memory {
    const struct backend *backend;
    struct device *device;
};

struct fabric_options {
    struct mesh mesh;
    /* A rank that shows no sign of life, stays in one step, loads without progress or does not
     * close for this long is declared stalled: it is named with its step, and all ranks are brought
     * down. Seconds; 0: the default. */
    double heartbeat_timeout; /* 5 */
    double step_timeout;      /* 300; fabric_limit_steps() changes it */
    double load_timeout;      /* 600 */
    double close_timeout;     /* 30 */
    double open_timeout;      /* 120: the ranks meet in this time (mpi), or all end */
};

enum status fabric_open_self(const struct fabric_options *options, struct fabric **fabric,
                             struct error *error);
/* mesh_size() connected ends in one process; fabrics[r] is rank r's. */
enum status fabric_open_threads(const struct fabric_options *options, struct fabric **fabrics,
                                struct error *error);
/* Calls MPI_Init_thread if it was not called; the world's size must be mesh_size().
 * Errors: STATUS_CONFIG naming both sizes. Where several ranks were started a failure does not
 * return: it is logged and ends all, as `abort` does. */
enum status fabric_open_mpi(const struct fabric_options *options, struct fabric **fabric,
                            struct error *error);
/* Whether every rank has an accelerator that no other rank has; collective. */
enum status fabric_devices_distinct(struct fabric *fabric, const struct fabric_memory *memory,
                                    bool *distinct);
/* How many ranks have this rank's accelerator, itself among them; 1 without one. Collective. */
enum status fabric_device_sharers(struct fabric *fabric, const struct fabric_memory *memory,
                                  int *sharers);
/* Device collectives over NCCL, host ones over `host` (which it then owns); collective. The memory
 * that NCCL takes for itself is taken at return. With two members sums are the other fabrics' bits;
 * with more they may differ by rounding (fabric_nccl.c).
 * Errors: STATUS_CONFIG naming what is missing: NCCL, a backend with streams, a GPU for each rank.
 */
enum status fabric_open_nccl(struct fabric *host, const struct fabric_memory *memory,
                             struct fabric **fabric, struct error *error);

/* The world's size as the launcher set it (mpirun, srun), 1 without one, and this process's rank;
 * answers before fabric_open_mpi and without initialising MPI. */
void launcher_world(int *size, int *rank, int *local_rank);

void fabric_close(struct fabric *fabric); /* NULL is fine */
enum status fabric_attach(struct fabric *fabric, const struct fabric_memory *memory);

/* watch.c. Tells the watch what this rank is doing, from the thread that runs steps. A stalled or
 * lost rank is reported as "rank R stalled in step S ...", "... while loading" or "... after step
 * S". `step` grows. */
void fabric_step_begin(struct fabric *fabric, uint64_t step);
void fabric_step_end(struct fabric *fabric);
/* Within a step: this rank has done its part and waits for its device, which may wait for other
 * ranks; so a rank that does not is to blame before it. Exchanges say so themselves. */
void fabric_wait_begin(struct fabric *fabric);
void fabric_wait_end(struct fabric *fabric);
/* This rank is loading and has just come forward; until fabric_load_end(). */
void fabric_load_mark(struct fabric *fabric);
void fabric_load_end(struct fabric *fabric);
/* The step_timeout from now on, for whoever knows only then how long steps may be. */
void fabric_limit_steps(struct fabric *fabric, double seconds);

/* Every rank passes its digest; STATUS_PEER_MISMATCH naming the ranks that differ from rank 0. */
enum status fabric_agree(struct fabric *fabric, const void *digest, size_t bytes, const char *what,
                         struct error *error);

#endif
