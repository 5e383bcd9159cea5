/* Private to cluster/. What every fabric is made of: the door's struct, a transport that moves host
 * bytes between two ranks, staging memory and a watch.
 *
 * Collectives are written once (collective.c) on top of the transport, so that all fabrics send the
 * same pieces and add them in the same order. */
#ifndef JETD_CLUSTER_FABRIC_H
#define JETD_CLUSTER_FABRIC_H

#include <stdatomic.h>

#include "cluster/cluster.h"

struct fabric_core;
struct watch;

/* Keeps unlike messages between two ranks apart; a receiver that meets the wrong kind knows that
 * the ranks have lost step (STATUS_PEER_MISMATCH). */
enum transfer_kind { TRANSFER_COLLECTIVE, TRANSFER_POINT, TRANSFER_PUBLISH };

struct transfer {
    int peer;     /* world rank */
    void *data;   /* read only in sends */
    size_t bytes; /* <= TRANSFER_MAX */
};

#define TRANSFER_MAX ((size_t)1 << 28)

struct transport {
    /* Sends and receives all, in any order; returns when every buffer is free again. Transfers of
     * zero bytes are real messages. Observes the abort. */
    enum status (*exchange)(struct fabric_core *core, int tag, const struct transfer *sends,
                            int send_count, const struct transfer *receives, int receive_count);
    /* One message of any length up to `room` from `peer`; sleeps while nothing comes. A longer one
     * is lost: STATUS_PEER_MISMATCH. */
    enum status (*take)(struct fabric_core *core, int tag, int peer, void *bytes, size_t room,
                        size_t *length);
};

struct fabric_core {
    struct fabric door; /* first: a fabric * is a fabric_core * */
    const struct transport *transport;
    int world;
    struct fabric_memory memory;
    bool staged; /* device memory is not host memory */
    atomic_bool own_aborted;
    atomic_bool *aborted; /* the above, or one that all ranks share */
    struct watch *watch;  /* NULL: none */

    struct transfer *sends, *receives; /* [world] */
    const void **pieces;               /* [world] */
    unsigned char *staging;            /* [world, SLICE_BYTES] what peers sent */
    unsigned char *bounce;             /* [world, SLICE_BYTES] host copy of device memory; staged */
};

/* The most bytes of one member in one round of a collective: bounds staging, changes no sum. */
enum { SLICE_BYTES = 256 * 1024 };

static inline struct fabric_core *fabric_core(struct fabric *fabric)
{
    return (struct fabric_core *)fabric;
}

/* Tells apart axes and kinds on the wire: 0 .. 15. */
static inline int transfer_tag(enum axis axis, enum transfer_kind kind)
{
    return (int)axis * 4 + (int)kind;
}

/* Fills a zeroed core; `ops` is the fabric's own table. Errors: STATUS_CONFIG, STATUS_NO_MEMORY. */
enum status fabric_core_open(struct fabric_core *core, const struct fabric_options *options,
                             int rank, const struct fabric_ops *ops,
                             const struct transport *transport, struct error *error);
void fabric_core_close(struct fabric_core *core);

/* The entries of the door that are the same for every transport. */
enum status collective_publish(struct fabric *, const void *bytes, size_t length);
enum status collective_await(struct fabric *, void *bytes, size_t room, size_t *length);
enum status collective_all_reduce(struct fabric *, enum axis, void *data, size_t count,
                                  enum dtype dtype);
enum status collective_all_gather(struct fabric *, enum axis, const void *in, void *out,
                                  size_t bytes);
enum status collective_send(struct fabric *, enum axis, int index, const void *data, size_t bytes);
enum status collective_receive(struct fabric *, enum axis, int index, void *data, size_t bytes);
enum status collective_send_host(struct fabric *, enum axis, int index, const void *data,
                                 size_t bytes);
enum status collective_receive_host(struct fabric *, enum axis, int index, void *data,
                                    size_t bytes);
enum status collective_barrier(struct fabric *);
/* What every fabric's table has in common; its name, close and abort are its own. */
#define COLLECTIVE_OPS                                                                             \
    .publish = collective_publish, .await = collective_await, .all_reduce = collective_all_reduce, \
    .all_gather = collective_all_gather, .send = collective_send, .receive = collective_receive,   \
    .send_host = collective_send_host, .receive_host = collective_receive_host,                    \
    .barrier = collective_barrier

#endif
