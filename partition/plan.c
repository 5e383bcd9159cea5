/* Model + mesh + limits -> who holds and computes what. Pure arithmetic: every rank makes the same
 * plan and compares its digest. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"
#include "partition/layout.h"
#include "partition/plan.h"

/* Columns and vocabulary are cut at multiples of this where they divide by it: whole vectors. */
enum { SPLIT_UNIT = 16 };

/* Part `index` of `parts` of [0, size), as even as pieces of `unit` allow. */
static struct span span_split(int size, int unit, int parts, int index)
{
    int64_t units = size / unit;
    return (struct span){(int)(units * index / parts) * unit,
                         (int)(units * (index + 1) / parts) * unit};
}

static struct span heads_split(int heads, int parts, int index)
{
    return span_split(heads, 1, parts, index);
}

/* In whole units where there are enough. */
static struct span width_split(int size, int parts, int index)
{
    bool whole = size % SPLIT_UNIT == 0 && size / SPLIT_UNIT >= parts;
    return span_split(size, whole ? SPLIT_UNIT : 1, parts, index);
}

static bool has_layer(const struct model_config *m, bool jet)
{
    for (int i = 0; i < m->layers; i++) {
        if ((m->layer[i] == LAYER_JET) == jet)
            return true;
    }
    return false;
}

/* The shortest axis decides, so that the sizes said to work do. */
static enum status check_tensor(const struct model_config *m, int tensor, struct error *error)
{
    const struct {
        const char *name;
        int size;
        bool used;
    } axes[] = {
        {"MLP columns", m->intermediate, true},
        {"vocabulary rows", m->vocab, true},
        {"jet heads", m->jet_heads, has_layer(m, true)},
        {"query heads", m->attention_heads, has_layer(m, false)},
    };
    size_t least = 0;
    for (size_t i = 1; i < sizeof axes / sizeof *axes; i++) {
        if (axes[i].used && axes[i].size < axes[least].size)
            least = i;
    }
    if (tensor <= axes[least].size)
        return STATUS_OK;
    return error_set(error, STATUS_CONFIG,
                     "tensor parallel size %d exceeds the model's %d %s: some rank would have "
                     "none; sizes 1 .. %d work",
                     tensor, axes[least].size, axes[least].name, axes[least].size);
}

static enum status check_mesh(const struct model_config *m, struct mesh mesh, struct error *error)
{
    if (mesh_size(mesh) == 0)
        return error_set(error, STATUS_CONFIG,
                         "mesh %d x %d x %d (tensor x context x pipeline): every size must be at "
                         "least 1 and the product at most 4096",
                         mesh.tensor, mesh.context, mesh.pipeline);
    if (mesh.context > 1)
        return error_set(error, STATUS_CONFIG,
                         "context parallel size %d: the exchange between context ranks is not "
                         "there yet; size 1 works",
                         mesh.context);
    if (mesh.pipeline > m->layers)
        return error_set(error, STATUS_CONFIG,
                         "pipeline parallel size %d exceeds the model's %d layers: sizes 1 .. %d "
                         "work",
                         mesh.pipeline, m->layers, m->layers);
    return check_tensor(m, mesh.tensor, error);
}

static enum status check_limits(const struct model_config *m, struct limits *limits,
                                struct error *error)
{
    enum { SEQS_MOST = 65535 /* a grid's height */, TOKENS_MOST = 1 << 20 };
    if (limits->max_model_len == 0)
        limits->max_model_len = m->max_position;
    const struct {
        const char *name;
        int value, most;
    } checks[] = {
        {"max_model_len", limits->max_model_len, 1 << 28},
        {"max_num_seqs", limits->max_num_seqs, SEQS_MOST},
        {"max_num_batched_tokens", limits->max_num_batched_tokens, TOKENS_MOST},
        {"block_tokens", limits->block_tokens, 4096},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (checks[i].value < 1 || checks[i].value > checks[i].most)
            return error_set(error, STATUS_CONFIG, "%s %d is not within 1 .. %d", checks[i].name,
                             checks[i].value, checks[i].most);
    }
    if (limits->max_num_batched_tokens < limits->max_num_seqs)
        return error_set(error, STATUS_CONFIG,
                         "max_num_batched_tokens %d is below max_num_seqs %d: a step must hold one "
                         "token of every running sequence",
                         limits->max_num_batched_tokens, limits->max_num_seqs);
    if (limits->kv_blocks > INT32_MAX)
        return error_set(error, STATUS_CONFIG, "kv_blocks %" PRIu64 " exceeds %d",
                         limits->kv_blocks, INT32_MAX);
    return STATUS_OK;
}

