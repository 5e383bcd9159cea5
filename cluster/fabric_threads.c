/* All ranks in one process, for tests: a mailbox for each ordered pair of ranks, where the sender
 * leaves a pointer and the receiver copies.
 *
 *   EMPTY --post--> POSTED --take--> TAKING --copied--> TAKEN --sender sees it--> EMPTY
 * One lock guards every state; bytes are copied outside of it. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/fabric.h"
#include "cluster/watch.h"
#include "daemon/base/log.h"

enum mail_state { MAIL_EMPTY, MAIL_POSTED, MAIL_TAKING, MAIL_TAKEN };

struct mailbox {
    enum mail_state state;
    int tag;
    const void *data;
    size_t bytes;
};

/* What rank 0 and another rank last told each other. */
struct beat_box {
    struct beat beat;
    bool fresh;
};

struct hub {
    int world, ends; /* ends: not yet closed */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    atomic_bool aborted;        /* set under the lock */
    struct mailbox *mail;       /* [world (to), world (from)] */
    struct beat_box *up, *down; /* [world]: to rank 0, from rank 0 */
};

struct fabric_threads {
    struct fabric_core core; /* first */
    struct hub *hub;
};

static struct hub *hub_of(struct fabric_core *core)
{
    return ((struct fabric_threads *)core)->hub;
}

static struct mailbox *mailbox(struct hub *hub, int from, int to)
{
    return &hub->mail[to * hub->world + from];
}

/* Under the lock. */
static enum status post_all(struct hub *hub, int me, int tag, const struct transfer *sends,
                            int count)
{
    for (int i = 0; i < count; i++) {
        struct mailbox *box = mailbox(hub, me, sends[i].peer);
        *box = (struct mailbox){MAIL_POSTED, tag, sends[i].data, sends[i].bytes};
    }
    if (count > 0)
        pthread_cond_broadcast(&hub->moved);
    return STATUS_OK;
}

/* Under the lock, which is let go for the copy. */
static enum status take_one(struct hub *hub, int from, int to, int tag, void *bytes, size_t room,
                            size_t *length)
{
    struct mailbox *box = mailbox(hub, from, to);
    while (box->state != MAIL_POSTED && !hub->aborted)
        pthread_cond_wait(&hub->moved, &hub->lock);
    if (hub->aborted)
        return STATUS_ABORTED;
    bool fits = box->tag == tag && box->bytes <= room;
    if (!fits)
        log_error("rank %d sent %zu bytes (tag %d) where at most %zu (tag %d) were expected", from,
                  box->bytes, box->tag, room, tag);
    *length = box->bytes;
    box->state = MAIL_TAKING;
    if (fits && box->bytes > 0) {
        pthread_mutex_unlock(&hub->lock);
        memcpy(bytes, box->data, box->bytes);
        pthread_mutex_lock(&hub->lock);
    }
    box->state = MAIL_TAKEN;
    pthread_cond_broadcast(&hub->moved);
    return fits ? STATUS_OK : STATUS_PEER_MISMATCH;
}

/* Under the lock. The buffer is free only when nobody reads it any more, aborted or not. */
static enum status wait_taken(struct hub *hub, int me, int peer)
{
    struct mailbox *box = mailbox(hub, me, peer);
    while (box->state == MAIL_TAKING || (box->state == MAIL_POSTED && !hub->aborted))
        pthread_cond_wait(&hub->moved, &hub->lock);
    bool taken = box->state == MAIL_TAKEN;
    box->state = MAIL_EMPTY;
    return taken ? STATUS_OK : STATUS_ABORTED;
}

static enum status threads_exchange(struct fabric_core *core, int tag, const struct transfer *sends,
                                    int send_count, const struct transfer *receives,
                                    int receive_count)
{
    struct hub *hub = hub_of(core);
    int me = core->door.rank;
    enum status status = STATUS_ABORTED;
    pthread_mutex_lock(&hub->lock);
    if (hub->aborted)
        goto unlock;
    status = post_all(hub, me, tag, sends, send_count);
    for (int i = 0; i < receive_count; i++) {
        size_t length = receives[i].bytes;
        enum status taken =
            take_one(hub, receives[i].peer, me, tag, receives[i].data, receives[i].bytes, &length);
        if (taken == STATUS_OK && length != receives[i].bytes)
            taken = STATUS_PEER_MISMATCH;
        status = status != STATUS_OK ? status : taken;
    }
    for (int i = 0; i < send_count; i++) {
        enum status sent = wait_taken(hub, me, sends[i].peer);
        status = status != STATUS_OK ? status : sent;
    }
unlock:
    pthread_mutex_unlock(&hub->lock);
    return status;
}

static enum status threads_take(struct fabric_core *core, int tag, int peer, void *bytes,
                                size_t room, size_t *length)
{
    struct hub *hub = hub_of(core);
    size_t taken;
    pthread_mutex_lock(&hub->lock);
    enum status status = take_one(hub, peer, core->door.rank, tag, bytes, room, &taken);
    pthread_mutex_unlock(&hub->lock);
    if (status == STATUS_OK)
        *length = taken;
    return status;
}

static const struct transport threads_transport = {threads_exchange, threads_take};

