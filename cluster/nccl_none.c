/* In place of fabric_nccl.c in a build without CUDA, or without nccl.h. */
#include "cluster/cluster.h"

enum status fabric_open_nccl(struct fabric *host, const struct fabric_memory *memory,
                             struct fabric **fabric, struct error *error)
{
    (void)host;
    (void)memory;
    (void)fabric;
    return error_set(error, STATUS_CONFIG,
                     "this build of jetd has no NCCL: --fabric mpi stages through host memory");
}
