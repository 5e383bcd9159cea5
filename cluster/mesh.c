#include "cluster/cluster.h"

enum { RANKS_MAX = 4096 };

int mesh_size(struct mesh mesh)
{
    int64_t size = 1;
    const int axes[] = {mesh.tensor, mesh.context, mesh.pipeline};
    for (int i = 0; i < 3; i++) {
        if (axes[i] < 1 || axes[i] > RANKS_MAX)
            return 0;
        size *= axes[i];
    }
    return size > RANKS_MAX ? 0 : (int)size;
}
