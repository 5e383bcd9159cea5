/* The collectives, over any transport. Members of a group are added in group order, element by
 * element, whatever the size and the way the data is cut: the sum of an element depends on nothing
 * but its addends. */
#include <string.h>

#include "cluster/fabric.h"
#include "cluster/sum.h"
#include "cluster/watch.h"

struct group {
    enum axis axis;
    int size, me;
};

static struct group group_along(const struct fabric_core *core, enum axis axis)
{
    return (struct group){
        .axis = axis,
        .size = mesh_axis_size(core->door.mesh, axis),
        .me = mesh_axis_index(core->door.mesh, core->door.rank, axis),
    };
}

static int group_rank(const struct fabric_core *core, struct group group, int index)
{
    return mesh_axis_member(core->door.mesh, core->door.rank, group.axis, index);
}

static enum status alive(struct fabric_core *core)
{
    return atomic_load(core->aborted) ? STATUS_ABORTED : STATUS_OK;
}

static enum status exchange(struct fabric_core *core, int tag, int sends, int receives)
{
    if (core->watch != NULL)
        watch_wait_begin(core->watch);
    enum status status =
        core->transport->exchange(core, tag, core->sends, sends, core->receives, receives);
    if (core->watch != NULL)
        watch_wait_end(core->watch);
    return status;
}

/* Every member shows its `bytes` at `in` to all others; member i's arrive at out + i * stride. */
static enum status show_all(struct fabric_core *core, struct group group, const void *in,
                            unsigned char *out, size_t stride, size_t bytes)
{
    int peers = 0;
    for (int i = 0; i < group.size; i++) {
        if (i == group.me)
            continue;
        int peer = group_rank(core, group, i);
        core->sends[peers] = (struct transfer){peer, (void *)in, bytes};
        core->receives[peers++] = (struct transfer){peer, out + (size_t)i * stride, bytes};
    }
    return exchange(core, transfer_tag(group.axis, TRANSFER_COLLECTIVE), peers, peers);
}

/* First of `count` elements that member `index` adds up. */
static size_t slice_at(size_t count, struct group group, int index)
{
    return count * (size_t)index / (size_t)group.size;
}

static void add_up(struct fabric_core *core, struct group group, void *mine, size_t count,
                   enum dtype dtype)
{
    for (int i = 0; i < group.size; i++)
        core->pieces[i] = i == group.me ? mine : core->staging + (size_t)i * SLICE_BYTES;
    sum_in_order(dtype, core->pieces, group.size, count, mine);
}

/* At most SLICE_BYTES: everyone adds everything. One round. */
static enum status reduce_whole(struct fabric_core *core, struct group group, unsigned char *data,
                                size_t count, enum dtype dtype)
{
    enum status status =
        show_all(core, group, data, core->staging, SLICE_BYTES, count * dtype_size(dtype));
    if (status == STATUS_OK)
        add_up(core, group, data, count, dtype);
    return status;
}

/* At most size * SLICE_BYTES: each adds one slice and shows the sum. Two rounds, fewer bytes. */
static enum status reduce_sliced(struct fabric_core *core, struct group group, unsigned char *data,
                                 size_t count, enum dtype dtype)
{
    size_t width = dtype_size(dtype);
    size_t mine = slice_at(count, group, group.me);
    size_t my_count = slice_at(count, group, group.me + 1) - mine;
    int tag = transfer_tag(group.axis, TRANSFER_COLLECTIVE), peers = 0;
    for (int i = 0; i < group.size; i++) {
        if (i == group.me)
            continue;
        int peer = group_rank(core, group, i);
        size_t at = slice_at(count, group, i), end = slice_at(count, group, i + 1);
        core->sends[peers] = (struct transfer){peer, data + at * width, (end - at) * width};
        core->receives[peers++] =
            (struct transfer){peer, core->staging + (size_t)i * SLICE_BYTES, my_count * width};
    }
    enum status status = exchange(core, tag, peers, peers);
    if (status != STATUS_OK)
        return status;
    add_up(core, group, data + mine * width, my_count, dtype);
    for (int i = 0; i < peers; i++) { /* back the way they came */
        struct transfer slice = core->sends[i];
        core->sends[i] = (struct transfer){slice.peer, data + mine * width, my_count * width};
        core->receives[i] = slice;
    }
    return exchange(core, tag, peers, peers);
}

/* The most bytes that one round may take: what staging holds, a multiple of any element. */
static size_t round_bytes(struct group group)
{
    return (size_t)group.size * SLICE_BYTES / 2;
}

static enum status reduce_host(struct fabric_core *core, struct group group, unsigned char *data,
                               size_t count, enum dtype dtype)
{
    enum { WHOLE_BYTES = 32 * 1024 }; /* up to here a second round costs more than bytes do */
    size_t width = dtype_size(dtype), most = round_bytes(group) / width;
    for (size_t at = 0; at < count;) {
        size_t some = count - at < most ? count - at : most;
        bool whole = some * width <= WHOLE_BYTES || group.size == 2;
        enum status status = whole ? reduce_whole(core, group, data + at * width, some, dtype)
                                   : reduce_sliced(core, group, data + at * width, some, dtype);
        if (status != STATUS_OK)
            return status;
        at += some;
    }
    return STATUS_OK;
}

static enum status reduce_staged(struct fabric_core *core, struct group group, unsigned char *data,
                                 size_t count, enum dtype dtype)
{
    const struct backend *backend = core->memory.backend;
    struct device *device = core->memory.device;
    size_t width = dtype_size(dtype), most = round_bytes(group) / width;
    for (size_t at = 0; at < count;) {
        size_t some = count - at < most ? count - at : most;
        void *there = data + at * width;
        enum status status = backend->download(device, core->bounce, there, some * width);
        if (status == STATUS_OK)
            status = reduce_host(core, group, core->bounce, some, dtype);
        if (status == STATUS_OK)
            status = backend->upload(device, there, core->bounce, some * width);
        if (status != STATUS_OK)
            return status;
        at += some;
    }
    return STATUS_OK;
}

