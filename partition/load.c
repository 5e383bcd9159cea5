/* This rank's pieces of the checkpoint, converted on the way through one bounded staging buffer:
 * a whole tensor is never held on the host. Projections that share an input are laid one behind
 * the other as rows of one matrix. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/stage.h"

enum { STAGING_BYTES = 8 << 20, NAME_MAX_BYTES = 128 };

struct loader {
    struct stage *stage;
    const struct stage_options *options;
    unsigned char *staging;
    uint64_t room; /* bytes of staging */
    uint64_t done;
    struct error *error;
};

/* Part of a tensor and where it goes. */
struct piece {
    const char *name; /* behind "model.layers.N." when layer >= 0 */
    int layer;
    struct span rows;    /* size 0: all */
    struct span columns; /* size 0: all */
    bool wide;           /* f32 whatever the activation dtype */
    void *to;            /* device, rows packed */
};

static const struct tensor_entry *piece_find(const struct loader *l, const struct piece *piece,
                                             char *name)
{
    if (piece->layer >= 0)
        snprintf(name, NAME_MAX_BYTES, "model.layers.%d.%s", piece->layer, piece->name);
    else
        snprintf(name, NAME_MAX_BYTES, "%s", piece->name);
    return checkpoint_find(l->options->checkpoint, name);
}

static void progress(struct loader *l, uint64_t bytes)
{
    l->done += bytes;
    if (l->options->progress != NULL)
        l->options->progress(l->options->progress_context, l->done, l->stage->rank->weight_bytes);
}

static enum status upload(struct loader *l, void *to, const void *from, uint64_t bytes)
{
    if (l->stage->backend->upload(l->stage->device, to, from, bytes) != STATUS_OK)
        return error_set(l->error, STATUS_DEVICE, "loading: the upload of %llu bytes failed",
                         (unsigned long long)bytes);
    progress(l, bytes);
    return STATUS_OK;
}

static enum status piece_load(struct loader *l, struct piece piece)
{
    char name[NAME_MAX_BYTES];
    const struct tensor_entry *tensor = piece_find(l, &piece, name);
    if (tensor == NULL)
        return error_set(l->error, STATUS_CORRUPT, "tensor %s is missing", name);
    uint64_t width = 1;
    for (int i = 1; i < tensor->dims; i++)
        width *= tensor->shape[i];
    if (span_size(piece.rows) == 0)
        piece.rows = (struct span){0, (int)tensor->shape[0]};
    if (span_size(piece.columns) == 0)
        piece.columns = (struct span){0, (int)width};

    enum dtype dtype = piece.wide ? DTYPE_F32 : l->stage->plan->activation;
    uint64_t columns = (uint64_t)span_size(piece.columns), row_bytes = columns * dtype_size(dtype);
    int at_once = (int)(l->room / row_bytes);
    unsigned char *to = piece.to;
    for (int row = piece.rows.begin; row < piece.rows.end; row += at_once) {
        int left = piece.rows.end - row;
        uint64_t rows = (uint64_t)(left < at_once ? left : at_once);
        TRY(checkpoint_read(l->options->checkpoint, tensor, (uint64_t)row, rows,
                            (uint64_t)piece.columns.begin, columns, dtype, l->staging, columns,
                            l->error));
        TRY(upload(l, to, l->staging, rows * row_bytes));
        to += rows * row_bytes;
    }
    return STATUS_OK;
}

static struct span scaled(struct span span, int by)
{
    return (struct span){span.begin * by, span.end * by};
}

/* Row `row` of a matrix [.., hidden]. */
static void *matrix_row(const struct loader *l, void *matrix, int row)
{
    return stage_at(l->stage, matrix, (uint64_t)row * (uint64_t)l->stage->plan->model.hidden);
}

static enum status pieces_load(struct loader *l, int layer, const struct piece *pieces,
                               size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct piece piece = pieces[i];
        piece.layer = layer;
        TRY(piece_load(l, piece));
    }
    return STATUS_OK;
}

static enum status jet_load(struct loader *l, int layer, struct jet_weights *w)
{
    const struct model_config *m = &l->stage->plan->model;
    struct span heads = l->stage->rank->jet_heads;
    struct span keys = scaled(heads, m->jet_d_k), values = scaled(heads, m->jet_d_v);
    struct span kernels = scaled(values, m->conv_taps);
    struct jet_columns at = layout_jet_columns(l->stage->plan, l->stage->rank);
    const struct piece pieces[] = {
        {"self_attn.q_proj.weight", 0, .rows = keys, .to = matrix_row(l, w->projection, at.q)},
        {"self_attn.k_proj.weight", 0, .rows = keys, .to = matrix_row(l, w->projection, at.k)},
        {"self_attn.v_proj.weight", 0, .rows = values, .to = matrix_row(l, w->projection, at.v)},
        {"self_attn.g_proj.weight", 0, .rows = values, .to = matrix_row(l, w->projection, at.gate)},
        {"self_attn.dynamic_conv1d.kernel_generator.w1.weight", 0,
         .to = matrix_row(l, w->projection, at.w1)},
        {"self_attn.a_proj.weight", 0, .rows = heads, .to = matrix_row(l, w->projection, at.a)},
        {"self_attn.b_proj.weight", 0, .rows = heads, .to = matrix_row(l, w->projection, at.b)},
        {"self_attn.dynamic_conv1d.kernel_generator.w2.weight", 0, .rows = kernels, .to = w->w2},
        {"self_attn.dynamic_conv1d.kernel_generator.w2.bias", 0, .rows = kernels, .wide = true,
         .to = w->w2_bias},
        {"self_attn.A_log", 0, .rows = heads, .wide = true, .to = w->a_log},
        {"self_attn.dt_bias", 0, .rows = heads, .wide = true, .to = w->dt_bias},
        {"self_attn.o_norm.weight", 0, .wide = true, .to = w->norm},
        {"self_attn.o_proj.weight", 0, .columns = values, .to = w->output},
    };
    return pieces_load(l, layer, pieces, sizeof pieces / sizeof *pieces);
}