static void count_layers(const struct model_config *m, struct rank_plan *rank)
{
    for (int i = rank->layers.begin; i < rank->layers.end; i++) {
        rank->jet_layers += m->layer[i] == LAYER_JET;
        rank->attn_layers += m->layer[i] == LAYER_ATTN;
        rank->swa_layers += m->layer[i] == LAYER_SWA;
    }
}

static void rank_fill(const struct plan *plan, const int *cuts, struct rank_plan *rank)
{
    const struct model_config *m = &plan->model;
    int parts = plan->mesh.tensor, index = rank->at.tensor, stage = rank->at.pipeline;
    rank->layers = (struct span){cuts[stage], cuts[stage + 1]};
    rank->first = stage == 0;
    rank->last = stage == plan->mesh.pipeline - 1;
    count_layers(m, rank);
    rank->columns = width_split(m->intermediate, parts, index);
    rank->vocab = width_split(m->vocab, parts, index);
    if (has_layer(m, true))
        rank->jet_heads = heads_split(m->jet_heads, parts, index);
    if (has_layer(m, false)) {
        rank->group = m->attention_heads / m->kv_heads;
        rank->q_heads = heads_split(m->attention_heads, parts, index);
        rank->kv_heads = (struct span){rank->q_heads.begin / rank->group,
                                       (rank->q_heads.end - 1) / rank->group + 1};
        rank->group_offset = rank->q_heads.begin - rank->group * rank->kv_heads.begin;
    }
}

static void rank_measure(const struct plan *plan, struct rank_plan *rank)
{
    const struct model_config *m = &plan->model;
    uint64_t act = dtype_size(plan->activation);
    uint64_t heads = (uint64_t)span_size(rank->jet_heads), d_v = (uint64_t)m->jet_d_v;
    uint64_t kv = 2 * (uint64_t)span_size(rank->kv_heads) * (uint64_t)m->head_dim * act;
    uint64_t jet = 0;
    if (rank->jet_layers > 0)
        jet = heads * d_v *
              ((uint64_t)m->jet_d_k * sizeof(float) + (uint64_t)(m->conv_taps - 1) * act);
    rank->state_bytes_per_sequence = (uint64_t)rank->jet_layers * jet;
    if (rank->swa_layers > 0)
        rank->state_bytes_per_sequence +=
            (uint64_t)rank->swa_layers * kv * (uint64_t)layout_ring(plan);
    rank->kv_bytes_per_token = (uint64_t)rank->attn_layers * kv;
}

/* Regions are counted up to UINT64_MAX and held there; no such plan is ever made, limit or not. */
static enum status check_counted(const struct plan *plan, const struct rank_plan *rank,
                                 const struct region *state, const struct region *kv,
                                 struct error *error)
{
    const struct limits *l = &plan->limits;
    if (rank->total_bytes != UINT64_MAX)
        return STATUS_OK;
    const char *what = rank->weight_bytes == UINT64_MAX    ? "weights"
                       : state->used == UINT64_MAX         ? "state"
                       : kv->used == UINT64_MAX            ? "KV blocks"
                       : rank->scratch_bytes == UINT64_MAX ? "scratch"
                                                           : "all regions together";
    return error_set(error, STATUS_CONFIG,
                     "rank %d needs more bytes than 64 bits can count (%s): max_num_seqs %d, "
                     "max_model_len %d, max_num_batched_tokens %d, %" PRIu64
                     " KV blocks of %d tokens; lower them",
                     rank->rank, what, l->max_num_seqs, l->max_model_len, l->max_num_batched_tokens,
                     l->kv_blocks, l->block_tokens);
}