enum status collective_all_reduce(struct fabric *fabric, enum axis axis, void *data, size_t count,
                                  enum dtype dtype)
{
    struct fabric_core *core = fabric_core(fabric);
    struct group group = group_along(core, axis);
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        return STATUS_UNIMPLEMENTED;
    if (group.size == 1 || count == 0)
        return alive(core);
    return core->staged ? reduce_staged(core, group, data, count, dtype)
                        : reduce_host(core, group, data, count, dtype);
}

enum status collective_all_gather(struct fabric *fabric, enum axis axis, const void *in, void *out,
                                  size_t bytes)
{
    struct fabric_core *core = fabric_core(fabric);
    struct group group = group_along(core, axis);
    unsigned char *to = out;
    if (bytes > 0)
        memmove(to + (size_t)group.me * bytes, in, bytes);
    const unsigned char *from = to + (size_t)group.me * bytes;
    enum status status = alive(core);
    for (size_t at = 0; status == STATUS_OK && group.size > 1 && at < bytes; at += TRANSFER_MAX) {
        size_t some = bytes - at < TRANSFER_MAX ? bytes - at : TRANSFER_MAX;
        status = show_all(core, group, from + at, to + at, bytes, some);
    }
    return status;
}

static enum status point(struct fabric_core *core, enum axis axis, int index, bool sending,
                         unsigned char *data, size_t bytes)
{
    struct group group = group_along(core, axis);
    if (index < 0 || index >= group.size || index == group.me)
        return STATUS_INTERNAL;
    struct transfer *transfer = sending ? core->sends : core->receives;
    enum status status = alive(core);
    for (size_t at = 0; status == STATUS_OK && at < bytes; at += TRANSFER_MAX) {
        size_t some = bytes - at < TRANSFER_MAX ? bytes - at : TRANSFER_MAX;
        *transfer = (struct transfer){group_rank(core, group, index), data + at, some};
        status = exchange(core, transfer_tag(axis, TRANSFER_POINT), sending, !sending);
    }
    return status;
}

enum status collective_send_host(struct fabric *fabric, enum axis axis, int index, const void *data,
                                 size_t bytes)
{
    return point(fabric_core(fabric), axis, index, true, (unsigned char *)data, bytes);
}

enum status collective_receive_host(struct fabric *fabric, enum axis axis, int index, void *data,
                                    size_t bytes)
{
    return point(fabric_core(fabric), axis, index, false, data, bytes);
}

enum status collective_send(struct fabric *fabric, enum axis axis, int index, const void *data,
                            size_t bytes)
{
    struct fabric_core *core = fabric_core(fabric);
    if (!core->staged)
        return collective_send_host(fabric, axis, index, data, bytes);
    const unsigned char *from = data;
    enum status status = STATUS_OK;
    for (size_t at = 0; status == STATUS_OK && at < bytes; at += SLICE_BYTES) {
        size_t some = bytes - at < SLICE_BYTES ? bytes - at : SLICE_BYTES;
        status = core->memory.backend->download(core->memory.device, core->bounce, from + at, some);
        if (status == STATUS_OK)
            status = point(core, axis, index, true, core->bounce, some);
    }
    return status;
}

enum status collective_receive(struct fabric *fabric, enum axis axis, int index, void *data,
                               size_t bytes)
{
    struct fabric_core *core = fabric_core(fabric);
    if (!core->staged)
        return collective_receive_host(fabric, axis, index, data, bytes);
    unsigned char *to = data;
    enum status status = STATUS_OK;
    for (size_t at = 0; status == STATUS_OK && at < bytes; at += SLICE_BYTES) {
        size_t some = bytes - at < SLICE_BYTES ? bytes - at : SLICE_BYTES;
        status = point(core, axis, index, false, core->bounce, some);
        if (status == STATUS_OK)
            status = core->memory.backend->upload(core->memory.device, to + at, core->bounce, some);
    }
    return status;
}

enum status collective_barrier(struct fabric *fabric)
{
    struct fabric_core *core = fabric_core(fabric);
    if (core->world == 1)
        return alive(core);
    return show_all(core, group_along(core, AXIS_WORLD), core->staging, core->staging, 0, 0);
}

/* One message a rank: worlds are small (tens of ranks) and steps are a few kilobytes. */
enum status collective_publish(struct fabric *fabric, const void *bytes, size_t length)
{
    struct fabric_core *core = fabric_core(fabric);
    if (fabric->rank != 0 || length > TRANSFER_MAX)
        return STATUS_INTERNAL;
    if (core->world == 1)
        return alive(core);
    for (int rank = 1; rank < core->world; rank++)
        core->sends[rank - 1] = (struct transfer){rank, (void *)bytes, length};
    return exchange(core, transfer_tag(AXIS_WORLD, TRANSFER_PUBLISH), core->world - 1, 0);
}

enum status collective_await(struct fabric *fabric, void *bytes, size_t room, size_t *length)
{
    struct fabric_core *core = fabric_core(fabric);
    if (fabric->rank == 0)
        return STATUS_INTERNAL;
    if (core->watch != NULL)
        watch_wait_begin(core->watch);
    enum status status = core->transport->take(core, transfer_tag(AXIS_WORLD, TRANSFER_PUBLISH), 0,
                                               bytes, room, length);
    if (core->watch != NULL)
        watch_wait_end(core->watch);
    return status;
}
