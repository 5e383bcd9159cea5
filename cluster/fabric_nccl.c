/* Device collectives over NCCL, one communicator along each axis, enqueued on the device's stream;
 * host bytes go over the fabric it was opened on.
 *
 * NCCL adds two members' numbers as the other fabrics do: a + b in fp32, rounded once, is the same
 * whichever rank adds. From three members on it cuts an array by its size and adds each piece in an
 * order of its own: every rank gets the same bits, but they may differ from the other fabrics' and
 * with the number of rows by rounding.
 *
 * Communicators never block: what NCCL does in its own threads is polled for, so that an abort or a
 * lost rank ends the wait. A thread polls them between calls. NVLink multicast stays off. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/fabric_nccl.h"
#include "cluster/watch.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

/* ---- the door ------------------------------------------------------------------------------- */

/* The communicator of an axis; NULL where the group is this rank alone. */
static ncclComm_t comm_along(const struct fabric_nccl *end, enum axis axis)
{
    struct mesh mesh = end->core.door.mesh;
    if (axis == AXIS_WORLD && end->comm[axis] == NULL)
        for (int other = 0; other < AXIS_WORLD; other++)
            if (mesh_axis_size(mesh, (enum axis)other) == end->core.world)
                return end->comm[other];
    return end->comm[axis];
}

struct call {
    enum { CALL_REDUCE, CALL_SEND, CALL_RECEIVE } kind;
    enum axis axis;
    int peer;
    void *data;
    size_t count;
    ncclDataType_t type;
    cudaStream_t stream;
};

static ncclResult_t call_start(struct fabric_nccl *end, ncclComm_t comm, const struct call *call)
{
    switch (call->kind) {
    case CALL_REDUCE:
        return end->calls.all_reduce(call->data, call->data, call->count, call->type, ncclSum, comm,
                                     call->stream);
    case CALL_SEND:
        return end->calls.send(call->data, call->count, call->type, call->peer, comm, call->stream);
    case CALL_RECEIVE:
        return end->calls.receive(call->data, call->count, call->type, call->peer, comm,
                                  call->stream);
    }
    return ncclInvalidUsage;
}

/* Whether a transfer goes against the direction of the pipeline. */
static bool is_back(const struct fabric_nccl *end, const struct call *call)
{
    int me = end->core.door.at.pipeline;
    return call->axis == AXIS_PIPELINE && call->kind != CALL_REDUCE &&
           (call->kind == CALL_SEND ? call->peer < me : call->peer > me);
}

/* NCCL may learn of a lost rank before the watch does, but not which it is and what it was doing:
 * so the watch, whose verdict ends this process, goes first, for PATIENCE seconds at most. Between
 * hosts a closed socket tells NCCL at once. The lock is held: no call fails meanwhile. */
static void await_verdict(struct fabric_nccl *end)
{
    enum { PATIENCE = 10 };
    if (end->core.watch == NULL)
        return;
    const int64_t needed = watch_patience(end->core.watch), most = PATIENCE * CLOCK_SECOND;
    const int64_t until = clock_now() + (needed < most ? needed : most);
    while (clock_now() < until && !nccl_is_over(end) && !atomic_load(&end->closing))
        clock_sleep(CLOCK_SECOND / 50);
}

static enum status call_run(struct fabric_nccl *end, const struct call *call)
{
    static const char *const names[] = {"all-reduce", "send", "receive"};
    if (nccl_is_over(end))
        return STATUS_ABORTED;
    if (end->core.watch != NULL)
        watch_wait_begin(end->core.watch);
    pthread_mutex_lock(&end->lock);
    ncclComm_t comm = is_back(end, call) ? end->comm[COMM_BACK] : comm_along(end, call->axis);
    enum status status = STATUS_ABORTED;
    if (comm != NULL && !nccl_is_over(end)) /* again: the lock may have been long in coming */
        status = nccl_settle(end, comm, call_start(end, comm, call), 0, names[call->kind]);
    if (status == STATUS_PEER_LOST)
        await_verdict(end);
    pthread_mutex_unlock(&end->lock);
    if (end->core.watch != NULL)
        watch_wait_end(end->core.watch);
    return status;
}

