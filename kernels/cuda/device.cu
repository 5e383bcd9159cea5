/* The device: opening, memory, transfers. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"

enum status device_check(cudaError_t result, const char *what)
{
    if (result == cudaSuccess)
        return STATUS_OK;
    log_error("cuda: %s: %s (%s)", what, cudaGetErrorString(result), cudaGetErrorName(result));
    return STATUS_DEVICE;
}

enum status device_enter(struct device *device)
{
    static thread_local int current = -1;
    if (current == device->ordinal)
        return STATUS_OK;
    enum status status = device_check(cudaSetDevice(device->ordinal), "set device");
    if (status == STATUS_OK)
        current = device->ordinal;
    return status;
}

/* Enough for the split attention's partial results, and for what chunked prefill keeps of each
 * token; an entry that would need more works in pieces or takes a slower form. */
static size_t scratch_size(const struct device_options *options)
{
    size_t tokens = (size_t)(options->max_tokens > 0 ? options->max_tokens : 1);
    size_t sequences = (size_t)(options->max_sequences > 0 ? options->max_sequences : 1);
    return ((size_t)96 << 20) + tokens * 12288 + sequences * ((size_t)288 << 10);
}

static enum status device_probe(struct device *device, struct error *error)
{
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess)
        return error_set(error, STATUS_CONFIG, "cuda: no usable GPU on this host: %s",
                         cudaGetErrorString(result));
    if (device->ordinal < 0 || device->ordinal >= count)
        return error_set(error, STATUS_CONFIG, "cuda: no device %d: this host has %d",
                         device->ordinal, count);
    cudaDeviceProp properties;
    result = cudaGetDeviceProperties(&properties, device->ordinal);
    if (result != cudaSuccess)
        return error_set(error, STATUS_CONFIG, "cuda: device %d: %s", device->ordinal,
                         cudaGetErrorString(result));
    if (properties.major != 9 || properties.minor != 0)
        return error_set(error, STATUS_CONFIG,
                         "cuda: device %d (%s) has compute capability %d.%d; this build needs 9.0",
                         device->ordinal, properties.name, properties.major, properties.minor);
    device->multiprocessors = properties.multiProcessorCount;
    device->shared_limit = properties.sharedMemPerBlockOptin;
    return STATUS_OK;
}

enum status device_opened(const struct device *device, cudaError_t result, const char *what,
                          struct error *error)
{
    if (result == cudaSuccess)
        return STATUS_OK;
    bool memory = result == cudaErrorMemoryAllocation;
    return error_set(error, memory ? STATUS_NO_MEMORY : STATUS_DEVICE, "cuda: device %d: %s: %s",
                     device->ordinal, what, cudaGetErrorString(result));
}

static enum status device_equip(struct device *device, struct error *error)
{
    if (device_enter(device) != STATUS_OK)
        return error_set(error, STATUS_DEVICE, "cuda: device %d cannot be used", device->ordinal);
    cudaError_t result = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    for (int i = 0; i < STAGING_HALVES && result == cudaSuccess; i++)
        result = cudaEventCreateWithFlags(&device->staging_free[i], cudaEventDisableTiming);
    for (int i = 0; i < DEVICE_LANES && result == cudaSuccess; i++)
        result = cudaEventCreateWithFlags(&device->lane[i], cudaEventDisableTiming);
    enum status status = device_opened(device, result, "streams and events", error);
    if (status != STATUS_OK)
        return status;
    void *staging = NULL;
    void *scratch = NULL;
    result = cudaHostAlloc(&staging, STAGING_HALVES * STAGING_HALF, cudaHostAllocDefault);
    status = device_opened(device, result, "pinned host memory", error);
    if (status != STATUS_OK)
        return status;
    device->staging = (unsigned char *)staging;
    device->scratch_bytes = scratch_size(&device->options);
    const size_t bytes = device->scratch_bytes + DEVICE_COUNTERS * sizeof(uint32_t);
    result = cudaMalloc(&scratch, bytes);
    if (result == cudaSuccess)
        result = cudaMemsetAsync(scratch, 0, bytes, device->stream);
    device->scratch = (unsigned char *)scratch;
    status = device_opened(device, result, "scratch", error);
    if (status != STATUS_OK)
        return status;
    device->scratch_bytes &= ~(size_t)255;
    device->counters = (uint32_t *)(device->scratch + device->scratch_bytes);
    return gemm_open(device, error);
}

