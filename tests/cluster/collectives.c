/* Each rank's numbers are a formula of (rank, element), so that every rank can compute what every
 * other one sends and add it up by itself, in group order, with rounding written independently. */
#include "collectives.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "rank %d: %s:%d: %s\n", fabric->rank, __FILE__, __LINE__, #condition); \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

static const enum axis axes[] = {AXIS_TENSOR, AXIS_CONTEXT, AXIS_PIPELINE, AXIS_WORLD};

const struct collectives_device *collectives_device;

/* ---- device collectives, on host memory where there is no device ---------------------------- */

static enum status to_device(const void *data, size_t bytes)
{
    const struct fabric_memory *m = &collectives_device->memory;
    if (bytes > collectives_device->room)
        return STATUS_INTERNAL;
    return m->backend->upload(m->device, collectives_device->data, data, bytes);
}

static enum status from_device(void *data, size_t bytes)
{
    const struct fabric_memory *m = &collectives_device->memory;
    if (bytes > collectives_device->room)
        return STATUS_INTERNAL;
    return m->backend->download(m->device, data, collectives_device->data, bytes);
}

static enum status reduce(struct fabric *fabric, enum axis axis, void *data, size_t count,
                          enum dtype dtype)
{
    if (collectives_device == NULL)
        return fabric->ops->all_reduce(fabric, axis, data, count, dtype);
    enum status status = to_device(data, count * dtype_size(dtype));
    if (status == STATUS_OK)
        status = fabric->ops->all_reduce(fabric, axis, collectives_device->data, count, dtype);
    return status == STATUS_OK ? from_device(data, count * dtype_size(dtype)) : status;
}

static enum status device_send(struct fabric *fabric, enum axis axis, int index, const void *data,
                               size_t bytes)
{
    if (collectives_device == NULL)
        return fabric->ops->send(fabric, axis, index, data, bytes);
    enum status status = to_device(data, bytes);
    return status == STATUS_OK
               ? fabric->ops->send(fabric, axis, index, collectives_device->data, bytes)
               : status;
}

static enum status device_receive(struct fabric *fabric, enum axis axis, int index, void *data,
                                  size_t bytes)
{
    if (collectives_device == NULL)
        return fabric->ops->receive(fabric, axis, index, data, bytes);
    enum status status = fabric->ops->receive(fabric, axis, index, collectives_device->data, bytes);
    return status == STATUS_OK ? from_device(data, bytes) : status;
}

/* Sums of more than two are not in group order on a device: they differ by rounding. */
static bool sum_is(struct fabric *fabric, enum axis axis, float sum, float expected, float epsilon)
{
    int size = mesh_axis_size(fabric->mesh, axis);
    if (collectives_device == NULL || size <= 2)
        return sum == expected;
    return fabsf(sum - expected) <= epsilon * 4096 * (float)size; /* numbers are below 2^13 */
}