static enum status nccl_all_reduce(struct fabric *fabric, enum axis axis, void *data, size_t count,
                                   enum dtype dtype)
{
    struct fabric_nccl *end = fabric_nccl(fabric);
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        return STATUS_UNIMPLEMENTED;
    if (count == 0 || mesh_axis_size(fabric->mesh, axis) == 1)
        return nccl_is_over(end) ? STATUS_ABORTED : STATUS_OK;
    return call_run(end, &(struct call){.kind = CALL_REDUCE,
                                        .axis = axis,
                                        .data = data,
                                        .count = count,
                                        .type = dtype == DTYPE_F32 ? ncclFloat32 : ncclBfloat16,
                                        .stream = end->stream});
}

static enum status point(struct fabric *fabric, enum axis axis, int index, void *data, size_t bytes,
                         bool sending, cudaStream_t stream)
{
    if (index < 0 || index >= mesh_axis_size(fabric->mesh, axis) ||
        index == mesh_axis_index(fabric->mesh, fabric->rank, axis))
        return STATUS_INTERNAL;
    if (bytes == 0)
        return nccl_is_over(fabric_nccl(fabric)) ? STATUS_ABORTED : STATUS_OK;
    return call_run(fabric_nccl(fabric), &(struct call){.kind = sending ? CALL_SEND : CALL_RECEIVE,
                                                        .axis = axis,
                                                        .peer = index,
                                                        .data = data,
                                                        .count = bytes,
                                                        .type = ncclUint8,
                                                        .stream = stream});
}

static enum status nccl_send(struct fabric *fabric, enum axis axis, int index, const void *data,
                             size_t bytes)
{
    return point(fabric, axis, index, (void *)data, bytes, true, fabric_nccl(fabric)->stream);
}

static enum status nccl_receive(struct fabric *fabric, enum axis axis, int index, void *data,
                                size_t bytes)
{
    return point(fabric, axis, index, data, bytes, false, fabric_nccl(fabric)->stream);
}

/* ---- beside the stream ---------------------------------------------------------------------- */

static enum status cuda_check(cudaError_t result, const char *what)
{
    if (result == cudaSuccess)
        return STATUS_OK;
    log_error("NCCL: %s: %s", what, cudaGetErrorString(result));
    return STATUS_DEVICE;
}

static enum status nccl_expect(struct fabric *fabric, enum axis axis,
                               const struct fabric_expected *what, unsigned *turn)
{
    struct fabric_nccl *end = fabric_nccl(fabric);
    *turn = end->turns++ % FABRIC_EXPECTED;
    cudaEvent_t before = end->before[*turn], after = end->after[*turn];
    enum status status = cuda_check(cudaEventRecord(before, end->stream), "expect");
    if (status == STATUS_OK)
        status = cuda_check(cudaStreamWaitEvent(end->aside, before, 0), "expect");
    if (status == STATUS_OK)
        status = point(fabric, axis, what->index, what->data, what->bytes, false, end->aside);
    if (status == STATUS_OK && what->host != NULL)
        status = cuda_check(cudaMemcpyAsync(what->host, (unsigned char *)what->data + what->skip,
                                            what->bytes - what->skip, cudaMemcpyDeviceToHost,
                                            end->aside),
                            "expect");
    if (status == STATUS_OK)
        status = cuda_check(cudaEventRecord(after, end->aside), "expect");
    return status;
}

static enum status nccl_arrive(struct fabric *fabric, unsigned turn)
{
    struct fabric_nccl *end = fabric_nccl(fabric);
    return cuda_check(cudaStreamWaitEvent(end->stream, end->after[turn], 0), "arrive");
}

static enum status nccl_await_turn(struct fabric *fabric, unsigned turn)
{
    return cuda_check(cudaEventSynchronize(fabric_nccl(fabric)->after[turn]), "arrive");
}

/* A failed device has arrived too: what follows says so. */
static bool nccl_arrived(struct fabric *fabric, unsigned turn)
{
    return cudaEventQuery(fabric_nccl(fabric)->after[turn]) != cudaErrorNotReady;
}

