/* device.cu's entries of the table. */
#ifndef JETD_KERNELS_CUDA_MEMORY_H
#define JETD_KERNELS_CUDA_MEMORY_H

#include "kernels/cuda/device.h"

enum status device_open(const struct device_options *options, struct device **out,
                        struct error *error);
void device_close(struct device *device);
enum status device_memory(struct device *device, size_t *available, size_t *total);
enum status device_allocate(struct device *device, size_t bytes, void **memory);
void device_release(struct device *device, void *memory);
enum status device_upload(struct device *device, void *to, const void *from_host, size_t bytes);
enum status device_download(struct device *device, void *to_host, const void *from, size_t bytes);
enum status device_copy(struct device *device, void *to, const void *from, size_t bytes);
enum status device_zero(struct device *device, void *to, size_t bytes);
enum status device_synchronize(struct device *device);
int device_count(void);
enum status device_identity(struct device *device, unsigned char id[16]);
void *device_stream(struct device *device);

/* recording.cu's. */
enum status device_host_allocate(struct device *device, size_t bytes, void **memory);
void device_host_release(struct device *device, void *memory);
enum status device_fetch(struct device *device, int lane, void *to_host, const void *from,
                         size_t bytes);
enum status device_wait(struct device *device, int lane);
bool device_ready(struct device *device, int lane);
enum status device_record_begin(struct device *device);
enum status device_record_end(struct device *device, struct recording **out);
enum status device_replay(struct device *device, const struct recording *recording);
void device_recording_free(struct device *device, struct recording *recording);

#endif
