/* What the settings ask of a rank, in numbers: its limits, its mesh, its share of a memory; and
 * what cannot be served as asked. Pure: no device, no fabric. */
#ifndef JETD_DAEMON_CAPACITY_H
#define JETD_DAEMON_CAPACITY_H

#include "daemon/settings.h"
#include "partition/partition.h"

/* Where the ranks run. */
struct capacity_place {
    bool cuda;
    bool nccl; /* tensor ranks add over NCCL */
    int tensor;
    int head_dim; /* of the model */
};

/* With the defaults of the back end; `memory` in bytes of one rank, 0: no limit. */
struct limits capacity_limits(const struct settings *settings, bool cuda, uint64_t memory);

/* The mesh that the settings ask of `world` ranks. STATUS_CONFIG names the sizes that do not fit.
 */
enum status capacity_mesh(const struct settings *settings, int world, struct mesh *mesh,
                          struct error *error);

/* STATUS_CONFIG naming the option that this place cannot serve: blocks or heads that the
 * attention kernels do not take, or batch invariance where it would not hold. */
enum status capacity_check(const struct settings *settings, const struct capacity_place *place,
                           struct error *error);

/* What a rank may take of a GPU's memory (bytes) that `sharers` ranks have in common. */
uint64_t capacity_gpu_share(const struct settings *settings, uint64_t total, uint64_t available,
                            int sharers);

#endif
