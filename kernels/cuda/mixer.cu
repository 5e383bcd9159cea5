/* The jet mixer: the generator's kernels for all tokens; then decoding sequences in one fused pass
 * each, and the others through the fine entries and the chunked delta rule. */
#include "kernels/cuda/mixer.h"

#include <cmath>

#include "kernels/cuda/convolution.h"
#include "kernels/cuda/delta.h"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/gemv.h"

/* Byte offsets into jet_mixer_op.scratch; every array has a row for each token of the step. */
struct layout {
    size_t generated; /* [tokens, generator]: silu(y W1) */
    size_t kernels;   /* [tokens, heads * d_v, taps] */
    size_t q, k;      /* [tokens, heads, d_k] */
    size_t v, o;      /* [tokens, heads, d_v] */
    size_t g, beta;   /* [tokens, heads] f32 */
    size_t bytes;
};

static size_t reserve(struct layout *layout, size_t rows, size_t columns, size_t element)
{
    size_t at = layout->bytes;
    layout->bytes += (rows * columns * element + 255) / 256 * 256;
    return at;
}

static struct layout layout_of(const struct jet_mixer_op *op, int max_tokens)
{
    struct layout layout = {};
    size_t tokens = (size_t)max_tokens, heads = (size_t)op->heads;
    size_t keys = heads * (size_t)op->d_k, values = heads * (size_t)op->d_v;
    layout.generated = reserve(&layout, tokens, (size_t)op->generator, 2);
    layout.kernels = reserve(&layout, tokens, values * (size_t)op->taps, 2);
    layout.q = reserve(&layout, tokens, keys, 2);
    layout.k = reserve(&layout, tokens, keys, 2);
    layout.v = reserve(&layout, tokens, values, 2);
    layout.o = reserve(&layout, tokens, values, 2);
    layout.g = reserve(&layout, tokens, heads, 4);
    layout.beta = reserve(&layout, tokens, heads, 4);
    return layout;
}

size_t cuda_jet_mixer_scratch(const struct jet_mixer_op *shape, int max_tokens)
{
    return layout_of(shape, max_tokens).bytes;
}

static struct gemm_op generator_product(const struct jet_mixer_op *op, const struct layout *at)
{
    char *scratch = (char *)op->scratch;
    struct gemm_op gemm = {};
    gemm.rows = op->batch->tokens;
    gemm.columns = gemm.ld_out = op->heads * op->d_v * op->taps;
    gemm.depth = gemm.ld_x = op->generator;
    gemm.x = scratch + at->generated;
    gemm.weight = op->w2;
    gemm.out = scratch + at->kernels;
    return gemm;
}

struct gemm_op mixer_generator_product(const struct jet_mixer_op *op)
{
    const struct layout at = layout_of(op, op->batch->tokens);
    return generator_product(op, &at);
}

/* The first `kernels` tokens' kernels, without the bias, which their readers add in fp32. */
static enum status mix_generator(struct device *device, const struct jet_mixer_op *op,
                                 const struct layout *at, int kernels)
{
    struct gemm_op gemm = generator_product(op, at), whole = gemm;
    whole.x = (const __nv_bfloat16 *)op->projected + op->w1_at;
    whole.ld_x = op->ld_projected;
    if (!device->options.batch_invariant && kernels == whole.rows && gemv_silu_fits(&whole))
        return gemv_silu(device, &whole);
    struct silu_op silu = {};
    silu.rows = whole.rows;
    silu.columns = silu.ld_out = op->generator;
    silu.ld_x = whole.ld_x;
    silu.x = whole.x;
    silu.out = (char *)op->scratch + at->generated;
    enum status status = cuda_silu(device, &silu);
    if (status != STATUS_OK)
        return status;
    gemm.rows = kernels;
    return cuda_gemm(device, &gemm);
}

/* q and k of the tokens from `first` on. */
static enum status mix_heads(struct device *device, const struct jet_mixer_op *op,
                             const struct layout *at, int first)
{
    const __nv_bfloat16 *projected =
        (const __nv_bfloat16 *)op->projected + (int64_t)first * op->ld_projected;
    char *scratch = (char *)op->scratch;
    if (mixer_inputs_fits(op))
        return mixer_inputs(device, op, first, scratch + at->q, scratch + at->k);
    struct head_norm_op norm = {};
    norm.tokens = op->batch->tokens - first;
    norm.heads = op->heads;
    norm.dim = op->d_k;
    norm.ld_x = op->ld_projected;
    norm.epsilon = op->head_epsilon;
    norm.scale = 1.0f / sqrtf((float)op->d_k);
    norm.x = projected + op->q_at;
    norm.out = (__nv_bfloat16 *)(scratch + at->q) + (int64_t)first * op->heads * op->d_k;
    enum status status = cuda_head_norm(device, &norm);
    if (status != STATUS_OK)
        return status;
    norm.scale = 1.0f;
    norm.x = projected + op->k_at;
    norm.out = (__nv_bfloat16 *)(scratch + at->k) + (int64_t)first * op->heads * op->d_k;
    return cuda_head_norm(device, &norm);
}

