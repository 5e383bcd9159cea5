/* Coarse operations from the fine entries of a table. */
#include "kernels/compose.h"

#include "daemon/base/checked.h"

extern const struct backend backend_cpu;

struct gemm_op compose_gate_up_product(const struct gate_up_op *op)
{
    return (struct gemm_op){.rows = op->rows,
                            .columns = 2 * op->columns,
                            .depth = op->depth,
                            .ld_x = op->ld_x,
                            .ld_out = 2 * op->columns,
                            .x = op->x,
                            .weight = op->weight,
                            .out = op->scratch};
}

enum status compose_gate_up(const struct backend *backend, struct device *device,
                            const struct gate_up_op *op)
{
    size_t up = (size_t)op->columns * dtype_size(backend->activation);
    const struct gemm_op product = compose_gate_up_product(op);
    enum status status = backend->gemm(device, &product);

    if (status != STATUS_OK)
        return status;
    return backend->swiglu(device, &(struct swiglu_op){.rows = op->rows,
                                                       .columns = op->columns,
                                                       .ld_in = 2 * op->columns,
                                                       .gate = op->scratch,
                                                       .up = (char *)op->scratch + up,
                                                       .out = op->out});
}

/* Byte offsets into jet_mixer_op.scratch. */
struct mixer_scratch {
    size_t q, k;      /* [tokens, heads, d_k] */
    size_t generated; /* [tokens, generator]: silu(y W1) */
    size_t kernels;   /* [tokens, heads * d_v, taps] */
    size_t v, o;      /* [tokens, heads, d_v] */
    size_t g, beta;   /* [tokens, heads] f32 */
    size_t bytes;
};

static size_t reserve(struct mixer_scratch *layout, size_t rows, size_t columns, size_t element)
{
    size_t at = layout->bytes;

    layout->bytes += round_up(rows * columns * element, 256);
    return at;
}

static struct mixer_scratch scratch_layout(const struct backend *backend,
                                           const struct jet_mixer_op *op, int max_tokens)
{
    struct mixer_scratch layout = {0};
    size_t element = dtype_size(backend->activation);
    size_t tokens = (size_t)max_tokens, heads = (size_t)op->heads;
    size_t keys = heads * (size_t)op->d_k, values = heads * (size_t)op->d_v;

    layout.q = reserve(&layout, tokens, keys, element);
    layout.k = reserve(&layout, tokens, keys, element);
    layout.generated = reserve(&layout, tokens, (size_t)op->generator, element);
    layout.kernels = reserve(&layout, tokens, values * (size_t)op->taps, element);
    layout.v = reserve(&layout, tokens, values, element);
    layout.o = reserve(&layout, tokens, values, element);
    layout.g = reserve(&layout, tokens, heads, sizeof(float));
    layout.beta = reserve(&layout, tokens, heads, sizeof(float));
    return layout;
}

size_t compose_jet_mixer_scratch(const struct backend *backend, const struct jet_mixer_op *shape,
                                 int max_tokens)
{
    return scratch_layout(backend, shape, max_tokens).bytes;
}

int compose_delta_chunk(const struct backend *backend, const struct ragged *batch)
{
    if (backend == &backend_cpu || batch->max_tokens <= 1)
        return 0;
    return COMPOSE_CHUNK;
}

/* One composition under way. */
struct mixing {
    const struct backend *backend;
    struct device *device;
    const struct jet_mixer_op *op;
    struct mixer_scratch at;
    int tokens;
};

static void *scratch_at(const struct mixing *m, size_t offset)
{
    return (char *)m->op->scratch + offset;
}

static const void *projected_at(const struct mixing *m, int column)
{
    return (const char *)m->op->projected + (size_t)column * dtype_size(m->backend->activation);
}

static enum status mix_head_norm(const struct mixing *m, int column, float scale, size_t out)
{
    const struct jet_mixer_op *op = m->op;

    return m->backend->head_norm(m->device, &(struct head_norm_op){.tokens = m->tokens,
                                                                   .heads = op->heads,
                                                                   .dim = op->d_k,
                                                                   .ld_x = op->ld_projected,
                                                                   .epsilon = op->head_epsilon,
                                                                   .scale = scale,
                                                                   .x = projected_at(m, column),
                                                                   .out = scratch_at(m, out)});
}

