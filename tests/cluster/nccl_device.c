#include "tests/cluster/nccl_device.h"

#include <stdio.h>
#include <stdlib.h>

#include "cluster/cluster.h"

static int own_rank;

static enum status own_identity(struct device *device, unsigned char id[16])
{
    enum status status = backend_find("cuda")->identity(device, id);
    id[15] ^= (unsigned char)(own_rank + 1);
    return status;
}

const struct backend *nccl_device(int *ordinal, bool *shared)
{
    static struct backend table;
    int size, rank, local, devices, beside;
    const char *on_this_host = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    char host[32];
    launcher_world(&size, &rank, &local);
    table = *backend_find("cuda");
    devices = table.devices != NULL ? table.devices() : 0;
    *ordinal = devices > 0 ? local % devices : 0;
    beside = on_this_host != NULL ? atoi(on_this_host) : size;
    *shared = devices < beside;
    if (devices == 0 || (*shared && beside < size))
        return NULL;
    if (!*shared)
        return backend_find("cuda");
    own_rank = rank;
    table.identity = own_identity;
    snprintf(host, sizeof host, "rank %d", rank);
    setenv("NCCL_HOSTID", host, 1);
    setenv("NCCL_NET", "Socket", 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 1);
    setenv("NCCL_MNNVL_ENABLE", "0", 1);
    return &table;
}
