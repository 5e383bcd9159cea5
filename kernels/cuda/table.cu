/* The "cuda" table. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"

extern "C" {
extern const struct backend backend_cuda;

const struct backend backend_cuda = {
    .name = "cuda",
    .activation = DTYPE_BF16,
    .open = device_open,
    .close = device_close,
    .memory = device_memory,
    .allocate = device_allocate,
    .release = device_release,
    .upload = device_upload,
    .download = device_download,
    .copy = device_copy,
    .zero = device_zero,
    .synchronize = device_synchronize,
    .resolve = cuda_resolve,
    .embed = cuda_embed,
    .rms_norm = cuda_rms_norm,
    .gemm = cuda_gemm,
    .gather = cuda_gather,
    .silu = cuda_silu,
    .swiglu = cuda_swiglu,
    .rope = cuda_rope,
    .kv_store = cuda_kv_store,
    .attention = cuda_attention,
    .head_norm = cuda_head_norm,
    .convolution = cuda_convolution,
    .gates = cuda_gates,
    .delta_recurrent = cuda_delta_recurrent,
    .delta_chunked = cuda_delta_chunked,
    .gated_norm = cuda_gated_norm,
    .jet_mixer = cuda_jet_mixer,
    .jet_mixer_scratch = cuda_jet_mixer_scratch,
    .logit_summary = cuda_logit_summary,
    .logit_pick = cuda_logit_pick,
    .logit_top = cuda_logit_top,
    .logit_adjust = cuda_logit_adjust,
    .logit_histogram = cuda_logit_histogram,
    .logit_draw = cuda_logit_draw,
    .count = cuda_count,
    .remember = cuda_remember,
};
}