static enum status aside_open(struct fabric_nccl *end, struct error *error)
{
    cudaError_t result = cudaStreamCreateWithFlags(&end->aside, cudaStreamNonBlocking);
    for (int i = 0; i < FABRIC_EXPECTED && result == cudaSuccess; i++) {
        result = cudaEventCreateWithFlags(&end->before[i], cudaEventDisableTiming);
        if (result == cudaSuccess)
            result = cudaEventCreateWithFlags(&end->after[i], cudaEventDisableTiming);
    }
    return result == cudaSuccess
               ? STATUS_OK
               : error_set(error, STATUS_DEVICE, "NCCL: a stream: %s", cudaGetErrorString(result));
}

static void aside_close(struct fabric_nccl *end)
{
    for (int i = 0; i < FABRIC_EXPECTED; i++) {
        if (end->before[i] != NULL)
            (void)cudaEventDestroy(end->before[i]);
        if (end->after[i] != NULL)
            (void)cudaEventDestroy(end->after[i]);
    }
    if (end->aside != NULL)
        (void)cudaStreamDestroy(end->aside);
}

/* ---- over the host -------------------------------------------------------------------------- */

static enum status nccl_publish(struct fabric *fabric, const void *bytes, size_t length)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->publish(host, bytes, length);
}

static enum status nccl_await(struct fabric *fabric, void *bytes, size_t room, size_t *length)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->await(host, bytes, room, length);
}

static enum status nccl_all_gather(struct fabric *fabric, enum axis axis, const void *in, void *out,
                                   size_t bytes)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->all_gather(host, axis, in, out, bytes);
}

static enum status nccl_send_host(struct fabric *fabric, enum axis axis, int index,
                                  const void *data, size_t bytes)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->send_host(host, axis, index, data, bytes);
}

static enum status nccl_receive_host(struct fabric *fabric, enum axis axis, int index, void *data,
                                     size_t bytes)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->receive_host(host, axis, index, data, bytes);
}

static enum status nccl_barrier(struct fabric *fabric)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    return host->ops->barrier(host);
}

static void nccl_abort(struct fabric *fabric, enum status status, const char *why)
{
    struct fabric_nccl *end = fabric_nccl(fabric);
    end->host->ops->abort(end->host, status, why); /* over mpi does not return */
    atomic_store(&end->failed, true);
}

/* ---- failures between calls ----------------------------------------------------------------- */

/* The communicator that failed, COMMS: none. */
static int comm_failed(struct fabric_nccl *end, ncclResult_t *result)
{
    for (int i = 0; i < COMMS; i++) {
        if (end->comm[i] == NULL)
            continue;
        ncclResult_t asked = end->calls.comm_async_error(end->comm[i], result);
        if (asked != ncclSuccess)
            *result = asked;
        if (*result != ncclSuccess && *result != ncclInProgress)
            return i;
    }
    return COMMS;
}

/* Ends the job, and with this process the kernels that wait for a lost rank. Not by ncclCommAbort:
 * it would let them end with partial sums, from which tokens could be made, and it waits for every
 * recording that holds a collective to be freed, which a rank in a step cannot promise. */
static void fail(struct fabric_nccl *end, int which, ncclResult_t result)
{
    char why[256];
    if (nccl_status(result) == STATUS_PEER_LOST)
        await_verdict(end);
    if (nccl_is_over(end) || atomic_load(&end->closing))
        return;
    snprintf(why, sizeof why, "rank %d: NCCL: the %s group failed: %s", end->core.door.rank,
             nccl_names[which], end->calls.error_string(result));
    atomic_store(&end->failed, true);
    end->host->ops->abort(end->host, STATUS_PEER_LOST, why);
}