static enum status mix_generator(const struct mixing *m)
{
    const struct jet_mixer_op *op = m->op;
    int columns = op->heads * op->d_v * op->taps;
    enum status status =
        m->backend->silu(m->device, &(struct silu_op){.rows = m->tokens,
                                                      .columns = op->generator,
                                                      .ld_x = op->ld_projected,
                                                      .ld_out = op->generator,
                                                      .x = projected_at(m, op->w1_at),
                                                      .out = scratch_at(m, m->at.generated)});

    if (status != STATUS_OK)
        return status;
    return m->backend->gemm(m->device, &(struct gemm_op){.rows = m->tokens,
                                                         .columns = columns,
                                                         .depth = op->generator,
                                                         .ld_x = op->generator,
                                                         .ld_out = columns,
                                                         .x = scratch_at(m, m->at.generated),
                                                         .weight = op->w2,
                                                         .bias = op->w2_bias,
                                                         .out = scratch_at(m, m->at.kernels)});
}

static enum status mix_convolution(const struct mixing *m)
{
    const struct jet_mixer_op *op = m->op;

    return m->backend->convolution(m->device,
                                   &(struct convolution_op){.batch = op->batch,
                                                            .channels = op->heads * op->d_v,
                                                            .taps = op->taps,
                                                            .ld_u = op->ld_projected,
                                                            .u = projected_at(m, op->v_at),
                                                            .kernels = scratch_at(m, m->at.kernels),
                                                            .rows = op->rows,
                                                            .out = scratch_at(m, m->at.v)});
}

static enum status mix_gates(const struct mixing *m)
{
    const struct jet_mixer_op *op = m->op;

    return m->backend->gates(m->device, &(struct gates_op){.tokens = m->tokens,
                                                           .heads = op->heads,
                                                           .ld_a = op->ld_projected,
                                                           .ld_b = op->ld_projected,
                                                           .a = projected_at(m, op->a_at),
                                                           .b = projected_at(m, op->b_at),
                                                           .a_log = op->a_log,
                                                           .dt_bias = op->dt_bias,
                                                           .g = scratch_at(m, m->at.g),
                                                           .beta = scratch_at(m, m->at.beta)});
}

static enum status mix_delta(const struct mixing *m)
{
    const struct jet_mixer_op *op = m->op;
    int chunk = compose_delta_chunk(m->backend, op->batch);
    struct delta_op delta = {.batch = op->batch,
                             .heads = op->heads,
                             .d_k = op->d_k,
                             .d_v = op->d_v,
                             .q = scratch_at(m, m->at.q),
                             .k = scratch_at(m, m->at.k),
                             .v = scratch_at(m, m->at.v),
                             .g = scratch_at(m, m->at.g),
                             .beta = scratch_at(m, m->at.beta),
                             .state = op->state,
                             .out = scratch_at(m, m->at.o),
                             .chunk = chunk};

    if (chunk == 0)
        return m->backend->delta_recurrent(m->device, &delta);
    return m->backend->delta_chunked(m->device, &delta);
}

static enum status mix_gated_norm(const struct mixing *m)
{
    const struct jet_mixer_op *op = m->op;

    return m->backend->gated_norm(m->device,
                                  &(struct gated_norm_op){.tokens = m->tokens,
                                                          .heads = op->heads,
                                                          .dim = op->d_v,
                                                          .ld_gate = op->ld_projected,
                                                          .epsilon = op->norm_epsilon,
                                                          .o = scratch_at(m, m->at.o),
                                                          .gate = projected_at(m, op->gate_at),
                                                          .weight = op->norm_weight,
                                                          .out = op->out});
}

enum status compose_jet_mixer(const struct backend *backend, struct device *device,
                              const struct jet_mixer_op *op)
{
    const struct mixing m = {backend, device, op, scratch_layout(backend, op, op->batch->tokens),
                             op->batch->tokens};
    float q_scale = 1.0f / __builtin_sqrtf((float)op->d_k);
    enum status status;

    if ((status = mix_head_norm(&m, op->q_at, q_scale, m.at.q)) != STATUS_OK ||
        (status = mix_head_norm(&m, op->k_at, 1.0f, m.at.k)) != STATUS_OK ||
        (status = mix_generator(&m)) != STATUS_OK || (status = mix_convolution(&m)) != STATUS_OK ||
        (status = mix_gates(&m)) != STATUS_OK || (status = mix_delta(&m)) != STATUS_OK)
        return status;
    return mix_gated_norm(&m);
}
