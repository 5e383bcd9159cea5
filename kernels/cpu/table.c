/* The "cpu" table, and the operations that a variant computes. */
#include "kernels/cpu/cpu.h"

extern const struct backend backend_cpu;

enum status cpu_gemm(struct device *device, const struct gemm_op *op)
{
    team_run(device->team, device->variant->gemm, op, op->columns, 16);
    return STATUS_OK;
}

enum status cpu_attention(struct device *device, const struct attention_op *op)
{
    team_run(device->team, device->variant->attention, op, op->batch->tokens, 1);
    return STATUS_OK;
}

enum status cpu_convolution(struct device *device, const struct convolution_op *op)
{
    team_run(device->team, device->variant->convolution, op, op->channels, 64);
    return STATUS_OK;
}

enum status cpu_delta_recurrent(struct device *device, const struct delta_op *op)
{
    team_run(device->team, device->variant->delta_recurrent, op, op->heads, 1);
    return STATUS_OK;
}

enum status cpu_delta_chunked(struct device *device, const struct delta_op *op)
{
    if (op->chunk < 1)
        return STATUS_INTERNAL;
    team_run(device->team, device->variant->delta_chunked, op, op->heads, 1);
    return STATUS_OK;
}

static enum status cpu_gate_up(struct device *device, const struct gate_up_op *op)
{
    return compose_gate_up(&backend_cpu, device, op);
}

static enum status cpu_jet_mixer(struct device *device, const struct jet_mixer_op *op)
{
    return compose_jet_mixer(&backend_cpu, device, op);
}

static size_t cpu_jet_mixer_scratch(const struct jet_mixer_op *shape, int max_tokens)
{
    return compose_jet_mixer_scratch(&backend_cpu, shape, max_tokens);
}

const struct backend backend_cpu = {
    .name = "cpu",
    .activation = DTYPE_F32,
    .open = cpu_open,
    .close = cpu_close,
    .memory = cpu_memory,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .synchronize = cpu_synchronize,
    .resolve = cpu_resolve,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .gemm = cpu_gemm,
    .gather = cpu_gather,
    .silu = cpu_silu,
    .swiglu = cpu_swiglu,
    .gate_up = cpu_gate_up,
    .rope = cpu_rope,
    .kv_store = cpu_kv_store,
    .attention = cpu_attention,
    .head_norm = cpu_head_norm,
    .convolution = cpu_convolution,
    .gates = cpu_gates,
    .delta_recurrent = cpu_delta_recurrent,
    .delta_chunked = cpu_delta_chunked,
    .gated_norm = cpu_gated_norm,
    .jet_mixer = cpu_jet_mixer,
    .jet_mixer_scratch = cpu_jet_mixer_scratch,
    .logit_summary = cpu_logit_summary,
    .logit_pick = cpu_logit_pick,
    .logit_top = cpu_logit_top,
    .logit_adjust = cpu_logit_adjust,
    .logit_histogram = cpu_logit_histogram,
    .logit_draw = cpu_logit_draw,
    .count = cpu_count,
    .remember = cpu_remember,
};
