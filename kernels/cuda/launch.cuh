/* Programmatic dependent launch: a kernel launched with launch_early() may start while the one
 * before it ends. It must call launch_wait() before it touches anything that an earlier kernel
 * writes or reads; launch_next() lets the kernel after it start likewise. */
#ifndef JETD_KERNELS_CUDA_LAUNCH_CUH
#define JETD_KERNELS_CUDA_LAUNCH_CUH

#include "kernels/cuda/device.h"

__device__ static inline void launch_wait()
{
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

__device__ static inline void launch_next()
{
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

/* Blocks in clusters of `cluster` along x. */
template <typename... Parameters, typename... Arguments>
static enum status launch_early_clusters(struct device *device, void (*kernel)(Parameters...),
                                         dim3 grid, unsigned cluster, dim3 block, size_t shared,
                                         const char *what, Arguments... arguments)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = device->stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
    return device_check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), what);
}

template <typename... Parameters, typename... Arguments>
static enum status launch_early(struct device *device, void (*kernel)(Parameters...), dim3 grid,
                                dim3 block, size_t shared, const char *what, Arguments... arguments)
{
    return launch_early_clusters(device, kernel, grid, 1, block, shared, what, arguments...);
}

#endif
