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

template <typename... Parameters, typename... Arguments>
static enum status launch_early(struct device *device, void (*kernel)(Parameters...), dim3 grid,
                                dim3 block, size_t shared, const char *what, Arguments... arguments)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = device->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return device_check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), what);
}

#endif
