#include "partition/layout.h"

#include "daemon/base/checked.h"

void *region_take(struct region *region, uint64_t count, uint64_t size)
{
    void *at = region->base == NULL ? NULL : region->base + region->used;
    uint64_t used = saturated_add(region->used, saturated_multiply(count, size));
    region->used = used > UINT64_MAX - REGION_ALIGN ? UINT64_MAX : round_up(used, REGION_ALIGN);
    return at;
}

struct jet_columns layout_jet_columns(const struct plan *plan, const struct rank_plan *rank)
{
    const struct model_config *m = &plan->model;
    int heads = span_size(rank->jet_heads);
    struct jet_columns at = {.q = 0};
    at.k = at.q + heads * m->jet_d_k;
    at.v = at.k + heads * m->jet_d_k;
    at.gate = at.v + heads * m->jet_d_v;
    at.w1 = at.gate + heads * m->jet_d_v;
    at.a = at.w1 + m->generator;
    at.b = at.a + heads;
    at.total = (int)round_up((uint64_t)(at.b + heads), PROJECTION_ALIGN);
    return at;
}

struct attention_columns layout_attention_columns(const struct plan *plan,
                                                  const struct rank_plan *rank)
{
    struct attention_columns at = {.q = 0};
    at.k = at.q + span_size(rank->q_heads) * plan->model.head_dim;
    at.v = at.k + span_size(rank->kv_heads) * plan->model.head_dim;
    at.total = at.v + span_size(rank->kv_heads) * plan->model.head_dim;
    return at;
}

int layout_ring(const struct plan *plan)
{
    int window = plan->model.window, length = plan->limits.max_model_len;
    return window < length ? window : length;
}

enum layer_type layout_layer(const struct plan *plan, const struct rank_plan *rank, int index)
{
    return plan->model.layer[rank->layers.begin + index];
}

struct jet_mixer_op layout_jet_mixer(const struct plan *plan, const struct rank_plan *rank)
{
    const struct model_config *m = &plan->model;
    struct jet_columns at = layout_jet_columns(plan, rank);
    return (struct jet_mixer_op){.heads = span_size(rank->jet_heads),
                                 .d_k = m->jet_d_k,
                                 .d_v = m->jet_d_v,
                                 .taps = m->conv_taps,
                                 .generator = m->generator,
                                 .head_epsilon = 1e-6f,
                                 .norm_epsilon = m->jet_epsilon,
                                 .ld_projected = at.total,
                                 .q_at = at.q,
                                 .k_at = at.k,
                                 .v_at = at.v,
                                 .gate_at = at.gate,
                                 .w1_at = at.w1,
                                 .a_at = at.a,
                                 .b_at = at.b};
}

static void place_jet(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                      struct jet_weights *w)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation), hidden = (uint64_t)m->hidden;
    uint64_t heads = (uint64_t)span_size(rank->jet_heads);
    uint64_t channels = heads * (uint64_t)m->jet_d_v;
    uint64_t kernels = channels * (uint64_t)m->conv_taps;
    w->projection = region_take(r, (uint64_t)layout_jet_columns(plan, rank).total * hidden, act);
    w->w2 = region_take(r, kernels * (uint64_t)m->generator, act);
    w->w2_bias = region_take(r, kernels, sizeof(float));
    w->a_log = region_take(r, heads, sizeof(float));
    w->dt_bias = region_take(r, heads, sizeof(float));
    w->norm = region_take(r, (uint64_t)m->jet_d_v, sizeof(float));
    w->output = region_take(r, hidden * channels, act);
}

static void place_attention(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                            struct attention_weights *w)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation), hidden = (uint64_t)m->hidden;
    uint64_t total = (uint64_t)layout_attention_columns(plan, rank).total;
    w->projection = region_take(r, total * hidden, act);
    w->bias = region_take(r, total, sizeof(float));
    w->output =
        region_take(r, hidden * (uint64_t)span_size(rank->q_heads) * (uint64_t)m->head_dim, act);
}

void layout_weights(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                    struct stage_weights *w)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation), hidden = (uint64_t)m->hidden;
    uint64_t vocab = (uint64_t)span_size(rank->vocab) * hidden;
    uint64_t columns = (uint64_t)span_size(rank->columns);
    w->embedding = NULL;
    w->head = NULL;
    w->final_norm = NULL;
    if (rank->first || (rank->last && m->tied))
        w->embedding = region_take(r, vocab, act);
    if (rank->last) {
        w->head = m->tied ? w->embedding : region_take(r, vocab, act);
        w->final_norm = region_take(r, hidden, sizeof(float));
    }
    w->rope = region_take(r, (uint64_t)m->head_dim / 2, sizeof(float));
    for (int i = 0; i < span_size(rank->layers); i++) {
        struct layer_weights *layer = &w->layer[i];
        layer->mixer_norm = region_take(r, hidden, sizeof(float));
        layer->mlp_norm = region_take(r, hidden, sizeof(float));
        if (layout_layer(plan, rank, i) == LAYER_JET)
            place_jet(plan, rank, r, &layer->jet);
        else
            place_attention(plan, rank, r, &layer->attention);
        layer->gate_up = region_take(r, 2 * columns * hidden, act);
        layer->down = region_take(r, hidden * columns, act);
    }
}