static enum status mix_gates(struct device *device, const struct jet_mixer_op *op,
                             const struct layout *at, int first)
{
    const __nv_bfloat16 *projected =
        (const __nv_bfloat16 *)op->projected + (int64_t)first * op->ld_projected;
    char *scratch = (char *)op->scratch;
    struct gates_op gates = {};
    gates.tokens = op->batch->tokens - first;
    gates.heads = op->heads;
    gates.ld_a = gates.ld_b = op->ld_projected;
    gates.a = projected + op->a_at;
    gates.b = projected + op->b_at;
    gates.a_log = op->a_log;
    gates.dt_bias = op->dt_bias;
    gates.g = (float *)(scratch + at->g) + (int64_t)first * op->heads;
    gates.beta = (float *)(scratch + at->beta) + (int64_t)first * op->heads;
    return cuda_gates(device, &gates);
}

static enum status mix_convolution(struct device *device, const struct jet_mixer_op *op,
                                   const struct layout *at, int sequence, bool fused)
{
    char *scratch = (char *)op->scratch;
    struct convolution_op convolution = {};
    convolution.batch = op->batch;
    convolution.channels = op->heads * op->d_v;
    convolution.taps = op->taps;
    convolution.ld_u = op->ld_projected;
    convolution.u = (const __nv_bfloat16 *)op->projected + op->v_at;
    convolution.kernels = scratch + at->kernels;
    convolution.rows = op->rows;
    convolution.out = scratch + at->v;
    if (!fused)
        return convolution_from(device, &convolution, op->w2_bias, sequence);
    enum status status =
        convolution_tile(device, op, sequence, scratch + at->generated, convolution.out);
    return status == STATUS_OK ? convolution_carry(device, &convolution, sequence) : status;
}

static enum status mix_delta(struct device *device, const struct jet_mixer_op *op,
                             const struct layout *at, int sequence)
{
    char *scratch = (char *)op->scratch;
    struct delta_op delta = {};
    delta.batch = op->batch;
    delta.heads = op->heads;
    delta.d_k = op->d_k;
    delta.d_v = op->d_v;
    delta.q = scratch + at->q;
    delta.k = scratch + at->k;
    delta.v = scratch + at->v;
    delta.g = (const float *)(scratch + at->g);
    delta.beta = (const float *)(scratch + at->beta);
    delta.state = op->state;
    delta.out = scratch + at->o;
    delta.chunk = 64;
    return delta_from(device, &delta, sequence);
}

static enum status mix_gated_norm(struct device *device, const struct jet_mixer_op *op,
                                  const struct layout *at, int first)
{
    int64_t values = (int64_t)op->heads * op->d_v;
    struct gated_norm_op norm = {};
    norm.tokens = op->batch->tokens - first;
    norm.heads = op->heads;
    norm.dim = op->d_v;
    norm.ld_gate = op->ld_projected;
    norm.epsilon = op->norm_epsilon;
    norm.o = (const __nv_bfloat16 *)((const char *)op->scratch + at->o) + first * values;
    norm.gate =
        (const __nv_bfloat16 *)op->projected + (int64_t)first * op->ld_projected + op->gate_at;
    norm.weight = op->norm_weight;
    norm.out = (__nv_bfloat16 *)op->out + first * values;
    return cuda_gated_norm(device, &norm);
}

/* Measured to be faster from 17 tokens on: few cost it no more than a reading of W2. Fused, the
 * kernels are not rounded, as a decode's are: a batch-invariant device has one rounding for both.
 */
enum { CONVOLUTION_FUSED_TOKENS = 17 };

static bool convolution_fuses(const struct device *device, const struct jet_mixer_op *op,
                              int tokens)
{
    return tokens >= CONVOLUTION_FUSED_TOKENS && !device->options.batch_invariant &&
           convolution_tile_fits(op);
}

/* What decodes, and the most others that are too few to be fused. */
int mixer_generator_rows(const struct device *device, const struct jet_mixer_op *op)
{
    const int tokens = op->batch->tokens;
    const int most = device->options.max_sequences + CONVOLUTION_FUSED_TOKENS - 1;
    return convolution_fuses(device, op, tokens) && most < tokens ? most : tokens;
}

enum status cuda_jet_mixer(struct device *device, const struct jet_mixer_op *op)
{
    const struct layout at = layout_of(op, op->batch->tokens);
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->batch->tokens == 0)
        return status;
    const int stepped = mixer_step_fits(op) ? op->batch->decodes : 0;
    const bool fused = convolution_fuses(device, op, op->batch->tokens - stepped);
    status = mix_generator(device, op, &at, fused ? stepped : op->batch->tokens);
    if (status != STATUS_OK)
        return status;
    if (stepped > 0)
        status = mixer_step(device, op, (const char *)op->scratch + at.kernels);
    if (status != STATUS_OK || stepped == op->batch->sequences)
        return status;
    /* A sequence among the first `stepped` has one token, so both counts are the same. */
    if ((status = mix_heads(device, op, &at, stepped)) != STATUS_OK ||
        (status = mix_gates(device, op, &at, stepped)) != STATUS_OK ||
        (status = mix_convolution(device, op, &at, stepped, fused)) != STATUS_OK ||
        (status = mix_delta(device, op, &at, stepped)) != STATUS_OK)
        return status;
    return mix_gated_norm(device, op, &at, stepped);
}
