/* GPUs for tests over NCCL: one a rank, or, where there are fewer and all ranks are on this host,
 * shared ones. NCCL refuses two ranks on one GPU of a host, so each then says that its host and its
 * GPU are others (NCCL_HOSTID): NCCL takes its way between hosts, sockets and its kernels, in all
 * but speed as on two machines. */
#ifndef JETD_TESTS_CLUSTER_NCCL_DEVICE_H
#define JETD_TESTS_CLUSTER_NCCL_DEVICE_H

#include <stdbool.h>

#include "kernels/kernels.h"

/* The cuda table for this rank, and which accelerator to open; NULL: there is none, or too few
 * among several hosts. *shared: others have it too. Before NCCL starts. */
const struct backend *nccl_device(int *ordinal, bool *shared);

#endif
