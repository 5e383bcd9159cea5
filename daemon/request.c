#include "daemon/request_private.h"

#include <stdlib.h>

struct request *request_create(const struct request_spec *spec, struct arena *arena,
                               request_wake *wake, void *context)
{
    struct request *request = calloc(1, sizeof *request);
    if (request == NULL)
        return NULL;
    request->spec = *spec;
    request->arena = arena;
    atomic_init(&request->references, 1);
    outbox_open(&request->outbox, wake, context);
    return request;
}

const struct request_spec *request_spec(const struct request *request)
{
    return &request->spec;
}

void request_retain(struct request *request)
{
    atomic_fetch_add(&request->references, 1);
}

void request_release(struct request *request)
{
    if (request == NULL || atomic_fetch_sub(&request->references, 1) != 1)
        return;
    outbox_close(&request->outbox);
    arena_destroy(request->arena);
    free(request);
}

struct event *request_next(struct request *request)
{
    return outbox_take(&request->outbox);
}
