/* Large requests: unpacked, turned into tokens and submitted by threads of their own, oldest first.
 * That can take seconds, and a poller that is away for seconds would leave every other call, health
 * included, without an answer. What the threads have not done yet is bounded in bytes. */
#include "daemon/rpc_private.h"

static struct rpc_call *work_take(struct rpc_work *work)
{
    pthread_mutex_lock(&work->lock);
    while (!work->first && !work->stop)
        pthread_cond_wait(&work->news, &work->lock);
    struct rpc_call *call = work->first;
    if (call)
        work->first = call->next_work;
    pthread_mutex_unlock(&work->lock);
    return call;
}

static void *work_run(void *context)
{
    struct rpc_work *work = context;
    struct rpc_call *call;
    while ((call = work_take(work))) {
        size_t bytes = grpc_byte_buffer_length(call->payload);
        rpc_call_begin(call);
        pthread_mutex_lock(&work->lock);
        work->bytes -= bytes;
        pthread_mutex_unlock(&work->lock);
    }
    return NULL;
}

bool rpc_work_open(struct rpc_work *work, size_t bytes_max)
{
    work->bytes_max = bytes_max;
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->news, NULL);
    while (work->count < RPC_WORKERS &&
           pthread_create(&work->threads[work->count], NULL, work_run, work) == 0)
        work->count++;
    return work->count == RPC_WORKERS;
}

void rpc_work_close(struct rpc_work *work)
{
    if (work->count == 0)
        return;
    pthread_mutex_lock(&work->lock);
    work->stop = true;
    pthread_cond_broadcast(&work->news);
    pthread_mutex_unlock(&work->lock);
    for (int i = 0; i < work->count; i++)
        pthread_join(work->threads[i], NULL);
}

enum status rpc_work_add(struct rpc_work *work, struct rpc_call *call, struct error *error)
{
    size_t bytes = grpc_byte_buffer_length(call->payload);
    enum status status = STATUS_OK;
    call->next_work = NULL;
    pthread_mutex_lock(&work->lock);
    if (work->stop) {
        status = error_set(error, STATUS_CANCELLED, "the server stops");
    } else if (bytes > work->bytes_max - work->bytes) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED,
                           "%zu bytes of large requests wait to be read", work->bytes);
    } else {
        work->bytes += bytes;
        rpc_call_retain(call);
        *(work->first ? &work->last->next_work : &work->first) = call;
        work->last = call;
        pthread_cond_signal(&work->news);
    }
    pthread_mutex_unlock(&work->lock);
    return status;
}
