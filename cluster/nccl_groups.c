/* The communicators of the nccl fabric, from meeting to parting. */
#include <sched.h>
#include <stdlib.h>

#include "cluster/fabric_nccl.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

const char *const nccl_names[COMMS] = {"tensor", "context", "pipeline", "world", "back"};

enum status nccl_status(ncclResult_t result)
{
    if (result == ncclInvalidArgument || result == ncclInvalidUsage)
        return STATUS_INTERNAL;
    return result == ncclUnhandledCudaError ? STATUS_DEVICE : STATUS_PEER_LOST;
}

static enum status refuse(struct fabric_nccl *end, ncclResult_t result, const char *what)
{
    const char *detail = end->calls.last_error(NULL);
    log_error("NCCL: %s: %s%s%s", what, end->calls.error_string(result),
              detail != NULL && *detail != '\0' ? ": " : "", detail != NULL ? detail : "");
    return nccl_status(result);
}

enum status nccl_settle(struct fabric_nccl *end, ncclComm_t comm, ncclResult_t result,
                        int64_t until, const char *what)
{
    while (result == ncclInProgress) {
        if (nccl_is_over(end))
            return STATUS_ABORTED;
        if (until != 0 && clock_now() > until)
            return STATUS_PEER_LOST;
        sched_yield();
        ncclResult_t asked = end->calls.comm_async_error(comm, &result);
        if (asked != ncclSuccess)
            result = asked;
    }
    return result == ncclSuccess ? STATUS_OK : refuse(end, result, what);
}

/* Every group's first member makes the group's number; all ranks go through all axes. */
static enum status group_id(struct fabric_nccl *end, enum axis axis, ncclUniqueId *id)
{
    struct fabric *host = end->host;
    size_t size = (size_t)mesh_axis_size(host->mesh, axis);
    ncclUniqueId own = {{0}}, *all = calloc(size, sizeof *all);
    if (all == NULL)
        return STATUS_NO_MEMORY;
    enum status status = STATUS_OK;
    if (mesh_axis_index(host->mesh, host->rank, axis) == 0) {
        ncclResult_t result = end->calls.get_unique_id(&own);
        if (result != ncclSuccess)
            status = refuse(end, result, "a number for a group");
    }
    if (status == STATUS_OK)
        status = host->ops->all_gather(host, axis, &own, all, sizeof own);
    *id = all[0];
    free(all);
    return status;
}

static enum axis axis_of(int which)
{
    return which == COMM_BACK ? AXIS_PIPELINE : (enum axis)which;
}

static enum status group_open(struct fabric_nccl *end, int which)
{
    enum { PATIENCE = 120 };
    struct fabric *host = end->host;
    ncclUniqueId id;
    enum status status = group_id(end, axis_of(which), &id);
    if (status != STATUS_OK)
        return status;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = nccl_names[which];
    ncclResult_t result =
        end->calls.comm_init(&end->comm[which], mesh_axis_size(host->mesh, axis_of(which)), id,
                             mesh_axis_index(host->mesh, host->rank, axis_of(which)), &config);
    return nccl_settle(end, end->comm[which], result, clock_now() + PATIENCE * CLOCK_SECOND,
                       "meeting the other ranks");
}

enum status nccl_groups_open(struct fabric_nccl *end, struct error *error)
{
    bool world = true; /* the world needs one of its own */
    for (int i = 0; i < COMMS; i++) {
        int size = mesh_axis_size(end->host->mesh, axis_of(i));
        if (size == 1 || (i == AXIS_WORLD && !world))
            continue;
        world = world && size != end->core.world;
        enum status status = group_open(end, i);
        if (status != STATUS_OK)
            return error_set(error, status, "NCCL: the %d ranks of the %s group do not connect",
                             size, nccl_names[i]);
    }
    return STATUS_OK;
}

/* NCCL takes memory for a connection when it first uses it: now, before pools are sized by what is
 * free. The sizes make it use each of its algorithms. */
enum status nccl_groups_warm(struct fabric_nccl *end, struct error *error)
{
    static const size_t sizes[] = {1 << 10, 1 << 16, 1 << 20, 1 << 24};
    const struct fabric_memory *memory = &end->core.memory;
    struct fabric *fabric = &end->core.door;
    int stages = fabric->mesh.pipeline, at = fabric->at.pipeline;
    void *data = NULL;
    enum status status = memory->backend->allocate(memory->device, 1 << 24, &data);
    for (int axis = 0; axis <= AXIS_PIPELINE && status == STATUS_OK; axis++)
        for (size_t i = 0; i < 4 && status == STATUS_OK && axis != AXIS_PIPELINE; i++)
            status =
                fabric->ops->all_reduce(fabric, (enum axis)axis, data, sizes[i] / 2, DTYPE_BF16);
    /* Around the ring once: hidden rows go down, tokens from the last stage to the first. */
    if (stages > 1 && at > 0 && status == STATUS_OK)
        status = fabric->ops->receive(fabric, AXIS_PIPELINE, at - 1, data, 1 << 20);
    if (stages > 1 && status == STATUS_OK)
        status = fabric->ops->send(fabric, AXIS_PIPELINE, (at + 1) % stages, data, 1 << 20);
    if (stages > 1 && at == 0 && status == STATUS_OK)
        status = fabric->ops->receive(fabric, AXIS_PIPELINE, stages - 1, data, 1 << 20);
    if (status == STATUS_OK)
        status = memory->backend->synchronize(memory->device);
    if (data != NULL)
        memory->backend->release(memory->device, data);
    return status == STATUS_OK ? status
                               : error_set(error, status, "NCCL: the first collectives failed");
}

/* Politely where all ranks close, else by force: a peer that is gone must not hold us up. */
void nccl_groups_close(struct fabric_nccl *end)
{
    enum { PATIENCE = 10 };
    for (int i = 0; i < COMMS; i++) {
        ncclComm_t comm = end->comm[i];
        if (comm == NULL)
            continue;
        end->comm[i] = NULL;
        enum status status = nccl_is_over(end)
                                 ? STATUS_ABORTED
                                 : nccl_settle(end, comm, end->calls.comm_finalize(comm),
                                               clock_now() + PATIENCE * CLOCK_SECOND, "closing");
        if (status == STATUS_OK)
            end->calls.comm_destroy(comm);
        else
            end->calls.comm_abort(comm);
    }
}