uint64_t layout_recordings(const struct plan *plan, const struct rank_plan *rank)
{
    const uint64_t whole = 128 << 10, layer = 40 << 10; /* bytes, measured: 34 KiB a layer */
    uint64_t layers = (uint64_t)span_size(rank->layers);
    return plan->activation == DTYPE_F32 ? 0 : REPLAYS_MAX * (whole + layers * layer);
}

uint64_t layout_slots(const struct plan *plan)
{
    return (uint64_t)plan->limits.max_num_seqs + 1;
}

void layout_state(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                  struct stage_state *state)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation), slots = layout_slots(plan);
    uint64_t heads = (uint64_t)span_size(rank->jet_heads);
    uint64_t kv = 2 * (uint64_t)span_size(rank->kv_heads) * (uint64_t)m->head_dim;
    for (int i = 0; i < span_size(rank->layers); i++) {
        struct layer_state *layer = &state->layer[i];
        enum layer_type type = layout_layer(plan, rank, i);
        if (type == LAYER_JET) {
            uint64_t d_v = (uint64_t)m->jet_d_v;
            layer->recurrent =
                region_take(r, slots, heads * (uint64_t)m->jet_d_k * d_v * sizeof(float));
            layer->rows = region_take(r, slots, (uint64_t)(m->conv_taps - 1) * heads * d_v * act);
        } else if (type == LAYER_SWA) {
            layer->cache = region_take(r, slots, kv * (uint64_t)layout_ring(plan) * act);
        }
    }
}

void layout_kv(const struct plan *plan, const struct rank_plan *rank, struct region *r,
               struct stage_state *state)
{
    uint64_t per_token = 2 * (uint64_t)span_size(rank->kv_heads) * (uint64_t)plan->model.head_dim;
    uint64_t tokens = (plan->limits.kv_blocks + 1) * (uint64_t)plan->limits.block_tokens;
    for (int i = 0; i < span_size(rank->layers); i++) {
        if (layout_layer(plan, rank, i) == LAYER_ATTN)
            state->layer[i].cache =
                region_take(r, tokens, per_token * dtype_size(plan->activation));
    }
}

static uint64_t wider(uint64_t a, int b)
{
    return a > (uint64_t)b ? a : (uint64_t)b;
}

static uint64_t mixer_bytes(const struct plan *plan, const struct rank_plan *rank)
{
    const struct backend *backend = backend_find(plan->activation == DTYPE_F32 ? "cpu" : "cuda");
    if (rank->jet_layers == 0 || backend == NULL)
        return 0;
    struct jet_mixer_op op = layout_jet_mixer(plan, rank);
    int tokens = plan->limits.max_num_batched_tokens;
    return backend->jet_mixer_scratch != NULL ? backend->jet_mixer_scratch(&op, tokens)
                                              : compose_jet_mixer_scratch(backend, &op, tokens);
}

/* Columns of scratch.projected: the widest projection. */
static int projected_columns(const struct plan *plan, const struct rank_plan *rank)
{
    uint64_t widest = 2 * (uint64_t)span_size(rank->columns);
    if (rank->jet_layers > 0)
        widest = wider(widest, layout_jet_columns(plan, rank).total);
    if (rank->attn_layers + rank->swa_layers > 0)
        widest = wider(widest, layout_attention_columns(plan, rank).total);
    return (int)widest;
}

static void place_activations(const struct plan *plan, const struct rank_plan *rank,
                              struct region *r, struct stage_scratch *s)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation);
    uint64_t tokens = (uint64_t)plan->limits.max_num_batched_tokens;
    uint64_t projected = (uint64_t)projected_columns(plan, rank);
    uint64_t mixed = (uint64_t)span_size(rank->columns);
    if (rank->jet_layers > 0)
        mixed = wider(mixed, span_size(rank->jet_heads) * m->jet_d_v);
    if (rank->attn_layers + rank->swa_layers > 0)
        mixed = wider(mixed, span_size(rank->q_heads) * m->head_dim);
    s->x = region_take(r, tokens * (uint64_t)m->hidden, act);
    s->normed = region_take(r, tokens * (uint64_t)m->hidden, act);
    s->delta = region_take(r, tokens * (uint64_t)m->hidden, act);
    s->projected = region_take(r, tokens * projected, act);
    s->mixed = region_take(r, tokens * mixed, act);
    s->mixer = region_take(r, mixer_bytes(plan, rank), 1);
}

