/* Shared by the rpc_*.c files only. */
#ifndef JETD_DAEMON_RPC_PRIVATE_H
#define JETD_DAEMON_RPC_PRIVATE_H

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <protobuf-c/protobuf-c.h>
#include <pthread.h>
#include <stdatomic.h>

#include "daemon/base/arena.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/base/status.h"
#include "daemon/rpc.h"
#include "daemon/rpc_validate.h"

struct rpc_call;

/* ---- one method ---- */

struct rpc_method {
    const char *path; /* "/jet.v1.Generation/Generate" */
    /* The one request message, unpacked and checked before `start`. NULL: the method reads its
     * messages itself (client streaming). */
    const ProtobufCMessageDescriptor *request;
    /* Call's lock held; long work between rpc_call_away and rpc_call_back. Answers, ends, or leaves
     * the call open for `pump`. `message` is gone at return. */
    void (*start)(struct rpc_call *call, const ProtobufCMessage *message);
    /* Call's lock held: something may be ready to send. NULL for unary methods. */
    void (*pump)(struct rpc_call *call);
    /* Call's lock held: the client is gone (once). May be NULL. */
    void (*cancel)(struct rpc_call *call);
    /* Call's lock held: a message of a client stream, NULL after the last. One of RPC_LARGE bytes
     * or more ends the call. */
    void (*read)(struct rpc_call *call, const uint8_t *bytes, size_t length);
};

extern const struct rpc_method rpc_generation_methods[], rpc_text_methods[], rpc_control_methods[],
    rpc_health_methods[], rpc_reflection_methods[]; /* path NULL at the end */

/* ---- one call: rpc_call.c ---- */

enum rpc_state { RPC_ARMED, RPC_OPEN, RPC_ENDING };

/* What comes back from the completion queue. */
struct rpc_tag {
    void (*done)(struct rpc_call *call, bool ok);
    struct rpc_call *call;
};

/* What the engine wakes. Never freed while the server lives, so that a late wake finds memory. */
struct rpc_waiter {
    struct rpc_server *server;
    struct rpc_call *call; /* NULL: nobody waits any more */
    struct rpc_waiter *next;
};

struct rpc_call {
    struct rpc_server *server;
    const struct rpc_method *method; /* NULL: a path that nobody registered */
    void *registered;                /* gRPC's name of the method */
    grpc_call *call;
    grpc_call_details details; /* of unknown methods */
    gpr_timespec deadline;
    int64_t arrival; /* clock_now() time */
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
    struct rpc_tag arrived, closed, written, ended, read;
    pthread_mutex_t lock; /* guards all below; taken before the server's lock */
    atomic_int references;
    enum rpc_state state;
    bool metadata_sent, writing, reading, cancelled, end_wanted;
    bool arms_again; /* there was no memory for another: this one is it, once it has ended */
    bool refused;    /* not admitted: nothing was computed, and the same may be taken later */
    enum status end_status;
    char end_text[512];
    int was_cancelled;          /* filled by RECV_CLOSE_ON_SERVER */
    struct rpc_call *next;      /* in the pump's queue */
    bool queued;                /* guarded by the server's lock */
    struct rpc_call *next_work; /* in rpc_work's queue */
    /* Generate and Score */
    struct request *request;
    struct rpc_waiter *waiter;
    struct event *held;  /* Score: its result, until the last event */
    bool lost;           /* an answer found no memory: what follows it would leave a gap */
    enum status outcome; /* of the choices finished so far: the first that is not OK */
    char outcome_text[160];
    /* Health.Watch */
    char service[128];
    int reported; /* last ServingStatus sent, -1: none */
    /* Health.Watch and reflection; guarded by the server's lock */
    struct rpc_call *next_watch, *previous_watch;
    bool watching;
    /* What is being written; guarded by the server's lock */
    struct rpc_call *next_unread, *previous_unread;
    int64_t unread_until; /* clock_now() time; 0: nothing is */
};

/* Arms one call of a method (NULL: of any unknown path). False: out of memory. */
bool rpc_call_arm(struct rpc_server *server, const struct rpc_method *method, void *registered);
void rpc_call_retain(struct rpc_call *call);  /* by whoever holds a reference */
void rpc_call_release(struct rpc_call *call); /* without the lock */
/* Drops the lock and a reference; the call may be gone at return. */
void rpc_call_release_locked(struct rpc_call *call);
/* The pump's turn: takes the lock, gives up the queue's reference. */
void rpc_call_pump(struct rpc_call *call);
/* A worker's turn with a large request, the same. */
void rpc_call_begin(struct rpc_call *call);
/* Around what takes long with a large request, before anything was sent or submitted: drops the
 * lock, so that a client that leaves meanwhile does not hold up a poller. After rpc_call_back the
 * lock is held again; false: the client has left, and the call was ended. */
