#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "tests/perf/bench.h"
#include "tests/perf/samples.h"

enum { REPEATS = 9 };

/* Random numbers in +-1: products of zeros run faster than real ones. */
static enum status fill(const struct backend *backend, struct device *device, void *to,
                        size_t bytes)
{
    size_t count = (size_t)4 << 20;
    if (count > bytes)
        count = bytes;
    unsigned char *pattern = malloc(count);
    if (pattern == NULL)
        return STATUS_NO_MEMORY;
    for (size_t i = 0; i < count / 4; i++) {
        float value = (float)(2 * sample_uniform(7, 0, (uint32_t)i) - 1);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (backend->activation == DTYPE_BF16)
            bits = (bits & 0xffff0000u) | ((bits >> 16) ^ 0x8000u);
        memcpy(pattern + 4 * i, &bits, sizeof bits);
    }
    enum status status = STATUS_OK;
    for (size_t at = 0; status == STATUS_OK && at < bytes; at += count) {
        size_t part = bytes - at < count ? bytes - at : count;
        status = backend->upload(device, (unsigned char *)to + at, pattern, part);
    }
    free(pattern);
    return status;
}

static double measure_copy(const struct backend *backend, struct device *device,
                           unsigned char *memory, size_t bytes)
{
    struct samples samples = {0};
    for (int i = 0; i < REPEATS; i++) {
        backend->synchronize(device);
        int64_t start = clock_now();
        for (int k = 0; k < 4; k++)
            backend->copy(device, memory + (k % 2 ? 0 : bytes / 2),
                          memory + (k % 2 ? bytes / 2 : 0), bytes / 2);
        backend->synchronize(device);
        samples_add(&samples, clock_seconds(clock_now() - start));
    }
    double rate = 4.0 * (double)bytes / samples_quantile(&samples, 0.5);
    samples_free(&samples);
    return rate;
}

static double measure_gemm(const struct backend *backend, struct device *device,
                           unsigned char *memory, int size)
{
    size_t matrix = (size_t)size * (size_t)size * dtype_size(backend->activation);
    struct gemm_op op = {.rows = size,
                         .columns = size,
                         .depth = size,
                         .ld_x = size,
                         .ld_out = size,
                         .x = memory,
                         .weight = memory + matrix,
                         .out = memory + 2 * matrix};
    struct samples samples = {0};
    backend->gemm(device, &op);
    for (int i = 0; i < REPEATS; i++) {
        backend->synchronize(device);
        int64_t start = clock_now();
        for (int k = 0; k < 4; k++)
            backend->gemm(device, &op);
        backend->synchronize(device);
        samples_add(&samples, clock_seconds(clock_now() - start));
    }
    double n = size, rate = 4 * 2 * n * n * n / samples_quantile(&samples, 0.5);
    samples_free(&samples);
    return rate;
}

enum status ceilings_measure(const struct backend *backend, struct device *device,
                             struct ceilings *ceilings)
{
    bool gpu = strcmp(backend->name, "cpu") != 0;
    size_t bytes = gpu ? (size_t)2 << 30 : (size_t)256 << 20;
    void *memory = NULL;
    enum status status = backend->allocate(device, bytes, &memory);
    if (status == STATUS_OK)
        status = fill(backend, device, memory, bytes);
    if (status == STATUS_OK) {
        ceilings->copy = measure_copy(backend, device, memory, bytes);
        ceilings->gemm = measure_gemm(backend, device, memory, gpu ? 8192 : 512);
    }
    backend->release(device, memory);
    return status;
}
