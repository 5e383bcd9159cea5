/* Field by field, because padding between fields holds anything. FNV-1a, 64 bits. */
#include "partition/plan.h"

static void mix(uint64_t *digest, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        *digest = (*digest ^ at[i]) * UINT64_C(0x100000001b3);
}

#define MIX(field) mix(digest, &(field), sizeof(field))

static void mix_model(uint64_t *digest, const struct model_config *m)
{
    const struct rope_config *r = &m->rope;
    unsigned char tied = m->tied, truncate = r->truncate;
    MIX(m->layers), MIX(m->hidden), MIX(m->intermediate), MIX(m->vocab);
    MIX(m->attention_heads), MIX(m->kv_heads), MIX(m->head_dim), MIX(m->window);
    MIX(m->jet_heads), MIX(m->jet_d_k), MIX(m->jet_d_v), MIX(m->conv_taps), MIX(m->generator);
    MIX(m->rms_epsilon), MIX(m->jet_epsilon), MIX(m->max_position), MIX(tied);
    MIX(r->type), MIX(r->theta), MIX(r->factor), MIX(r->attention_factor), MIX(r->beta_fast);
    MIX(r->beta_slow), MIX(r->mscale), MIX(r->mscale_all_dim), MIX(r->low_freq_factor);
    MIX(r->high_freq_factor), MIX(r->original_max_position), MIX(truncate);
    for (int i = 0; i < m->layers; i++)
        MIX(m->layer[i]);
}

static void mix_rank(uint64_t *digest, const struct rank_plan *r)
{
    MIX(r->rank), MIX(r->at), MIX(r->layers), MIX(r->jet_heads), MIX(r->q_heads);
    MIX(r->kv_heads), MIX(r->group), MIX(r->group_offset), MIX(r->columns), MIX(r->vocab);
    MIX(r->weight_bytes), MIX(r->scratch_bytes), MIX(r->recording_bytes),
        MIX(r->state_bytes_per_sequence);
    MIX(r->kv_bytes_per_token), MIX(r->kv_blocks), MIX(r->total_bytes);
}

uint64_t plan_digest(const struct plan *plan)
{
    uint64_t start = UINT64_C(0xcbf29ce484222325), *digest = &start;
    const struct limits *l = &plan->limits;
    mix_model(digest, &plan->model);
    MIX(plan->mesh), MIX(plan->activation);
    MIX(l->max_model_len), MIX(l->max_num_seqs), MIX(l->max_num_batched_tokens);
    MIX(l->block_tokens), MIX(l->kv_blocks);
    for (int i = 0; i < plan->ranks; i++)
        mix_rank(digest, &plan->rank[i]);
    return *digest;
}
