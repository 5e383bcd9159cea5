/* The outbox of a request: events from the engine's thread (the only producer) to its front end
 * (the only consumer), counted in bytes. It never refuses; the engine looks at the bytes and pauses
 * the request's sequences instead. */
#ifndef JETD_DAEMON_OUTBOX_H
#define JETD_DAEMON_OUTBOX_H

#include <pthread.h>
#include <stdbool.h>

#include "daemon/request.h"

/* Told once, from the consumer's thread, that a watched outbox was emptied to its mark. Called with
 * the outbox locked: it must not come back to it. */
typedef void outbox_drained(void *context);

struct outbox {
    pthread_mutex_t mutex;
    struct event *first, *last;
    struct event **last_link; /* what points at `last` */
    size_t bytes;
    request_wake *wake;
    void *wake_context;
    outbox_drained *drained; /* NULL: nobody watches */
    void *drained_context;
    size_t mark;
};

void outbox_open(struct outbox *outbox, request_wake *wake, void *context);
void outbox_close(struct outbox *outbox); /* frees what is left in it */
/* Takes the event over; merges consecutive deltas of a choice that the reader has not taken. */
void outbox_push(struct outbox *outbox, struct event *event);
struct event *outbox_take(struct outbox *outbox); /* NULL: empty */
size_t outbox_bytes(struct outbox *outbox);
/* `drained` is called when no more than `mark` bytes are left; false: that is so already. */
bool outbox_watch(struct outbox *outbox, size_t mark, outbox_drained *drained, void *context);
void outbox_unwatch(struct outbox *outbox);

#endif
