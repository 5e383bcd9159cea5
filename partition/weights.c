#include "partition/weights.h"

#include <stdio.h>

/* Sizes of one dimension, as the architecture names them. */
enum extent {
    EXTENT_NONE,
    EXTENT_HIDDEN,
    EXTENT_MLP,
    EXTENT_VOCAB,
    EXTENT_Q,
    EXTENT_KV,
    EXTENT_JET_HEADS,
    EXTENT_JET_K,
    EXTENT_JET_V,
    EXTENT_JET_D_V,
    EXTENT_GENERATOR,
    EXTENT_TAPS, /* taps of every value channel */
};

struct part {
    const char *name;
    enum weight_kind kind;
    enum extent rows, columns;
};

static const struct part common_parts[] = {
    {"input_layernorm.weight", WEIGHT_NORM, EXTENT_HIDDEN, EXTENT_NONE},
    {"post_attention_layernorm.weight", WEIGHT_NORM, EXTENT_HIDDEN, EXTENT_NONE},
    {"mlp.gate_proj.weight", WEIGHT_MATRIX, EXTENT_MLP, EXTENT_HIDDEN},
    {"mlp.up_proj.weight", WEIGHT_MATRIX, EXTENT_MLP, EXTENT_HIDDEN},
    {"mlp.down_proj.weight", WEIGHT_MATRIX, EXTENT_HIDDEN, EXTENT_MLP},
};

static const struct part attention_parts[] = {
    {"self_attn.q_proj.weight", WEIGHT_MATRIX, EXTENT_Q, EXTENT_HIDDEN},
    {"self_attn.q_proj.bias", WEIGHT_BIAS, EXTENT_Q, EXTENT_NONE},
    {"self_attn.k_proj.weight", WEIGHT_MATRIX, EXTENT_KV, EXTENT_HIDDEN},
    {"self_attn.k_proj.bias", WEIGHT_BIAS, EXTENT_KV, EXTENT_NONE},
    {"self_attn.v_proj.weight", WEIGHT_MATRIX, EXTENT_KV, EXTENT_HIDDEN},
    {"self_attn.v_proj.bias", WEIGHT_BIAS, EXTENT_KV, EXTENT_NONE},
    {"self_attn.o_proj.weight", WEIGHT_MATRIX, EXTENT_HIDDEN, EXTENT_Q},
};

#define GENERATOR "self_attn.dynamic_conv1d.kernel_generator."

static const struct part jet_parts[] = {
    {"self_attn.q_proj.weight", WEIGHT_MATRIX, EXTENT_JET_K, EXTENT_HIDDEN},
    {"self_attn.k_proj.weight", WEIGHT_MATRIX, EXTENT_JET_K, EXTENT_HIDDEN},
    {"self_attn.v_proj.weight", WEIGHT_MATRIX, EXTENT_JET_V, EXTENT_HIDDEN},
    {"self_attn.g_proj.weight", WEIGHT_MATRIX, EXTENT_JET_V, EXTENT_HIDDEN},
    {"self_attn.a_proj.weight", WEIGHT_MATRIX, EXTENT_JET_HEADS, EXTENT_HIDDEN},
    {"self_attn.b_proj.weight", WEIGHT_MATRIX, EXTENT_JET_HEADS, EXTENT_HIDDEN},
    {"self_attn.A_log", WEIGHT_A_LOG, EXTENT_JET_HEADS, EXTENT_NONE},
    {"self_attn.dt_bias", WEIGHT_DT_BIAS, EXTENT_JET_HEADS, EXTENT_NONE},
    {GENERATOR "w1.weight", WEIGHT_MATRIX, EXTENT_GENERATOR, EXTENT_HIDDEN},
    {GENERATOR "w2.weight", WEIGHT_MATRIX, EXTENT_TAPS, EXTENT_GENERATOR},
    {GENERATOR "w2.bias", WEIGHT_TAPS_BIAS, EXTENT_TAPS, EXTENT_NONE},
    {"self_attn.o_norm.weight", WEIGHT_NORM, EXTENT_JET_D_V, EXTENT_NONE},
    {"self_attn.o_proj.weight", WEIGHT_MATRIX, EXTENT_HIDDEN, EXTENT_JET_V},
};

static const struct part model_parts[] = {
    {"model.embed_tokens.weight", WEIGHT_MATRIX, EXTENT_VOCAB, EXTENT_HIDDEN},
    {"model.norm.weight", WEIGHT_NORM, EXTENT_HIDDEN, EXTENT_NONE},
    {"lm_head.weight", WEIGHT_MATRIX, EXTENT_VOCAB, EXTENT_HIDDEN},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static uint64_t extent_size(const struct model_config *c, enum extent extent)
{
    uint64_t values = (uint64_t)c->jet_heads * (uint64_t)c->jet_d_v;
    switch (extent) {
    case EXTENT_NONE:
        return 1;
    case EXTENT_HIDDEN:
        return (uint64_t)c->hidden;
    case EXTENT_MLP:
        return (uint64_t)c->intermediate;
    case EXTENT_VOCAB:
        return (uint64_t)c->vocab;
    case EXTENT_Q:
        return (uint64_t)c->attention_heads * (uint64_t)c->head_dim;
    case EXTENT_KV:
        return (uint64_t)c->kv_heads * (uint64_t)c->head_dim;
    case EXTENT_JET_HEADS:
        return (uint64_t)c->jet_heads;
    case EXTENT_JET_K:
        return (uint64_t)c->jet_heads * (uint64_t)c->jet_d_k;
    case EXTENT_JET_V:
        return values;
    case EXTENT_JET_D_V:
        return (uint64_t)c->jet_d_v;
    case EXTENT_GENERATOR:
        return (uint64_t)c->generator;
    case EXTENT_TAPS:
        return values * (uint64_t)c->conv_taps;
    }
    return 0;
}

struct weights weights_begin(const struct model_config *config)
{
    return (struct weights){.config = config, .layer = -1, .index = 0};
}

/* The part at (layer, index), or NULL past the layer's last. */
static const struct part *part_at(const struct weights *weights)
{
    int index = weights->index;
    if (weights->layer < 0)
        return index < COUNT(model_parts) ? &model_parts[index] : NULL;
    if (index < COUNT(common_parts))
        return &common_parts[index];
    index -= COUNT(common_parts);
    if (weights->config->layer[weights->layer] == LAYER_JET)
        return index < COUNT(jet_parts) ? &jet_parts[index] : NULL;
    return index < COUNT(attention_parts) ? &attention_parts[index] : NULL;
}

bool weights_next(struct weights *weights, struct weight *weight)
{
    const struct part *part = part_at(weights);
    while (part == NULL) {
        if (++weights->layer >= weights->config->layers)
            return false;
        weights->index = 0;
        part = part_at(weights);
    }
    bool head = weights->layer < 0 && weights->index == COUNT(model_parts) - 1;
    *weight = (struct weight){
        .kind = part->kind,
        .layer = weights->layer,
        .dims = part->columns == EXTENT_NONE ? 1 : 2,
        .shape = {extent_size(weights->config, part->rows),
                  extent_size(weights->config, part->columns)},
        .ignored = head && weights->config->tied,
    };
    if (weights->layer < 0)
        snprintf(weight->name, sizeof weight->name, "%s", part->name);
    else
        snprintf(weight->name, sizeof weight->name, "model.layers.%d.%s", weights->layer,
                 part->name);
    weights->index++;
    return true;
}