int layout_sample_tile(const struct plan *plan)
{
    enum { RESIDENT_TILE = 256 };
    int rows = plan->activation == DTYPE_F32 ? HEAD_TILE : plan->limits.max_num_seqs;
    rows = rows < RESIDENT_TILE ? rows : RESIDENT_TILE;
    return rows > HEAD_TILE ? rows : HEAD_TILE;
}

/* An accelerator's tensor ranks may gather the whole vocabulary's logits (sample.c). */
static uint64_t logit_columns(const struct plan *plan, const struct rank_plan *rank)
{
    return (uint64_t)(plan->activation == DTYPE_F32 ? span_size(rank->vocab) : plan->model.vocab);
}

static void place_head(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                       struct stage_scratch *s)
{
    struct step_shape shape;
    plan_step_shape(plan, &shape);
    uint64_t act = dtype_size(plan->activation), hidden = (uint64_t)plan->model.hidden;
    uint64_t rows = (uint64_t)shape.max_rows, vocab = logit_columns(plan, rank);
    s->row_index = region_take(r, rows, sizeof(int32_t));
    s->row = region_take(r, rows, sizeof(struct sample_row));
    s->bias = region_take(r, (uint64_t)shape.max_biases, sizeof(struct logit_bias));
    s->bans = region_take(r, (uint64_t)shape.max_bans, sizeof(int32_t));
    uint64_t tile = (uint64_t)layout_sample_tile(plan);
    s->head_rows = region_take(r, tile * hidden, act);
    s->head_normed = region_take(r, tile * hidden, act);
    s->raw = region_take(r, tile * vocab, sizeof(float));
    s->logits = region_take(r, tile * vocab, sizeof(float));
    s->summary = region_take(r, HEAD_TILE, sizeof(struct logit_summary));
    s->targets = region_take(r, HEAD_TILE, sizeof(int32_t));
    s->values = region_take(r, HEAD_TILE, sizeof(float));
    s->maxima = region_take(r, HEAD_TILE, sizeof(float));
    s->tops = region_take(r, HEAD_TILE * SAMPLE_TOP_MAX, sizeof(struct logit_candidate));
    s->draws = region_take(r, HEAD_TILE, sizeof(struct logit_candidate));
    s->prefixes = region_take(r, HEAD_TILE, sizeof(uint32_t));
    s->floors = region_take(r, HEAD_TILE, sizeof(uint32_t));
    s->mass = region_take(r, HEAD_TILE * HISTOGRAM_BINS, sizeof(double));
    s->histogram = region_take(r, HEAD_TILE * HISTOGRAM_BINS, sizeof(uint32_t));
    s->entry = region_take(r, (uint64_t)shape.max_tokens, sizeof(struct count_entry));
    s->reset = region_take(r, (uint64_t)shape.max_sequences, sizeof(int32_t));
    s->counts = region_take(r, layout_slots(plan) * vocab, sizeof(uint32_t));
}

uint64_t layout_meta(int sequences, int tokens)
{
    return 3 * round_up((uint64_t)sequences + 1, META_ALIGN) +
           3 * round_up((uint64_t)tokens, META_ALIGN);
}

uint64_t layout_last(const struct plan *plan)
{
    return round_up(layout_slots(plan) * sizeof(int32_t), REGION_ALIGN);
}

uint64_t layout_returned(const struct plan *plan)
{
    uint64_t rows = (uint64_t)plan->limits.max_num_batched_tokens;
    return round_up(layout_last(plan) + rows * sizeof(struct sample_result), REGION_ALIGN);
}

void layout_scratch(const struct plan *plan, const struct rank_plan *rank, struct region *r,
                    struct stage_scratch *s)
{
    uint64_t tokens = (uint64_t)plan->limits.max_num_batched_tokens;
    uint64_t sequences = (uint64_t)plan->limits.max_num_seqs, slots = layout_slots(plan);
    s->meta = region_take(r, layout_meta((int)sequences, (int)tokens), sizeof(int32_t));
    s->ids = region_take(r, tokens, sizeof(int32_t));
    s->last = region_take(r, slots, sizeof(int32_t));
    if (rank->last)
        s->outcome = region_take(r, tokens, sizeof(struct sample_result));
    else if (rank->first)
        s->returned = region_take(r, (uint64_t)plan_depth(plan), layout_returned(plan));
    s->table = region_take(r, slots * (uint64_t)plan->max_blocks_per_sequence, sizeof(int32_t));
    s->remember_slots = region_take(r, tokens, sizeof(int32_t));
    s->remember_tokens = region_take(r, tokens, sizeof(int32_t));
    place_activations(plan, rank, r, s);
    if (rank->last)
        place_head(plan, rank, r, s);
}
