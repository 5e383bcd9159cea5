/* Opening the cpu, and its memory. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/cgroup.h"
#include "daemon/base/checked.h"
#include "kernels/cpu/cpu.h"

static const struct variant *variant_pick(void)
{
#ifdef CPU_VARIANTS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma"))
        return &variant_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &variant_avx2;
#endif
    return &variant_plain;
}

enum status cpu_open(const struct device_options *options, struct device **out, struct error *error)
{
    struct device *device;

    if (options->threads < 1 || options->threads > 1024)
        return error_set(error, STATUS_CONFIG, "cpu: threads must be 1 .. 1024, not %d",
                         options->threads);
    device = calloc(1, sizeof(*device));
    if (device == NULL)
        return error_set(error, STATUS_NO_MEMORY, "cpu: no memory for a device");
    device->options = *options;
    device->variant = variant_pick();
    if (options->threads > 1) {
        enum status status = team_create(options->threads, &device->team, error);
        if (status != STATUS_OK) {
            free(device);
            return status;
        }
    }
    *out = device;
    return STATUS_OK;
}

void cpu_close(struct device *device)
{
    if (device == NULL)
        return;
    team_destroy(device->team);
    free(device);
}

static size_t least(uint64_t a, uint64_t b)
{
    return (size_t)(a < b ? a : b);
}

enum status cpu_memory(struct device *device, size_t *available, size_t *total)
{
    long page = sysconf(_SC_PAGESIZE), pages = sysconf(_SC_PHYS_PAGES);
    long unused = sysconf(_SC_AVPHYS_PAGES);

    (void)device;
    if (page <= 0 || pages <= 0 || unused < 0)
        return STATUS_DEVICE;
    *total = least((uint64_t)pages * (uint64_t)page, cgroup_memory_limit(""));
    *available = least((uint64_t)unused * (uint64_t)page, *total);
    return STATUS_OK;
}

enum status cpu_allocate(struct device *device, size_t bytes, void **memory)
{
    size_t available, total;
    uint64_t rounded;

    if (!checked_add(bytes, 255, &rounded))
        return STATUS_NO_MEMORY;
    /* All of it is about to be written: more than the machine has must fail here, not in the
     * kernel's out-of-memory killer. */
    if (cpu_memory(device, &available, &total) == STATUS_OK && rounded > total)
        return STATUS_NO_MEMORY;
    rounded = bytes == 0 ? 256 : rounded / 256 * 256;
    *memory = aligned_alloc(256, rounded);
    if (*memory == NULL)
        return STATUS_NO_MEMORY;
    memset(*memory, 0, rounded);
    return STATUS_OK;
}

void cpu_release(struct device *device, void *memory)
{
    (void)device;
    free(memory);
}

enum status cpu_upload(struct device *device, void *to, const void *from_host, size_t bytes)
{
    return cpu_copy(device, to, from_host, bytes);
}

enum status cpu_download(struct device *device, void *to_host, const void *from, size_t bytes)
{
    return cpu_copy(device, to_host, from, bytes);
}

enum status cpu_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    if (bytes > 0)
        memmove(to, from, bytes);
    return STATUS_OK;
}

enum status cpu_zero(struct device *device, void *to, size_t bytes)
{
    (void)device;
    if (bytes > 0)
        memset(to, 0, bytes);
    return STATUS_OK;
}

enum status cpu_synchronize(struct device *device)
{
    (void)device;
    return STATUS_OK;
}
