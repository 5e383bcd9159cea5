/* One rank: every collective is the identity, nobody to publish to. Its watch judges it alone: a
 * device that hangs must not keep requests waiting for ever. */
#include <stdlib.h>
#include <unistd.h>

#include "cluster/fabric.h"
#include "cluster/watch.h"
#include "daemon/base/log.h"

static void self_close(struct fabric *fabric)
{
    watch_close(fabric_core(fabric)->watch);
    fabric_core_close(fabric_core(fabric));
    free(fabric);
}

/* There is nobody to tell: whoever aborts has the failure to pass up. */
static void self_abort(struct fabric *fabric, enum status status, const char *why)
{
    (void)status;
    (void)why;
    atomic_store(fabric_core(fabric)->aborted, true);
}

static void self_announce(void *context, const char *why)
{
    struct fabric_core *core = context;
    if (!atomic_exchange(core->aborted, true))
        log_error("%s", why);
}

/* What the rank is stuck in cannot be undone. */
static void self_end(void *context)
{
    (void)context;
    _exit(status_exit_code(STATUS_PEER_LOST));
}

static const struct fabric_ops self_ops = {
    .name = "self",
    .close = self_close,
    COLLECTIVE_OPS,
    .abort = self_abort,
};

enum status fabric_open_self(const struct fabric_options *options, struct fabric **fabric,
                             struct error *error)
{
    if (mesh_size(options->mesh) != 1)
        return error_set(error, STATUS_CONFIG, "one rank alone, but a mesh of %d ranks",
                         mesh_size(options->mesh));
    struct fabric_core *core = calloc(1, sizeof *core);
    if (core == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric");
    const struct watch_link link = {.context = core, .announce = self_announce, .end = self_end};
    enum status status = fabric_core_open(core, options, 0, &self_ops, NULL, error);
    if (status == STATUS_OK)
        status = watch_open(options, 0, 1, &link, &core->watch, error);
    if (status != STATUS_OK) {
        self_close(&core->door);
        return status;
    }
    *fabric = &core->door;
    return STATUS_OK;
}
