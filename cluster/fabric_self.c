/* One rank: every collective is the identity, nobody to publish to. */
#include <stdlib.h>

#include "cluster/fabric.h"
#include "daemon/base/log.h"

static void self_close(struct fabric *fabric)
{
    fabric_core_close(fabric_core(fabric));
    free(fabric);
}

static void self_abort(struct fabric *fabric, enum status status, const char *why)
{
    (void)status;
    if (!atomic_exchange(fabric_core(fabric)->aborted, true))
        log_error("%s", why);
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
    enum status status = fabric_core_open(core, options, 0, &self_ops, NULL, error);
    if (status != STATUS_OK) {
        self_close(&core->door);
        return status;
    }
    *fabric = &core->door;
    return STATUS_OK;
}
