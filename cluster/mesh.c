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

int mesh_rank(struct mesh mesh, struct coordinates at)
{
    return (at.pipeline * mesh.context + at.context) * mesh.tensor + at.tensor;
}

struct coordinates mesh_coordinates(struct mesh mesh, int rank)
{
    return (struct coordinates){
        .tensor = rank % mesh.tensor,
        .context = rank / mesh.tensor % mesh.context,
        .pipeline = rank / mesh.tensor / mesh.context,
    };
}

int mesh_axis_size(struct mesh mesh, enum axis axis)
{
    switch (axis) {
    case AXIS_TENSOR:
        return mesh.tensor;
    case AXIS_CONTEXT:
        return mesh.context;
    case AXIS_PIPELINE:
        return mesh.pipeline;
    case AXIS_WORLD:
        break;
    }
    return mesh_size(mesh);
}

int mesh_axis_index(struct mesh mesh, int rank, enum axis axis)
{
    struct coordinates at = mesh_coordinates(mesh, rank);
    switch (axis) {
    case AXIS_TENSOR:
        return at.tensor;
    case AXIS_CONTEXT:
        return at.context;
    case AXIS_PIPELINE:
        return at.pipeline;
    case AXIS_WORLD:
        break;
    }
    return rank;
}

int mesh_axis_member(struct mesh mesh, int rank, enum axis axis, int index)
{
    struct coordinates at = mesh_coordinates(mesh, rank);
    switch (axis) {
    case AXIS_TENSOR:
        at.tensor = index;
        break;
    case AXIS_CONTEXT:
        at.context = index;
        break;
    case AXIS_PIPELINE:
        at.pipeline = index;
        break;
    case AXIS_WORLD:
        return index;
    }
    return mesh_rank(mesh, at);
}
