/* The cpu back end: fp32, plain loops, one row at a time in a fixed order. It is the specification
 * that other back ends are tested against, so a row's bits never depend on what else is in the
 * call, nor on where a sequence is cut into calls. Private to kernels/cpu. */
#ifndef JETD_KERNELS_CPU_H
#define JETD_KERNELS_CPU_H

#include <math.h>
#include <stddef.h>

#include "kernels/cpu/team.h"
#include "kernels/cpu/variant.h"
#include "kernels/kernels.h"

struct device {
    struct device_options options;
    const struct variant *variant; /* the fastest that this processor runs */
    struct team *team;             /* NULL: one thread */
};

/* device.c */
enum status cpu_open(const struct device_options *options, struct device **device,
                     struct error *error);
void cpu_close(struct device *device);
enum status cpu_memory(struct device *device, size_t *available, size_t *total);
enum status cpu_allocate(struct device *device, size_t bytes, void **memory);
void cpu_release(struct device *device, void *memory);
enum status cpu_upload(struct device *device, void *to, const void *from_host, size_t bytes);
enum status cpu_download(struct device *device, void *to_host, const void *from, size_t bytes);
enum status cpu_copy(struct device *device, void *to, const void *from, size_t bytes);
enum status cpu_zero(struct device *device, void *to, size_t bytes);
enum status cpu_synchronize(struct device *device);

/* dense.c */
enum status cpu_resolve(struct device *device, const struct resolve_op *op);
enum status cpu_embed(struct device *device, const struct embed_op *op);
enum status cpu_gemm(struct device *device, const struct gemm_op *op);
enum status cpu_gather(struct device *device, const struct gather_op *op);
enum status cpu_silu(struct device *device, const struct silu_op *op);
enum status cpu_swiglu(struct device *device, const struct swiglu_op *op);

/* norm.c, rope.c, kv.c */
enum status cpu_rms_norm(struct device *device, const struct rms_norm_op *op);
enum status cpu_head_norm(struct device *device, const struct head_norm_op *op);
enum status cpu_gated_norm(struct device *device, const struct gated_norm_op *op);
enum status cpu_rope(struct device *device, const struct rope_op *op);
enum status cpu_kv_store(struct device *device, const struct kv_store_op *op);

/* gates.c, table.c */
enum status cpu_gates(struct device *device, const struct gates_op *op);
enum status cpu_attention(struct device *device, const struct attention_op *op);
enum status cpu_convolution(struct device *device, const struct convolution_op *op);
enum status cpu_delta_recurrent(struct device *device, const struct delta_op *op);
enum status cpu_delta_chunked(struct device *device, const struct delta_op *op);

/* logits.c, sample.c, counts.c */
enum status cpu_logit_summary(struct device *device, const struct logit_summary_op *op);
enum status cpu_logit_pick(struct device *device, const struct logit_pick_op *op);
enum status cpu_logit_top(struct device *device, const struct logit_top_op *op);
enum status cpu_logit_adjust(struct device *device, const struct logit_adjust_op *op);
enum status cpu_logit_histogram(struct device *device, const struct logit_histogram_op *op);
enum status cpu_logit_draw(struct device *device, const struct logit_draw_op *op);
enum status cpu_count(struct device *device, const struct count_op *op);
enum status cpu_remember(struct device *device, const struct remember_op *op);

static inline float silu(float x)
{
    return x / (1.0f + expf(-x));
}

#endif
