/* Readers that take nothing: messages are written one at a time, and one that its reader has not
 * taken for `unread_timeout` ends its call. Patience is the same for all, so the list is in the
 * order in which it runs out. */
#include "daemon/rpc_private.h"

static const char TOO_SLOW[] = "the reader did not take its messages in time";

static int64_t patience_of(const struct rpc_server *server)
{
    double seconds = server->options.unread_timeout;
    return (int64_t)((seconds > 0 ? seconds : 60) * (double)CLOCK_SECOND);
}

void rpc_unread_begin(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    int64_t until = clock_now() + patience_of(server);
    pthread_mutex_lock(&server->lock);
    call->unread_until = until;
    call->next_unread = NULL;
    call->previous_unread = server->unread_last;
    *(server->unread_last ? &server->unread_last->next_unread : &server->unread_first) = call;
    server->unread_last = call;
    pthread_mutex_unlock(&server->lock);
}

static void forget(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    struct rpc_call *next = call->next_unread, *previous = call->previous_unread;
    *(previous ? &previous->next_unread : &server->unread_first) = next;
    *(next ? &next->previous_unread : &server->unread_last) = previous;
    call->unread_until = 0;
}

void rpc_unread_over(struct rpc_call *call)
{
    pthread_mutex_lock(&call->server->lock);
    if (call->unread_until)
        forget(call);
    pthread_mutex_unlock(&call->server->lock);
}

int64_t rpc_unread_cut(struct rpc_server *server)
{
    int64_t now = clock_now();
    struct rpc_call *call;
    while ((call = server->unread_first) && call->unread_until <= now) {
        forget(call);
        rpc_call_retain(call);
        pthread_mutex_unlock(&server->lock);
        grpc_call_cancel_with_status(call->call, GRPC_STATUS_RESOURCE_EXHAUSTED, TOO_SLOW, NULL);
        rpc_call_release(call);
        pthread_mutex_lock(&server->lock);
    }
    return call ? call->unread_until : now + patience_of(server);
}