/* Bytes of the four regions and of recordings with the plan's present kv_blocks. */
static enum status rank_weigh(const struct plan *plan, struct rank_plan *rank, struct error *error)
{
    union {
        struct stage_weights weights;
        struct stage_state state;
        struct stage_scratch scratch;
    } *places = malloc(sizeof *places);
    if (places == NULL)
        return error_set(error, STATUS_NO_MEMORY, "plan: out of memory");
    struct region weights = {0}, state = {0}, kv = {0}, scratch = {0};
    layout_weights(plan, rank, &weights, &places->weights);
    layout_state(plan, rank, &state, &places->state);
    layout_kv(plan, rank, &kv, &places->state);
    layout_scratch(plan, rank, &scratch, &places->scratch);
    free(places);
    rank->weight_bytes = weights.used;
    rank->scratch_bytes = scratch.used;
    rank->recording_bytes = layout_recordings(plan, rank);
    rank->kv_blocks = plan->limits.kv_blocks;
    rank->total_bytes = saturated_add(saturated_add(weights.used, state.used),
                                      saturated_add(kv.used, scratch.used));
    rank->total_bytes = saturated_add(rank->total_bytes, rank->recording_bytes);
    return check_counted(plan, rank, &state, &kv, error);
}

/* What is left for KV on a rank whose total was measured with no blocks, in blocks. */
static uint64_t blocks_left(const struct plan *plan, const struct rank_plan *rank)
{
    uint64_t slack = (uint64_t)rank->attn_layers * REGION_ALIGN;
    uint64_t used = saturated_add(rank->total_bytes, slack);
    if (used >= plan->limits.memory_bytes)
        return 0;
    return (plan->limits.memory_bytes - used) /
           (rank->kv_bytes_per_token * (uint64_t)plan->limits.block_tokens);
}

static enum status check_fits(const struct plan *plan, const struct rank_plan *rank,
                              struct error *error)
{
    if (plan->limits.memory_bytes == 0 || rank->total_bytes <= plan->limits.memory_bytes)
        return STATUS_OK;
    return error_set(error, STATUS_CONFIG,
                     "rank %d needs %" PRIu64 " bytes (weights %" PRIu64 ", scratch %" PRIu64
                     " for %d tokens a step, recordings %" PRIu64 ", %d sequences x %" PRIu64
                     " of state, %" PRIu64 " KV blocks) but memory_bytes is %" PRIu64
                     ": lower max_num_seqs or max_num_batched_tokens, or use more ranks",
                     rank->rank, rank->total_bytes, rank->weight_bytes, rank->scratch_bytes,
                     plan->limits.max_num_batched_tokens, rank->recording_bytes,
                     plan->limits.max_num_seqs, rank->state_bytes_per_sequence, rank->kv_blocks,
                     plan->limits.memory_bytes);
}

/* As many blocks as memory leaves on the poorest rank, at most what sequences can use. A model
 * without full attention has blocks that cost nothing, so that accounting needs no special case. */
static enum status choose_blocks(struct plan *plan, struct error *error)
{
    struct limits *limits = &plan->limits;
    uint64_t useful = (uint64_t)limits->max_num_seqs * (uint64_t)plan->max_blocks_per_sequence;
    uint64_t blocks = useful < INT32_MAX ? useful : INT32_MAX;
    for (int i = 0; limits->memory_bytes > 0 && i < plan->ranks; i++) {
        struct rank_plan *rank = &plan->rank[i];
        enum status status = rank_weigh(plan, rank, error);
        if (status == STATUS_OK)
            status = check_fits(plan, rank, error);
        if (status != STATUS_OK)
            return status;
        if (rank->kv_bytes_per_token == 0)
            continue;
        uint64_t left = blocks_left(plan, rank);
        blocks = left < blocks ? left : blocks;
    }
    if (blocks < (uint64_t)plan->max_blocks_per_sequence)
        return error_set(error, STATUS_CONFIG,
                         "memory_bytes %" PRIu64 " leaves %" PRIu64 " KV blocks of %d tokens, one "
                         "sequence of max_model_len %d needs %d: max_model_len %" PRIu64
                         " would fit",
                         limits->memory_bytes, blocks, limits->block_tokens, limits->max_model_len,
                         plan->max_blocks_per_sequence, blocks * (uint64_t)limits->block_tokens);
    limits->kv_blocks = blocks;
    return STATUS_OK;
}