static void *poll_main(void *context)
{
    struct fabric_nccl *end = context;
    while (!atomic_load(&end->closing) && !nccl_is_over(end)) {
        clock_sleep(CLOCK_SECOND / 20);
        if (pthread_mutex_trylock(&end->lock) != 0)
            continue; /* a call is under way and looks for itself */
        ncclResult_t result = ncclSuccess;
        int which = comm_failed(end, &result);
        if (which < COMMS)
            fail(end, which, result);
        pthread_mutex_unlock(&end->lock);
    }
    return NULL;
}

/* ---- opening and closing -------------------------------------------------------------------- */

static void end_free(struct fabric_nccl *end)
{
    if (end->polling) {
        atomic_store(&end->closing, true);
        pthread_join(end->poller, NULL);
    }
    nccl_groups_close(end);
    aside_close(end);
    pthread_mutex_destroy(&end->lock);
    fabric_core_close(&end->core);
    free(end);
}

static void nccl_close(struct fabric *fabric)
{
    struct fabric *host = fabric_nccl(fabric)->host;
    end_free(fabric_nccl(fabric));
    fabric_close(host);
}

static const struct fabric_ops nccl_ops = {
    .name = "nccl",
    .close = nccl_close,
    .publish = nccl_publish,
    .await = nccl_await,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .send = nccl_send,
    .receive = nccl_receive,
    .send_host = nccl_send_host,
    .receive_host = nccl_receive_host,
    .expect = nccl_expect,
    .arrive = nccl_arrive,
    .await_turn = nccl_await_turn,
    .arrived = nccl_arrived,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
};

static enum status check(struct fabric *host, const struct fabric_memory *memory,
                         struct error *error)
{
    const struct backend *backend = memory != NULL ? memory->backend : NULL;
    if (backend == NULL || backend->stream == NULL || backend->identity == NULL)
        return error_set(error, STATUS_CONFIG, "NCCL needs the device cuda, this is %s",
                         backend != NULL ? backend->name : "none");
    bool distinct = false;
    enum status status = fabric_devices_distinct(host, memory, &distinct);
    if (status != STATUS_OK)
        return error_set(error, status, "the ranks could not compare their devices");
    if (!distinct)
        return error_set(error, STATUS_CONFIG,
                         "NCCL needs a GPU for each rank, but some ranks share one");
    return STATUS_OK;
}

/* The host fabric's watch and abort are this fabric's too. */
static enum status end_open(struct fabric_nccl *end, struct fabric *host,
                            const struct fabric_memory *memory, struct error *error)
{
    struct fabric_options options = {.mesh = host->mesh};
    enum status status = fabric_core_open(&end->core, &options, host->rank, &nccl_ops, NULL, error);
    if (status != STATUS_OK)
        return status;
    end->core.door.streamed = true;
    end->core.watch = fabric_core(host)->watch;
    end->core.aborted = fabric_core(host)->aborted;
    end->core.memory = *memory;
    end->host = host;
    end->stream = memory->backend->stream(memory->device);
    status = memory->backend->synchronize(memory->device); /* its GPU is now this thread's */
    if (status != STATUS_OK)
        return error_set(error, status, "NCCL: the device does not answer");
    return aside_open(end, error);
}

enum status fabric_open_nccl(struct fabric *host, const struct fabric_memory *memory,
                             struct fabric **fabric, struct error *error)
{
    enum status status = check(host, memory, error);
    if (status != STATUS_OK)
        return status;
    struct fabric_nccl *end = calloc(1, sizeof *end);
    if (end == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric");
    pthread_mutex_init(&end->lock, NULL);
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    status = nccl_calls_load(&end->calls, error);
    if (status == STATUS_OK)
        status = end_open(end, host, memory, error);
    if (status == STATUS_OK)
        status = nccl_groups_open(end, error);
    if (status == STATUS_OK)
        status = nccl_groups_warm(end, error);
    if (status == STATUS_OK) {
        end->polling = pthread_create(&end->poller, NULL, poll_main, end) == 0;
        if (!end->polling)
            status = error_set(error, STATUS_NO_MEMORY, "no thread to watch NCCL with");
    }
    if (status != STATUS_OK) {
        atomic_store(&end->failed, true);
        end_free(end);
        return status;
    }
    *fabric = &end->core.door;
    return STATUS_OK;
}