void rpc_call_away(struct rpc_call *call);
bool rpc_call_back(struct rpc_call *call);
/* The rest with the lock held. Sends one message; only when nothing is being written. */
void rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message);
/* Sends the only message and STATUS_OK. */
void rpc_call_reply(struct rpc_call *call, const ProtobufCMessage *message);
/* Ends the call with a status, after what is being written. */
void rpc_call_end(struct rpc_call *call, enum status status, const char *text);
void rpc_call_fail(struct rpc_call *call, const struct error *error);
/* The same for what was not admitted: RESOURCE_EXHAUSTED comes with when to try again. */
void rpc_call_refuse(struct rpc_call *call, const struct error *error);
/* Asks for the next message of a client stream, unless that was asked already. */
void rpc_call_read(struct rpc_call *call);
int64_t rpc_call_deadline(const struct rpc_call *call); /* clock_now() time */

grpc_status_code rpc_status_code(enum status status);

/* ---- rpc_unread.c ---- */

/* Around every batch that sends. */
void rpc_unread_begin(struct rpc_call *call);
void rpc_unread_over(struct rpc_call *call);
/* The pump's, with the server's lock held, which it drops meanwhile: ends the calls whose readers
 * had their time. Returns when to look again; what is begun until then lasts as long at least. */
int64_t rpc_unread_cut(struct rpc_server *server);

/* ---- rpc_work.c ---- */

enum {
    RPC_WORKERS = 2,
    RPC_LARGE = 64 << 10, /* bytes of a message from which on it is theirs: some ms of tokenizing */
    RPC_LARGEST_WAITING = 4, /* how many of the largest messages may wait for them or be in work */
};

struct rpc_work {
    pthread_t threads[RPC_WORKERS];
    int count;
    pthread_mutex_t lock; /* guards all below; nothing is locked under it */
    pthread_cond_t news;
    struct rpc_call *first, *last;
    size_t bytes, bytes_max; /* of messages in the queue and in work */
    bool stop;
};

/* False: threads or memory ran out. */
bool rpc_work_open(struct rpc_work *work, size_t bytes_max);
/* Returns when the queue is empty and its last call was answered. */
void rpc_work_close(struct rpc_work *work);
/* Errors: RESOURCE_EXHAUSTED (too many bytes wait), CANCELLED (closed). */
enum status rpc_work_add(struct rpc_work *work, struct rpc_call *call, struct error *error);

/* ---- the server: rpc_server.c ---- */

struct rpc_server {
    struct rpc_options options;
    struct rpc_model model;
    grpc_server *grpc;
    grpc_completion_queue *queue;
    pthread_t pollers[16];
    int poller_count;
    pthread_t pump;
    bool pump_running;
    struct rpc_work work;
    int64_t opened;
    char **tokens; /* copies of the bearer tokens */
    int token_count;
    pthread_mutex_t lock; /* guards all below; innermost */
    pthread_cond_t pump_work, changed;
    struct rpc_call *pump_first, *pump_last;
    struct rpc_waiter *free_waiters;
    struct rpc_call *watches;
    struct rpc_call *unread_first, *unread_last;
    int calls;     /* between arrival and the last reference */
    bool serving;  /* what health says */
    bool stopping; /* watches end; gRPC fails every call that is armed from now on */
    bool pump_stop, shut_down;
    struct rpc_tag shutdown_tag;
};

/* Any thread, with the server's lock held: has the pump look at the call. */
void rpc_server_pump_locked(struct rpc_call *call);
void rpc_server_wake(void *waiter);                        /* a request_wake */
struct rpc_waiter *rpc_waiter_take(struct rpc_call *call); /* NULL: out of memory */
void rpc_waiter_give(struct rpc_waiter *waiter);

/* ---- rpc_credentials.c ---- */

/* Binds the address: refuses by name what is unsafe or cannot be read. */
enum status rpc_bind(const struct rpc_options *options, grpc_server *server, int *port,
                     struct error *error);

/* ---- rpc_auth.c ---- */

bool rpc_authorized(const struct rpc_server *server, const grpc_metadata_array *metadata);

/* ---- rpc_health.c ---- */

/* A stream without an end of its own: pumped when the server's state changes, until its
 * rpc_call_end. Once the server stops, or the client is gone, its pump must end it. */
void rpc_watch_add(struct rpc_call *call);
void rpc_watch_forget(struct rpc_call *call);
void rpc_watch_all(struct rpc_server *server);
bool rpc_watch_over(struct rpc_call *call);

/* ---- shorthands ---- */

/* Of one message, either way. */
static inline size_t rpc_message_bytes(const struct rpc_options *options)
{
    return options->max_message_bytes ? options->max_message_bytes : (size_t)64 << 20;
}

static inline ProtobufCBinaryData rpc_text(const char *text, size_t length)
{
    return (ProtobufCBinaryData){.len = length, .data = (uint8_t *)text};
}

#endif