/* Given blocks: the longest sequence that is served must fit. */
static enum status check_blocks(const struct plan *plan, struct error *error)
{
    const struct limits *limits = &plan->limits;
    if (limits->kv_blocks >= (uint64_t)plan->max_blocks_per_sequence)
        return STATUS_OK;
    return error_set(error, STATUS_CONFIG,
                     "kv_blocks %" PRIu64 " of %d tokens are too few for one sequence of "
                     "max_model_len %d, which needs %d",
                     limits->kv_blocks, limits->block_tokens, limits->max_model_len,
                     plan->max_blocks_per_sequence);
}

static enum status plan_measure(struct plan *plan, struct error *error)
{
    for (int i = 0; i < plan->ranks; i++)
        rank_measure(plan, &plan->rank[i]);
    enum status blocks =
        plan->limits.kv_blocks == 0 ? choose_blocks(plan, error) : check_blocks(plan, error);
    if (blocks != STATUS_OK)
        return blocks;
    for (int i = 0; i < plan->ranks; i++) {
        enum status status = rank_weigh(plan, &plan->rank[i], error);
        if (status == STATUS_OK)
            status = check_fits(plan, &plan->rank[i], error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status plan_cut(struct plan *plan, struct error *error)
{
    int stages = plan->mesh.pipeline;
    int *cuts = calloc((size_t)stages + 1, sizeof *cuts);
    double *costs = calloc((size_t)stages, sizeof *costs);
    enum status status = STATUS_NO_MEMORY;
    if (cuts != NULL && costs != NULL)
        status = plan_balance(plan, cuts, costs);
    if (status != STATUS_OK) {
        error_set(error, status, "plan: out of memory");
        goto free_cuts;
    }
    for (int i = 0; i < plan->ranks; i++) {
        struct rank_plan *rank = &plan->rank[i];
        rank->rank = i;
        rank->at = mesh_coordinates(plan->mesh, i);
        rank->cost = costs[rank->at.pipeline] / plan->mesh.tensor;
        rank_fill(plan, cuts, rank);
    }
free_cuts:
    free(cuts);
    free(costs);
    return status;
}

enum status plan_make(const struct model_config *model, struct mesh mesh, struct limits limits,
                      enum dtype activation, struct plan **out, struct error *error)
{
    enum status status = check_mesh(model, mesh, error);
    if (status == STATUS_OK)
        status = check_limits(model, &limits, error);
    if (status != STATUS_OK)
        return status;

    struct plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL)
        return error_set(error, STATUS_NO_MEMORY, "plan: out of memory");
    plan->model = *model;
    plan->mesh = mesh;
    plan->limits = limits;
    plan->activation = activation;
    plan->ranks = mesh_size(mesh);
    plan->max_blocks_per_sequence =
        (int)divide_up((uint64_t)limits.max_model_len, (uint64_t)limits.block_tokens);
    plan->rank = calloc((size_t)plan->ranks, sizeof *plan->rank);
    status = plan->rank == NULL ? error_set(error, STATUS_NO_MEMORY, "plan: out of memory")
                                : plan_cut(plan, error);
    if (status == STATUS_OK)
        status = plan_measure(plan, error);
    if (status != STATUS_OK) {
        plan_free(plan);
        return status;
    }
    plan->digest = plan_digest(plan);
    *out = plan;
    return STATUS_OK;
}

void plan_free(struct plan *plan)
{
    if (plan == NULL)
        return;
    free(plan->rank);
    free(plan);
}

int plan_depth(const struct plan *plan)
{
    int stages = plan->mesh.pipeline;
    return stages < 2 ? 2 : stages < STAGE_DEPTH ? stages : STAGE_DEPTH;
}

void plan_step_shape(const struct plan *plan, struct step_shape *shape)
{
    const struct limits *limits = &plan->limits;
    *shape = (struct step_shape){
        .max_sequences = limits->max_num_seqs,
        .max_tokens = limits->max_num_batched_tokens,
        .max_rows = limits->max_num_batched_tokens,
        .max_blocks = (int)limits->kv_blocks,
        .max_biases = limits->max_num_seqs * STEP_BIASES_PER_SEQUENCE,
        .max_bans = limits->max_num_seqs * STEP_BANS_PER_SEQUENCE,
        .slots = limits->max_num_seqs,
        .vocab = plan->model.vocab,
        .kv_blocks = (int)limits->kv_blocks,
        .block_tokens = limits->block_tokens,
        .max_model_len = limits->max_model_len,
        .depth = plan_depth(plan),
    };
}
