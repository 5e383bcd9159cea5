/* Private to fabric_nccl.c. NCCL found at run time, so that the same program starts on machines
 * without it. */
#ifndef JETD_CLUSTER_NCCL_CALLS_H
#define JETD_CLUSTER_NCCL_CALLS_H

#include <nccl.h>

#include "daemon/base/status.h"

struct nccl_calls {
    ncclResult_t (*get_version)(int *version);
    ncclResult_t (*get_unique_id)(ncclUniqueId *id);
    ncclResult_t (*comm_init)(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                              ncclConfig_t *config);
    ncclResult_t (*comm_finalize)(ncclComm_t comm);
    ncclResult_t (*comm_destroy)(ncclComm_t comm);
    ncclResult_t (*comm_abort)(ncclComm_t comm);
    ncclResult_t (*comm_async_error)(ncclComm_t comm, ncclResult_t *error);
    ncclResult_t (*all_reduce)(const void *in, void *out, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
    ncclResult_t (*send)(const void *data, size_t count, ncclDataType_t type, int peer,
                         ncclComm_t comm, cudaStream_t stream);
    ncclResult_t (*receive)(void *data, size_t count, ncclDataType_t type, int peer,
                            ncclComm_t comm, cudaStream_t stream);
    const char *(*error_string)(ncclResult_t result);
    const char *(*last_error)(ncclComm_t comm);
};

/* Errors: STATUS_CONFIG naming the library, or its version where it is older than the header's. */
enum status nccl_calls_load(struct nccl_calls *calls, struct error *error);

#endif