static uint32_t scramble(uint32_t rank, uint32_t element)
{
    uint32_t x = rank * 0x9e3779b9u + element * 0x85ebca6bu + 1;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* Magnitudes from 2^-12 to 2^12, both signs: the order of a sum shows in its last bits. */
static float number(int rank, size_t element)
{
    uint32_t bits = scramble((uint32_t)rank, (uint32_t)element);
    uint32_t exponent = 127 - 12 + (bits >> 23 & 0xff) % 25;
    uint32_t pattern = (bits & 0x807fffff) | exponent << 23;
    float value;
    memcpy(&value, &pattern, sizeof value);
    return value;
}

static float bf16_value(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Eight significant bits, ties to even, by arithmetic. */
static float bf16_round(float value)
{
    int exponent;
    if (value == 0)
        return value;
    frexp((double)value, &exponent);
    double unit = ldexp(1, exponent - 8);
    return (float)(rint((double)value / unit) * unit);
}

static uint16_t bf16_bits(float value)
{
    float rounded = bf16_round(value);
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static float sum_of(struct fabric *fabric, enum axis axis, size_t element, bool backwards)
{
    int size = mesh_axis_size(fabric->mesh, axis);
    float sum = 0;
    for (int i = 0; i < size; i++) {
        int index = backwards ? size - 1 - i : i;
        float value = number(mesh_axis_member(fabric->mesh, fabric->rank, axis, index), element);
        sum = i == 0 ? value : sum + value;
    }
    return sum;
}

static bool check_f32(struct fabric *fabric, enum axis axis, size_t count)
{
    float *data = malloc((count + 1) * sizeof *data);
    for (size_t e = 0; e < count; e++)
        data[e] = number(fabric->rank, e);
    data[count] = 12345.0f; /* must stay */
    CHECK(reduce(fabric, axis, data, count, DTYPE_F32) == STATUS_OK);
    bool order_shows = false;
    for (size_t e = 0; e < count; e++) {
        float expected = sum_of(fabric, axis, e, false);
        CHECK(sum_is(fabric, axis, data[e], expected, 0x1p-23f));
        order_shows = order_shows || expected != sum_of(fabric, axis, e, true);
    }
    CHECK(data[count] == 12345.0f);
    CHECK(order_shows || count < 1000 || mesh_axis_size(fabric->mesh, axis) < 3);
    free(data);
    return true;
}

static bool check_bf16(struct fabric *fabric, enum axis axis, size_t count)
{
    int size = mesh_axis_size(fabric->mesh, axis);
    uint16_t *data = malloc((count + 1) * sizeof *data);
    for (size_t e = 0; e < count; e++)
        data[e] = bf16_bits(number(fabric->rank, e));
    CHECK(reduce(fabric, axis, data, count, DTYPE_BF16) == STATUS_OK);
    for (size_t e = 0; e < count; e++) {
        float sum = 0;
        for (int i = 0; i < size; i++) {
            int member = mesh_axis_member(fabric->mesh, fabric->rank, axis, i);
            float value = bf16_round(number(member, e));
            sum = i == 0 ? value : sum + value;
        }
        CHECK(sum_is(fabric, axis, bf16_value(data[e]), bf16_round(sum), 0x1p-7f));
    }
    free(data);
    return true;
}

static bool check_reduce(struct fabric *fabric)
{
    const size_t counts[] = {0, 1, 2, 3, 7, 255, 257, 8191, 8193, 70001};
    for (size_t a = 0; a < 4; a++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            if (!check_f32(fabric, axes[a], counts[c]) || !check_bf16(fabric, axes[a], counts[c]))
                return false;
    return check_f32(fabric, AXIS_TENSOR, 400009) && check_f32(fabric, AXIS_WORLD, 400009) &&
           check_bf16(fabric, AXIS_PIPELINE, 400009);
}

static bool check_gather_of(struct fabric *fabric, enum axis axis, size_t bytes)
{
    int size = mesh_axis_size(fabric->mesh, axis);
    unsigned char *in = malloc(bytes + 1), *out = malloc((size_t)size * bytes + 1);
    for (size_t b = 0; b < bytes; b++)
        in[b] = (unsigned char)scramble((uint32_t)fabric->rank, (uint32_t)b);
    out[(size_t)size * bytes] = 77;
    CHECK(fabric->ops->all_gather(fabric, axis, in, out, bytes) == STATUS_OK);
    for (int i = 0; i < size; i++) {
        uint32_t member = (uint32_t)mesh_axis_member(fabric->mesh, fabric->rank, axis, i);
        for (size_t b = 0; b < bytes; b++)
            CHECK(out[(size_t)i * bytes + b] == (unsigned char)scramble(member, (uint32_t)b));
    }
    CHECK(out[(size_t)size * bytes] == 77);
    free(in);
    free(out);
    return true;
}

static bool check_gather(struct fabric *fabric)
{
    const size_t sizes[] = {0, 1, 13, 4096, 100003, 1200001};
    for (size_t a = 0; a < 4; a++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            if (!check_gather_of(fabric, axes[a], sizes[s]))
                return false;
    return true;
}

/* Down the group like a pipeline: first to second, second to third, ... and last to first. */
static bool check_ring(struct fabric *fabric, enum axis axis, size_t bytes, bool host)
{
    int size = mesh_axis_size(fabric->mesh, axis);
    int me = mesh_axis_index(fabric->mesh, fabric->rank, axis);
    if (size == 1)
        return true;
    unsigned char *data = malloc(bytes + 1);
    uint32_t first = (uint32_t)mesh_axis_member(fabric->mesh, fabric->rank, axis, 0);
    memset(data, 0, bytes + 1);
    const struct fabric_ops *ops = fabric->ops;
    for (size_t b = 0; b < bytes && me == 0; b++)
        data[b] = (unsigned char)scramble(first, (uint32_t)b);
    if (me > 0)
        CHECK((host ? ops->receive_host : device_receive)(fabric, axis, me - 1, data, bytes) ==
              STATUS_OK);
    CHECK((host ? ops->send_host : device_send)(fabric, axis, (me + 1) % size, data, bytes) ==
          STATUS_OK);
    if (me == 0) {
        memset(data, 0, bytes + 1);
        CHECK((host ? ops->receive_host : device_receive)(fabric, axis, size - 1, data, bytes) ==
              STATUS_OK);
    }
    for (size_t b = 0; b < bytes; b++)
        CHECK(data[b] == (unsigned char)scramble(first, (uint32_t)b));
    CHECK(data[bytes] == 0);
    free(data);
    return true;
}

static bool check_points(struct fabric *fabric)
{
    const size_t sizes[] = {0, 1, 1000, 700001};
    for (size_t a = 0; a < 4; a++)
        for (size_t s = 0; s < 4; s++)
            if (!check_ring(fabric, axes[a], sizes[s], true) ||
                !check_ring(fabric, axes[a], sizes[s], false))
                return false;
    return true;
}

static bool check_publish(struct fabric *fabric)
{
    enum { ROOM = 64 * 1024 };
    const size_t sizes[] = {1, 0, ROOM, 100, 4096, 65535};
    unsigned char *bytes = malloc(ROOM);
    for (uint32_t s = 0; s < 6; s++) {
        size_t length = 99;
        for (size_t b = 0; b < ROOM; b++)
            bytes[b] = fabric->rank == 0 ? (unsigned char)scramble(s, (uint32_t)b) : 0;
        if (fabric->rank == 0) {
            CHECK(fabric->ops->publish(fabric, bytes, sizes[s]) == STATUS_OK);
            continue;
        }
        CHECK(fabric->ops->await(fabric, bytes, ROOM, &length) == STATUS_OK);
        CHECK(length == sizes[s]);
        for (size_t b = 0; b < ROOM; b++)
            CHECK(bytes[b] == (b < length ? (unsigned char)scramble(s, (uint32_t)b) : 0));
    }
    size_t length = 99;
    if (fabric->rank == 0)
        CHECK(fabric->ops->publish(fabric, bytes, 17) == STATUS_OK);
    else
        CHECK(fabric->ops->await(fabric, bytes, 16, &length) == STATUS_PEER_MISMATCH);
    CHECK(length == 99);
    free(bytes);
    return true;
}

static bool check_agree(struct fabric *fabric)
{
    struct error error = {.status = STATUS_OK};
    uint64_t digest = 42;
    int world = mesh_size(fabric->mesh), odd = world - 1;
    CHECK(fabric_agree(fabric, &digest, sizeof digest, "plan", &error) == STATUS_OK);
    if (world == 1)
        return true;
    if (fabric->rank == odd)
        digest = 43;
    CHECK(fabric_agree(fabric, &digest, sizeof digest, "plan", &error) == STATUS_PEER_MISMATCH);
    char expected[64];
    snprintf(expected, sizeof expected, "plan of rank %d differs", odd);
    CHECK(strstr(error.text, expected) != NULL);
    return true;
}

bool collectives_check(struct fabric *fabric)
{
    fabric_step_begin(fabric, 1);
    CHECK(fabric->ops->barrier(fabric) == STATUS_OK);
    bool right = check_reduce(fabric) && check_gather(fabric) && check_points(fabric) &&
                 check_publish(fabric) && check_agree(fabric) &&
                 (collectives_device != NULL ? recording_check(fabric) : staging_check(fabric));
    fabric_step_end(fabric);
    if (!right)
        return false;
    CHECK(fabric->ops->barrier(fabric) == STATUS_OK);
    return true;
}

/* ---- a device whose memory the host must not touch: bytes are kept inverted ----------------- */

static enum status inverted(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    for (size_t b = 0; b < bytes; b++)
        ((unsigned char *)to)[b] = ~((const unsigned char *)from)[b];
    return STATUS_OK;
}

bool staging_check(struct fabric *fabric)
{
    static const struct backend backend = {
        .name = "inverted", .upload = inverted, .download = inverted};
    const size_t counts[] = {0, 1, 4097, 140001};
    float *host = malloc(140001 * sizeof *host), *there = malloc(140001 * sizeof *there);
    CHECK(fabric_attach(fabric, &(struct fabric_memory){.backend = &backend}) == STATUS_OK);
    for (size_t a = 0; a < 4; a++)
        for (size_t c = 0; c < 4; c++) {
            for (size_t e = 0; e < counts[c]; e++)
                host[e] = number(fabric->rank, e);
            inverted(NULL, there, host, counts[c] * sizeof *host);
            CHECK(fabric->ops->all_reduce(fabric, axes[a], there, counts[c], DTYPE_F32) ==
                  STATUS_OK);
            inverted(NULL, host, there, counts[c] * sizeof *host);
            for (size_t e = 0; e < counts[c]; e++)
                CHECK(host[e] == sum_of(fabric, axes[a], e, false));
            if (!check_ring(fabric, axes[a], counts[c], false))
                return false;
        }
    CHECK(fabric_attach(fabric, &(struct fabric_memory){0}) == STATUS_OK);
    free(host);
    free(there);
    return true;
}

/* ---- a device that records ------------------------------------------------------------------ */

bool recording_check(struct fabric *fabric)
{
    enum { COUNT = 5003, REPLAYS = 3 };
    const struct backend *backend = collectives_device->memory.backend;
    struct device *device = collectives_device->memory.device;
    static float data[COUNT];
    for (size_t e = 0; e < COUNT; e++)
        data[e] = number(fabric->rank, e);
    CHECK(to_device(data, sizeof data) == STATUS_OK);
    struct recording *recording = NULL;
    CHECK(backend->record_begin(device) == STATUS_OK);
    CHECK(fabric->ops->all_reduce(fabric, AXIS_WORLD, collectives_device->data, COUNT, DTYPE_F32) ==
          STATUS_OK);
    CHECK(backend->record_end(device, &recording) == STATUS_OK);
    CHECK(from_device(data, sizeof data) == STATUS_OK);
    for (size_t e = 0; e < COUNT; e++)
        CHECK(data[e] == number(fabric->rank, e)); /* nothing ran yet */
    float times = 1;
    for (int i = 0; i < REPLAYS; i++) {
        CHECK(backend->replay(device, recording) == STATUS_OK);
        times *= i > 0 ? (float)mesh_size(fabric->mesh) : 1;
    }
    CHECK(from_device(data, sizeof data) == STATUS_OK);
    for (size_t e = 0; e < COUNT; e++)
        CHECK(sum_is(fabric, AXIS_WORLD, data[e] / times, sum_of(fabric, AXIS_WORLD, e, false),
                     0x1p-21f));
    backend->recording_free(device, recording);
    return true;
}
