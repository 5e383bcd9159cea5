#include "cluster/fabric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/watch.h"
#include "daemon/base/checked.h"

enum status fabric_core_open(struct fabric_core *core, const struct fabric_options *options,
                             int rank, const struct fabric_ops *ops,
                             const struct transport *transport, struct error *error)
{
    struct mesh mesh = options->mesh;
    core->world = mesh_size(mesh);
    if (core->world == 0)
        return error_set(error, STATUS_CONFIG,
                         "a mesh of %d (tensor) x %d (context) x %d (pipeline) is not possible",
                         mesh.tensor, mesh.context, mesh.pipeline);
    core->door =
        (struct fabric){.ops = ops, .mesh = mesh, .rank = rank, .at = mesh_coordinates(mesh, rank)};
    core->transport = transport;
    atomic_init(&core->own_aborted, false);
    core->aborted = &core->own_aborted;
    size_t world = (size_t)core->world;
    core->sends = calloc(world, sizeof *core->sends);
    core->receives = calloc(world, sizeof *core->receives);
    core->pieces = calloc(world, sizeof *core->pieces);
    /* Not touched until used: a member's slice costs memory only in groups that are that large. */
    core->staging = malloc(world * SLICE_BYTES);
    if (core->sends == NULL || core->receives == NULL || core->pieces == NULL ||
        core->staging == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric of %d ranks",
                         core->world);
    return STATUS_OK;
}

void fabric_core_close(struct fabric_core *core)
{
    free(core->bounce);
    free(core->staging);
    free(core->pieces);
    free(core->receives);
    free(core->sends);
}

void fabric_close(struct fabric *fabric)
{
    if (fabric != NULL)
        fabric->ops->close(fabric);
}

enum status fabric_attach(struct fabric *fabric, const struct fabric_memory *memory)
{
    struct fabric_core *core = fabric_core(fabric);
    core->memory = *memory;
    core->staged = memory->backend != NULL && strcmp(memory->backend->name, "cpu") != 0;
    if (core->staged && core->bounce == NULL) {
        core->bounce = malloc((size_t)core->world * SLICE_BYTES);
        if (core->bounce == NULL)
            return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

void fabric_step_begin(struct fabric *fabric, uint64_t step)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_step_begin(core->watch, step);
}

void fabric_step_end(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_step_end(core->watch);
}

void fabric_wait_begin(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_wait_begin(core->watch);
}

void fabric_wait_end(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_device_wait_end(core->watch);
}

void fabric_load_mark(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_load_mark(core->watch);
}

void fabric_load_end(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_load_end(core->watch);
}

void fabric_limit_steps(struct fabric *fabric, double seconds)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->watch != NULL)
        watch_limit_steps(core->watch, seconds);
}

/* "1, 3 and more" of the ranks whose digest is not rank 0's. */
static int name_differing(const unsigned char *digests, size_t bytes, int world, char *text,
                          size_t room)
{
    int differing = 0;
    size_t used = 0;
    for (int rank = 1; rank < world; rank++) {
        if (memcmp(digests, digests + (size_t)rank * bytes, bytes) == 0)
            continue;
        if (used + 16 < room)
            used += (size_t)snprintf(text + used, room - used, "%s%d", differing ? ", " : "", rank);
        differing++;
    }
    return differing;
}

enum status fabric_agree(struct fabric *fabric, const void *digest, size_t bytes, const char *what,
                         struct error *error)
{
    int world = mesh_size(fabric->mesh);
    uint64_t room;
    if (!checked_multiply(bytes, (uint64_t)world, &room))
        return error_set(error, STATUS_INTERNAL, "a digest of %zu bytes", bytes);
    unsigned char *digests = malloc(room + 1);
    if (digests == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory to compare %s over %d ranks", what,
                         world);
    enum status status = fabric->ops->all_gather(fabric, AXIS_WORLD, digest, digests, bytes);
    if (status != STATUS_OK) {
        error_set(error, status, "comparing %s between ranks: %s", what, status_name(status));
        goto free_digests;
    }
    char ranks[256];
    int differing = name_differing(digests, bytes, world, ranks, sizeof ranks);
    if (differing > 0)
        status = error_set(error, STATUS_PEER_MISMATCH, "%s of rank%s %s differs from rank 0's",
                           what, differing > 1 ? "s" : "", ranks);
free_digests:
    free(digests);
    return status;
}

enum { IDENTITY_BYTES = 16 };

static const unsigned char identity_none[IDENTITY_BYTES];

/* *all: every rank's accelerator, zeros where there is none; the caller frees it. */
static enum status gather_identities(struct fabric *fabric, const struct fabric_memory *memory,
                                     unsigned char (**all)[IDENTITY_BYTES])
{
    unsigned char own[IDENTITY_BYTES] = {0};
    *all = calloc((size_t)mesh_size(fabric->mesh), sizeof **all);
    if (*all == NULL)
        return STATUS_NO_MEMORY;
    enum status status = STATUS_OK;
    if (memory->backend->identity != NULL)
        status = memory->backend->identity(memory->device, own);
    if (status == STATUS_OK)
        status = fabric->ops->all_gather(fabric, AXIS_WORLD, own, *all, IDENTITY_BYTES);
    return status;
}

static int count_sharers(unsigned char (*all)[IDENTITY_BYTES], int world, int rank)
{
    int sharers = 0;
    for (int i = 0; i < world; i++)
        sharers += memcmp(all[i], all[rank], IDENTITY_BYTES) == 0;
    return sharers;
}

enum status fabric_devices_distinct(struct fabric *fabric, const struct fabric_memory *memory,
                                    bool *distinct)
{
    unsigned char(*all)[IDENTITY_BYTES];
    int world = mesh_size(fabric->mesh);
    enum status status = gather_identities(fabric, memory, &all);
    *distinct = status == STATUS_OK;
    for (int i = 0; i < world && *distinct; i++)
        *distinct =
            memcmp(all[i], identity_none, IDENTITY_BYTES) != 0 && count_sharers(all, world, i) == 1;
    free(all);
    return status;
}

enum status fabric_device_sharers(struct fabric *fabric, const struct fabric_memory *memory,
                                  int *sharers)
{
    unsigned char(*all)[IDENTITY_BYTES];
    int world = mesh_size(fabric->mesh), rank = fabric->rank;
    enum status status = gather_identities(fabric, memory, &all);
    if (status == STATUS_OK)
        *sharers = memcmp(all[rank], identity_none, IDENTITY_BYTES) == 0
                       ? 1
                       : count_sharers(all, world, rank);
    free(all);
    return status;
}
