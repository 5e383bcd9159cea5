/* Results on their way to the host, and recorded steps (CUDA graphs). */
#include <stdlib.h>

#include "kernels/cuda/memory.h"

struct recording {
    cudaGraphExec_t graph;
};

enum status device_host_allocate(struct device *device, size_t bytes, void **memory)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    void *allocated = NULL;
    cudaError_t result = cudaHostAlloc(&allocated, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    if (result == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return STATUS_NO_MEMORY;
    }
    status = device_check(result, "host memory");
    if (status == STATUS_OK)
        *memory = allocated;
    return status;
}

void device_host_release(struct device *device, void *memory)
{
    if (memory != NULL && device_enter(device) == STATUS_OK)
        (void)device_check(cudaFreeHost(memory), "host memory");
}

enum status device_fetch(struct device *device, int lane, void *to_host, const void *from,
                         size_t bytes)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(
            cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, device->stream), "fetch");
    if (status == STATUS_OK)
        status = device_check(cudaEventRecord(device->lane[lane], device->stream), "fetch");
    return status;
}

enum status device_wait(struct device *device, int lane)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(cudaEventSynchronize(device->lane[lane]), "wait");
    return status;
}

/* A failed device is ready too: wait() says so. */
bool device_ready(struct device *device, int lane)
{
    if (device_enter(device) != STATUS_OK)
        return true;
    bool ready = cudaEventQuery(device->lane[lane]) != cudaErrorNotReady;
    if (!ready)
        (void)cudaGetLastError(); /* no failure of what is launched next */
    return ready;
}

enum status device_record_begin(struct device *device)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(
            cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal), "record");
    device->recording = status == STATUS_OK;
    return status;
}

enum status device_record_end(struct device *device, struct recording **out)
{
    cudaGraph_t graph = NULL;
    device->recording = false;
    enum status status = device_check(cudaStreamEndCapture(device->stream, &graph), "record");
    if (status != STATUS_OK)
        return status;
    struct recording *recording = (struct recording *)calloc(1, sizeof(*recording));
    if (recording == NULL)
        status = STATUS_NO_MEMORY;
    if (status == STATUS_OK)
        status = device_check(cudaGraphInstantiate(&recording->graph, graph, 0), "record");
    (void)cudaGraphDestroy(graph);
    if (status != STATUS_OK) {
        free(recording);
        return status;
    }
    *out = recording;
    return STATUS_OK;
}

enum status device_replay(struct device *device, const struct recording *recording)
{
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = device_check(cudaGraphLaunch(recording->graph, device->stream), "replay");
    return status;
}

/* A graph that is in flight is freed by the driver when it completes (cuGraphExecDestroy). */
void device_recording_free(struct device *device, struct recording *recording)
{
    if (recording == NULL)
        return;
    if (device_enter(device) == STATUS_OK)
        (void)device_check(cudaGraphExecDestroy(recording->graph), "recording");
    free(recording);
}
