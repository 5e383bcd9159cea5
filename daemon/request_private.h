/* What a request is inside daemon/: for request.c and the engine's files only. */
#ifndef JETD_DAEMON_REQUEST_PRIVATE_H
#define JETD_DAEMON_REQUEST_PRIVATE_H

#include <stdatomic.h>

#include "daemon/outbox.h"

struct job; /* the engine's part: engine_private.h */

struct request {
    struct request_spec spec;
    struct arena *arena;
    atomic_int references;
    struct outbox outbox;
    /* Guarded by the engine's mutex. */
    struct job *job; /* from engine_submit until the last event, else NULL */
    bool submitted;  /* once: a request is used for one submit */
    bool cancelled;  /* waits in the list of cancels, or did */
    struct request *submitted_next, *cancelled_next, *same_bucket;
};

#endif
