/* config.json -> struct model_config. Every number is range-checked here, by name, so that the
 * code behind it may multiply ints without fear. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "partition/config_parts.h"

static const struct document_limits config_limits = {
    .bytes = 1 << 20, .depth = 16, .values = 65536};

enum {
    HIDDEN_MAX = 1 << 16,
    INTERMEDIATE_MAX = 1 << 20,
    VOCAB_MAX = 1 << 22,
    HEADS_MAX = 1024,
    HEAD_DIM_MAX = 1024,
    JET_D_V_MAX = 4096,
    TAPS_MAX = 16,
    POSITIONS_MAX = 1 << 24, /* beyond it f32 positions are not exact */
};

/* An int member with a range. */
struct int_field {
    const char *key;
    int low, high;
    int *value;
};

static enum status read_ints(struct field at, const struct int_field *fields, size_t count,
                             struct error *error)
{
    for (size_t i = 0; i < count; i++) {
        enum status status = field_int(field_member(at, fields[i].key), fields[i].low,
                                       fields[i].high, fields[i].value, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status read_float(struct field at, double low, double high, float *value,
                              struct error *error)
{
    double number = 0;
    enum status status = field_number(at, low, high, &number, error);
    if (status == STATUS_OK)
        *value = (float)number;
    return status;
}

/* A string member that, where present, must be `wanted`. */
static enum status expect_string(struct field at, const char *wanted, struct error *error)
{
    const char *found = NULL;
    if (!field_present(at))
        return STATUS_OK;
    enum status status = field_string(at, &found, error);
    if (status == STATUS_OK && strcmp(found, wanted) != 0)
        return error_set(error, STATUS_CONFIG, "%s: %s is \"%.60s\"; only \"%s\" is supported",
                         at.file, at.path, found, wanted);
    return status;
}

/* A boolean member that, where present, must be false. */
static enum status expect_off(struct field at, struct error *error)
{
    bool on = false;
    if (!field_present(at))
        return STATUS_OK;
    enum status status = field_bool(at, &on, error);
    if (status == STATUS_OK && on)
        return error_set(error, STATUS_CONFIG, "%s: %s is true, which is not supported", at.file,
                         at.path);
    return status;
}

static enum status read_family(struct field root, struct error *error)
{
    enum status status = expect_string(field_member(root, "model_type"), "jet_nemotron", error);
    if (status == STATUS_OK)
        status = expect_string(field_member(root, "hidden_act"), "silu", error);
    if (status == STATUS_OK)
        status = expect_off(field_member(root, "use_mrope"), error);
    struct field partial = field_member(root, "partial_rotary_factor");
    double factor = 1;
    if (status == STATUS_OK && field_present(partial))
        status = field_number(partial, 1, 1, &factor, error);
    struct field architectures = field_member(root, "architectures");
    if (status != STATUS_OK || !field_present(architectures))
        return status;
    if (!field_is_array(architectures) || field_size(architectures) != 1)
        return error_set(error, STATUS_CONFIG, "%s: architectures is not a list of one name",
                         root.file);
    return expect_string(field_element(architectures, 0), "JetNemotronForCausalLM", error);
}

static enum status read_layers(struct field root, struct model_config *config, struct error *error)
{
    struct field types = field_member(root, "layer_types");
    if (!field_is_array(types))
        return error_set(error, STATUS_CONFIG, "%s: layer_types is missing or no list", root.file);
    if (field_size(types) != (size_t)config->layers)
        return error_set(error, STATUS_CONFIG,
                         "%s: layer_types names %zu layers, num_hidden_layers is %d", root.file,
                         field_size(types), config->layers);
    static const char *const names[] = {
        [LAYER_JET] = "jet", [LAYER_ATTN] = "attn", [LAYER_SWA] = "swa"};
    for (int i = 0; i < config->layers; i++) {
        const char *name = NULL;
        struct field at = field_element(types, (size_t)i);
        enum status status = field_string(at, &name, error);
        if (status != STATUS_OK)
            return status;
        int type = LAYER_JET;
        while (type <= LAYER_SWA && strcmp(names[type], name) != 0)
            type++;
        if (type > LAYER_SWA)
            return error_set(error, STATUS_CONFIG,
                             "%s: %s is \"%.60s\"; known layer types are jet, attn and swa",
                             at.file, at.path, name);
        config->layer[i] = (enum layer_type)type;
    }
    return STATUS_OK;
}

static enum status read_attention(struct field root, struct model_config *config,
                                  struct error *error)
{
    const struct int_field fields[] = {
        {"num_attention_heads", 1, HEADS_MAX, &config->attention_heads},
        {"num_key_value_heads", 1, HEADS_MAX, &config->kv_heads},
    };
    enum status status = read_ints(root, fields, 2, error);
    if (status != STATUS_OK)
        return status;
    struct field head_dim = field_member(root, "head_dim");
    if (field_present(head_dim))
        return field_int(head_dim, 2, HEAD_DIM_MAX, &config->head_dim, error);
    if (config->hidden % config->attention_heads != 0)
        return error_set(error, STATUS_CONFIG,
                         "%s: hidden_size %d is no multiple of num_attention_heads %d", root.file,
                         config->hidden, config->attention_heads);
    config->head_dim = config->hidden / config->attention_heads;
    return STATUS_OK;
}

static enum status read_jet(struct field jet, struct model_config *config, struct error *error)
{
    enum status status = field_expect_object(jet, error);
    if (status != STATUS_OK)
        return status;
    int reduction = 8;
    const struct int_field fields[] = {
        {"num_heads", 1, HEADS_MAX, &config->jet_heads},
        {"head_dim", 1, HEAD_DIM_MAX, &config->jet_d_k},
        {"conv_size", 1, TAPS_MAX, &config->conv_taps},
        {"dconv_generator_reduction", 1, 1 << 16, &reduction},
    };
    status = read_ints(jet, fields, 4, error);
    double expand = 1;
    if (status == STATUS_OK)
        status = field_number(field_member(jet, "expand_v"), 1e-3, JET_D_V_MAX, &expand, error);
    if (status == STATUS_OK)
        status = read_float(field_member(jet, "norm_eps"), 0, 1, &config->jet_epsilon, error);
    if (status != STATUS_OK)
        return status;
    /* 96 * 2.6666666667 is meant to be 256. */
    double d_v = round(config->jet_d_k * expand);
    if (d_v < 1 || d_v > JET_D_V_MAX)
        return error_set(error, STATUS_CONFIG,
                         "%s: %s.head_dim %d x expand_v %g gives a value head of %.0f, outside 1 "
                         "to %d",
                         jet.file, jet.path, config->jet_d_k, expand, d_v, JET_D_V_MAX);
    config->jet_d_v = (int)d_v;
    int values = config->jet_heads * config->jet_d_v;
    if (values % reduction != 0)
        return error_set(error, STATUS_CONFIG,
                         "%s: %s.dconv_generator_reduction %d does not divide the %d value "
                         "channels",
                         jet.file, jet.path, reduction, values);
    config->generator = values / reduction;
    return STATUS_OK;
}

static bool has_layer(const struct model_config *config, enum layer_type type)
{
    for (int i = 0; i < config->layers; i++)
        if (config->layer[i] == type)
            return true;
    return false;
}

/* Only what the layers use is needed and read. */
static enum status read_efficient(struct field root, struct model_config *config,
                                  struct error *error)
{
    struct field efficient = field_member(root, "efficient_attention_config");
    enum status status = STATUS_OK;
    if (has_layer(config, LAYER_JET))
        status = read_jet(field_member(efficient, "jet"), config, error);
    if (status == STATUS_OK && has_layer(config, LAYER_SWA))
        status = field_int(field_member(field_member(efficient, "swa"), "window_size"), 1,
                           POSITIONS_MAX, &config->window, error);
    return status;
}

static enum status read_root(struct field root, struct model_config *config, struct error *error)
{
    enum status status = field_expect_object(root, error);
    if (status == STATUS_OK)
        status = read_family(root, error);
    const struct int_field fields[] = {
        {"num_hidden_layers", 1, MODEL_LAYERS_MAX, &config->layers},
        {"hidden_size", 1, HIDDEN_MAX, &config->hidden},
        {"intermediate_size", 1, INTERMEDIATE_MAX, &config->intermediate},
        {"vocab_size", 2, VOCAB_MAX, &config->vocab},
        {"max_position_embeddings", 1, POSITIONS_MAX, &config->max_position},
    };
    if (status == STATUS_OK)
        status = read_ints(root, fields, 5, error);
    if (status == STATUS_OK)
        status = read_float(field_member(root, "rms_norm_eps"), 0, 1, &config->rms_epsilon, error);
    struct field tied = field_member(root, "tie_word_embeddings");
    if (status == STATUS_OK && field_present(tied))
        status = field_bool(tied, &config->tied, error);
    if (status == STATUS_OK)
        status = read_layers(root, config, error);
    if (status == STATUS_OK)
        status = read_attention(root, config, error);
    if (status == STATUS_OK)
        status = read_efficient(root, config, error);
    if (status == STATUS_OK)
        status = config_sizes_check(root.file, config, error);
    if (status == STATUS_OK)
        status = config_rope_read(root, config, error);
    if (status == STATUS_OK)
        status = config_eos_read(field_member(root, "eos_token_id"), config, error);
    return status;
}

static enum status read_config(const struct document *json, struct model_config *config,
                               struct error *error)
{
    struct model_config found;
    memset(&found, 0, sizeof found); /* padding too: plans are compared by hash */
    found.temperature = found.top_p = found.repetition_penalty = 1;
    enum status status = read_root(document_root(json), &found, error);
    if (status == STATUS_OK)
        memcpy(config, &found, sizeof found);
    return status;
}

enum status model_config_parse(const char *name, const char *text, size_t length,
                               struct model_config *config, struct error *error)
{
    struct document *json;
    enum status status = document_parse(name, text, length, config_limits, &json, error);
    if (status != STATUS_OK)
        return status;
    status = read_config(json, config, error);
    document_free(json);
    return status;
}

enum status model_config_load(const char *folder, struct model_config *config, struct error *error)
{
    char path[4096];
    struct document *json;
    if (strlen(folder) + sizeof "/generation_config.json" > sizeof path)
        return error_set(error, STATUS_CONFIG, "model folder: path is too long");
    snprintf(path, sizeof path, "%s/config.json", folder);
    enum status status = document_load(path, config_limits, &json, error);
    if (status != STATUS_OK)
        return status == STATUS_NOT_FOUND ? STATUS_IO : status;
    status = read_config(json, config, error);
    document_free(json);
    if (status != STATUS_OK)
        return status;
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    return model_generation_load(path, config, error);
}
