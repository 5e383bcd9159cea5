/* What the cuda entries share: the device's context, launch checks, private scratch, and the
 * entries themselves (table.cu lists them). C++ because nvcc compiles it; nothing here leaves
 * kernels/cuda. */
#ifndef JETD_KERNELS_CUDA_DEVICE_H
#define JETD_KERNELS_CUDA_DEVICE_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {
#include "daemon/base/log.h"
#include "daemon/base/status.h"
}
#include "kernels/kernels.h"

struct gemm_context; /* gemm.cu */

enum { STAGING_HALVES = 2, DEVICE_COUNTERS = 1024 };
static const size_t STAGING_HALF = 4 << 20; /* bytes */

struct device {
    int ordinal, multiprocessors;
    size_t shared_limit; /* bytes of shared memory a block may ask for */
    struct device_options options;
    cudaStream_t stream;
    /* Pinned halves that uploads pass through, so that `from` is free at return. */
    unsigned char *staging;
    cudaEvent_t staging_free[STAGING_HALVES];
    int staging_half;
    size_t staging_at;
    /* Written and read within one entry; the stream orders the entries. */
    unsigned char *scratch;
    size_t scratch_bytes;
    /* [DEVICE_COUNTERS] behind the scratch: zero between launches, for blocks that ask whether they
     * are the last. */
    uint32_t *counters;
    struct gemm_context *gemm;
    cudaEvent_t lane[DEVICE_LANES];
    bool recording; /* entries are being recorded: nothing may wait */
};

/* Makes the device current on the calling thread. */
enum status device_enter(struct device *device);
/* Logs the first failure with the entry's name. */
enum status device_check(cudaError_t result, const char *what);
/* The same while a device opens: into `error`, STATUS_NO_MEMORY where memory was short. */
enum status device_opened(const struct device *device, cudaError_t result, const char *what,
                          struct error *error);
#define launch_check(what) device_check(cudaGetLastError(), what)

/* Raises a kernel's shared-memory limit; cheap enough to call before each launch. */
template <typename Kernel>
static inline enum status shared_raise(Kernel *kernel, size_t bytes, const char *what)
{
    if (bytes <= 48 << 10)
        return STATUS_OK;
    return device_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        what);
}

enum status gemm_open(struct device *device, struct error *error);
void gemm_close(struct device *device);

static inline bool aligned16(const void *pointer)
{
    return ((uintptr_t)pointer & 15) == 0;
}

static inline int blocks_for(int64_t items, int per_block)
{
    return (int)((items + per_block - 1) / per_block);
}

#define ENTRY(name) enum status cuda_##name(struct device *device, const struct name##_op *op)
ENTRY(resolve);
ENTRY(embed);
ENTRY(rms_norm);
ENTRY(gemm);
ENTRY(gather);
ENTRY(silu);
ENTRY(swiglu);
ENTRY(gate_up);
ENTRY(rope);
ENTRY(kv_store);
ENTRY(rope_store);
ENTRY(attention);
ENTRY(head_norm);
ENTRY(convolution);
ENTRY(gates);
ENTRY(gated_norm);
ENTRY(jet_mixer);
ENTRY(logit_summary);
ENTRY(logit_pick);
ENTRY(logit_top);
ENTRY(logit_adjust);
ENTRY(logit_histogram);
ENTRY(logit_draw);
ENTRY(count);
ENTRY(remember);
ENTRY(sample);
#undef ENTRY
enum status cuda_delta_recurrent(struct device *device, const struct delta_op *op);
enum status cuda_delta_chunked(struct device *device, const struct delta_op *op);
enum status cuda_gemm_prepare(struct device *device, const struct prepare_op *ops, int count,
                              int *choices);
bool cuda_gemm_fuses(struct device *device, const struct gemm_op *op);
bool cuda_gate_up_fuses(struct device *device, const struct gate_up_op *op);
size_t cuda_jet_mixer_scratch(const struct jet_mixer_op *shape, int max_tokens);

#endif