/* ---- the watch's link ---------------------------------------------------------------------- */

static struct beat_box *beat_box(struct fabric_threads *end, int peer, bool out)
{
    int rank = end->core.door.rank;
    if (rank == 0)
        return out ? &end->hub->down[peer] : &end->hub->up[peer];
    return out ? &end->hub->up[rank] : &end->hub->down[rank];
}

static bool threads_tell(void *context, int peer, const struct beat *beat)
{
    struct fabric_threads *end = context;
    pthread_mutex_lock(&end->hub->lock);
    *beat_box(end, peer, true) = (struct beat_box){*beat, true};
    pthread_mutex_unlock(&end->hub->lock);
    return true;
}

static bool threads_hear(void *context, int peer, struct beat *beat)
{
    struct fabric_threads *end = context;
    pthread_mutex_lock(&end->hub->lock);
    struct beat_box *box = beat_box(end, peer, false);
    bool fresh = box->fresh;
    *beat = box->beat;
    box->fresh = false;
    pthread_mutex_unlock(&end->hub->lock);
    return fresh;
}

static void threads_abort(struct fabric *fabric, enum status status, const char *why)
{
    (void)status;
    struct hub *hub = hub_of(fabric_core(fabric));
    pthread_mutex_lock(&hub->lock);
    bool first = !hub->aborted;
    hub->aborted = true;
    pthread_cond_broadcast(&hub->moved);
    pthread_mutex_unlock(&hub->lock);
    if (first)
        log_error("%s", why);
}

static void threads_announce(void *context, const char *why)
{
    threads_abort(context, STATUS_PEER_LOST, why);
}

static void threads_end(void *context)
{
    (void)context; /* steps ended by the announcement end the ranks */
}

/* ---- open and close ------------------------------------------------------------------------ */

static void hub_free(struct hub *hub)
{
    pthread_cond_destroy(&hub->moved);
    pthread_mutex_destroy(&hub->lock);
    free(hub->mail);
    free(hub->up);
    free(hub->down);
    free(hub);
}

static struct hub *hub_create(int world)
{
    size_t count = (size_t)world;
    struct hub *hub = calloc(1, sizeof *hub);
    if (hub == NULL)
        return NULL;
    hub->world = world;
    pthread_mutex_init(&hub->lock, NULL);
    pthread_cond_init(&hub->moved, NULL);
    hub->mail = calloc(count * count, sizeof *hub->mail);
    hub->up = calloc(count, sizeof *hub->up);
    hub->down = calloc(count, sizeof *hub->down);
    if (hub->mail != NULL && hub->up != NULL && hub->down != NULL)
        return hub;
    hub_free(hub);
    return NULL;
}

static void threads_close(struct fabric *fabric)
{
    struct fabric_threads *end = (struct fabric_threads *)fabric;
    watch_close(end->core.watch);
    pthread_mutex_lock(&end->hub->lock);
    bool last = --end->hub->ends == 0;
    pthread_mutex_unlock(&end->hub->lock);
    if (last)
        hub_free(end->hub);
    fabric_core_close(&end->core);
    free(end);
}

static const struct fabric_ops threads_ops = {
    .name = "threads",
    .close = threads_close,
    COLLECTIVE_OPS,
    .abort = threads_abort,
};

/* The hub counts the end from here on, whatever comes back. */
static enum status end_open(const struct fabric_options *options, int rank, struct hub *hub,
                            struct fabric **fabric, struct error *error)
{
    struct fabric_threads *end = calloc(1, sizeof *end);
    if (end == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for rank %d's fabric", rank);
    end->hub = hub;
    hub->ends++;
    *fabric = &end->core.door;
    enum status status =
        fabric_core_open(&end->core, options, rank, &threads_ops, &threads_transport, error);
    end->core.aborted = &hub->aborted;
    struct watch_link link = {
        .context = end,
        .tell = threads_tell,
        .hear = threads_hear,
        .announce = threads_announce,
        .end = threads_end,
    };
    if (status == STATUS_OK)
        status = watch_open(options, rank, hub->world, &link, &end->core.watch, error);
    return status;
}

enum status fabric_open_threads(const struct fabric_options *options, struct fabric **fabrics,
                                struct error *error)
{
    int world = mesh_size(options->mesh);
    if (world == 0) /* the core's words for it */
        return fabric_core_open(&(struct fabric_core){0}, options, 0, &threads_ops, NULL, error);
    struct hub *hub = hub_create(world);
    if (hub == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric of %d threads", world);
    memset(fabrics, 0, (size_t)world * sizeof(struct fabric *));
    hub->ends = 1; /* ours, until all are open */
    enum status status = STATUS_OK;
    for (int rank = 0; rank < world && status == STATUS_OK; rank++)
        status = end_open(options, rank, hub, &fabrics[rank], error);
    pthread_mutex_lock(&hub->lock);
    hub->ends--;
    bool unused = hub->ends == 0;
    pthread_mutex_unlock(&hub->lock);
    if (status == STATUS_OK)
        return status;
    for (int rank = 0; rank < world; rank++)
        if (fabrics[rank] != NULL)
            threads_close(fabrics[rank]);
    if (unused)
        hub_free(hub);
    return status;
}
