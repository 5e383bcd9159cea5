#include "cluster/nccl_calls.h"

#include <dlfcn.h>
#include <string.h>

struct wanted {
    const char *name;
    size_t at;
};

static const struct wanted wanted[] = {
    {"ncclGetVersion", offsetof(struct nccl_calls, get_version)},
    {"ncclGetUniqueId", offsetof(struct nccl_calls, get_unique_id)},
    {"ncclCommInitRankConfig", offsetof(struct nccl_calls, comm_init)},
    {"ncclCommFinalize", offsetof(struct nccl_calls, comm_finalize)},
    {"ncclCommDestroy", offsetof(struct nccl_calls, comm_destroy)},
    {"ncclCommAbort", offsetof(struct nccl_calls, comm_abort)},
    {"ncclCommGetAsyncError", offsetof(struct nccl_calls, comm_async_error)},
    {"ncclAllReduce", offsetof(struct nccl_calls, all_reduce)},
    {"ncclSend", offsetof(struct nccl_calls, send)},
    {"ncclRecv", offsetof(struct nccl_calls, receive)},
    {"ncclGetErrorString", offsetof(struct nccl_calls, error_string)},
    {"ncclGetLastError", offsetof(struct nccl_calls, last_error)},
};

static void *library_open(void)
{
    static const char *const names[] = {"libnccl.so.2", "libnccl.so",
                                        "/usr/local/cuda/lib64/libnccl.so.2"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

enum status nccl_calls_load(struct nccl_calls *calls, struct error *error)
{
    void *library = library_open();
    if (library == NULL)
        return error_set(error, STATUS_CONFIG, "NCCL: libnccl.so.2 could not be loaded: %s",
                         dlerror());
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL)
            return error_set(error, STATUS_CONFIG, "NCCL: libnccl.so.2 has no %s", wanted[i].name);
        /* C has no cast from an object's address to a function's. */
        memcpy((unsigned char *)calls + wanted[i].at, &found, sizeof found);
    }
    /* ncclConfig_t grows with versions, and a library knows those before it. */
    int version = 0;
    if (calls->get_version(&version) != ncclSuccess || version / 100 < NCCL_VERSION_CODE / 100)
        return error_set(error, STATUS_CONFIG,
                         "NCCL: libnccl.so.2 is version %d.%d.%d, this build needs %d.%d or newer",
                         version / 10000, version / 100 % 100, version % 100, NCCL_MAJOR,
                         NCCL_MINOR);
    return STATUS_OK;
}