enum status device_open(const struct device_options *options, struct device **out,
                        struct error *error)
{
    struct device *device = (struct device *)calloc(1, sizeof(*device));
    if (device == NULL)
        return error_set(error, STATUS_NO_MEMORY, "cuda: out of host memory");
    device->ordinal = options->ordinal;
    device->options = *options;
    enum status status = device_probe(device, error);
    if (status != STATUS_OK) {
        free(device);
        return status;
    }
    status = device_equip(device, error);
    if (status != STATUS_OK) {
        device_close(device);
        return status;
    }
    *out = device;
    return STATUS_OK;
}

void device_close(struct device *device)
{
    if (device == NULL)
        return;
    (void)device_enter(device);
    if (device->stream != NULL)
        (void)cudaStreamSynchronize(device->stream);
    gemm_close(device);
    (void)cudaFree(device->scratch);
    if (device->staging != NULL)
        (void)cudaFreeHost(device->staging);
    for (int i = 0; i < STAGING_HALVES; i++)
        if (device->staging_free[i] != NULL)
            (void)cudaEventDestroy(device->staging_free[i]);
    for (int i = 0; i < DEVICE_LANES; i++)
        if (device->lane[i] != NULL)
            (void)cudaEventDestroy(device->lane[i]);
    if (device->stream != NULL)
        (void)cudaStreamDestroy(device->stream);
    free(device);
}

enum status device_memory(struct device *device, size_t *available, size_t *total)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    return device_check(cudaMemGetInfo(available, total), "memory");
}

enum status device_allocate(struct device *device, size_t bytes, void **memory)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    void *allocated = NULL;
    cudaError_t result = cudaMalloc(&allocated, bytes > 0 ? bytes : 1);
    if (result == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return STATUS_NO_MEMORY;
    }
    status = device_check(result, "allocate");
    if (status != STATUS_OK)
        return status;
    status = device_check(cudaMemsetAsync(allocated, 0, bytes > 0 ? bytes : 1, device->stream),
                          "zero a new allocation");
    if (status != STATUS_OK) {
        (void)cudaFree(allocated);
        return status;
    }
    *memory = allocated;
    return STATUS_OK;
}

void device_release(struct device *device, void *memory)
{
    if (memory == NULL || device_enter(device) != STATUS_OK)
        return;
    (void)device_check(cudaStreamSynchronize(device->stream), "release");
    (void)device_check(cudaFree(memory), "release");
}

/* Moves on to the other half once the copies out of it are done. */
static enum status staging_turn(struct device *device)
{
    enum status status = device_check(
        cudaEventRecord(device->staging_free[device->staging_half], device->stream), "upload");
    if (status != STATUS_OK)
        return status;
    device->staging_half = (device->staging_half + 1) % STAGING_HALVES;
    device->staging_at = 0;
    return device_check(cudaEventSynchronize(device->staging_free[device->staging_half]), "upload");
}

enum status device_upload(struct device *device, void *to, const void *from_host, size_t bytes)
{
    enum status status = device_enter(device);
    const unsigned char *from = (const unsigned char *)from_host;
    unsigned char *target = (unsigned char *)to;
    while (bytes > 0 && status == STATUS_OK) {
        if (device->staging_at == STAGING_HALF)
            status = staging_turn(device);
        if (status != STATUS_OK)
            break;
        size_t room = STAGING_HALF - device->staging_at;
        size_t part = bytes < room ? bytes : room;
        unsigned char *pinned =
            device->staging + (size_t)device->staging_half * STAGING_HALF + device->staging_at;
        memcpy(pinned, from, part);
        status = device_check(
            cudaMemcpyAsync(target, pinned, part, cudaMemcpyHostToDevice, device->stream),
            "upload");
        size_t used = device->staging_at + ((part + 63) & ~(size_t)63);
        device->staging_at = used < STAGING_HALF ? used : STAGING_HALF;
        from += part;
        target += part;
        bytes -= part;
    }
    return status;
}

enum status device_download(struct device *device, void *to_host, const void *from, size_t bytes)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(
            cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, device->stream),
            "download");
    if (status == STATUS_OK)
        status = device_check(cudaStreamSynchronize(device->stream), "download");
    return status;
}

enum status device_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(
            cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->stream), "copy");
    return status;
}

enum status device_zero(struct device *device, void *to, size_t bytes)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(cudaMemsetAsync(to, 0, bytes, device->stream), "zero");
    return status;
}

enum status device_synchronize(struct device *device)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(cudaStreamSynchronize(device->stream), "synchronize");
    return status;
}

int device_count(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

enum status device_identity(struct device *device, unsigned char id[16])
{
    cudaDeviceProp properties;
    enum status status =
        device_check(cudaGetDeviceProperties(&properties, device->ordinal), "identity");
    if (status == STATUS_OK)
        memcpy(id, &properties.uuid, 16);
    return status;
}

void *device_stream(struct device *device)
{
    return device->stream;
}