static enum status attention_load(struct loader *l, int layer, struct attention_weights *w)
{
    const struct rank_plan *rank = l->stage->rank;
    int dim = l->stage->plan->model.head_dim;
    struct span q = scaled(rank->q_heads, dim), kv = scaled(rank->kv_heads, dim);
    struct attention_columns at = layout_attention_columns(l->stage->plan, rank);
    const struct piece pieces[] = {
        {"self_attn.q_proj.weight", 0, .rows = q, .to = matrix_row(l, w->projection, at.q)},
        {"self_attn.k_proj.weight", 0, .rows = kv, .to = matrix_row(l, w->projection, at.k)},
        {"self_attn.v_proj.weight", 0, .rows = kv, .to = matrix_row(l, w->projection, at.v)},
        {"self_attn.q_proj.bias", 0, .rows = q, .wide = true, .to = w->bias + at.q},
        {"self_attn.k_proj.bias", 0, .rows = kv, .wide = true, .to = w->bias + at.k},
        {"self_attn.v_proj.bias", 0, .rows = kv, .wide = true, .to = w->bias + at.v},
        {"self_attn.o_proj.weight", 0, .columns = q, .to = w->output},
    };
    return pieces_load(l, layer, pieces, sizeof pieces / sizeof *pieces);
}

static enum status layer_load(struct loader *l, int index)
{
    struct stage *stage = l->stage;
    int layer = stage->rank->layers.begin + index;
    struct layer_weights *w = &stage->weights.layer[index];
    struct span columns = stage->rank->columns;
    const struct piece pieces[] = {
        {"input_layernorm.weight", 0, .wide = true, .to = w->mixer_norm},
        {"post_attention_layernorm.weight", 0, .wide = true, .to = w->mlp_norm},
        {"mlp.gate_proj.weight", 0, .rows = columns, .to = w->gate_up},
        {"mlp.up_proj.weight", 0, .rows = columns,
         .to = matrix_row(l, w->gate_up, span_size(columns))},
        {"mlp.down_proj.weight", 0, .columns = columns, .to = w->down},
    };
    TRY(pieces_load(l, layer, pieces, sizeof pieces / sizeof *pieces));
    return layout_layer(stage->plan, stage->rank, index) == LAYER_JET
               ? jet_load(l, layer, &w->jet)
               : attention_load(l, layer, &w->attention);
}

static enum status ends_load(struct loader *l)
{
    struct stage_weights *w = &l->stage->weights;
    struct span vocab = l->stage->rank->vocab;
    const struct piece pieces[] = {
        {"model.embed_tokens.weight", -1, .rows = vocab, .to = w->embedding},
        {"lm_head.weight", -1, .rows = vocab, .to = w->head == w->embedding ? NULL : w->head},
        {"model.norm.weight", -1, .wide = true, .to = w->final_norm},
    };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        if (pieces[i].to != NULL)
            TRY(piece_load(l, pieces[i]));
    }
    return STATUS_OK;
}

static enum status rope_load(struct loader *l)
{
    struct stage *stage = l->stage;
    const struct plan *plan = stage->plan;
    model_rope(&plan->model, plan->limits.max_model_len, (float *)(void *)l->staging,
               &stage->rope_scale);
    return upload(l, stage->weights.rope, l->staging,
                  (uint64_t)plan->model.head_dim / 2 * sizeof(float));
}

/* Room for at least one row of the widest tensor. */
static uint64_t staging_room(const struct model_config *m)
{
    const int widths[] = {
        m->hidden,    m->intermediate, m->attention_heads * m->head_dim, m->jet_heads * m->jet_d_v,
        m->generator, m->head_dim};
    uint64_t room = STAGING_BYTES;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        uint64_t bytes = (uint64_t)widths[i] * sizeof(float);
        room = bytes > room ? bytes : room;
    }
    return room;
}

enum status weights_load(struct stage *stage, const struct stage_options *options,
                         struct error *error)
{
    struct loader l = {.stage = stage, .options = options, .error = error};
    l.room = staging_room(&stage->plan->model);
    l.staging = malloc(l.room);
    if (l.staging == NULL)
        return error_set(error, STATUS_NO_MEMORY, "loading: out of host memory");
    enum status status = ends_load(&l);
    if (status == STATUS_OK && stage->rank->attn_layers + stage->rank->swa_layers > 0)
        status = rope_load(&l);
    for (int i = 0; status == STATUS_OK && i < span_size(stage->rank->layers); i++)
        status = layer_load(&l, i);
    if (status == STATUS_OK)
        status = checkpoint_unchanged(options->checkpoint, error);
    if (status == STATUS_OK)
        progress(&l, stage->rank->weight_bytes - l.done);
    free(l.staging);
    return status;
}
