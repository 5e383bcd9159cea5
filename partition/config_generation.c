/* generation_config.json: what a request without sampling fields gets. */
#include <string.h>

#include "partition/config_parts.h"

static const struct document_limits generation_limits = {
    .bytes = 1 << 20, .depth = 16, .values = 65536};

enum { TOP_K_MAX = 1 << 22 };

enum status config_eos_read(struct field at, struct model_config *config, struct error *error)
{
    if (!field_present(at))
        return STATUS_OK;
    int ids[MODEL_EOS_MAX];
    size_t count = field_is_array(at) ? field_size(at) : 1;
    if (count > MODEL_EOS_MAX)
        return error_set(error, STATUS_CONFIG, "%s: %s lists %zu ids, at most %d are supported",
                         at.file, at.path, count, MODEL_EOS_MAX);
    for (size_t i = 0; i < count; i++) {
        struct field id = field_is_array(at) ? field_element(at, i) : at;
        enum status status = field_int(id, 0, config->vocab - 1, &ids[i], error);
        if (status != STATUS_OK)
            return status;
    }
    config->eos_count = (int)count;
    memcpy(config->eos, ids, count * sizeof *ids);
    return STATUS_OK;
}

/* Reads a float member where present and notes that there was one. */
static enum status read_float(struct field at, double low, double high, float *value, bool *found,
                              struct error *error)
{
    double number = 0;
    if (!field_present(at))
        return STATUS_OK;
    enum status status = field_number(at, low, high, &number, error);
    if (status == STATUS_OK) {
        *value = (float)number;
        *found = true;
    }
    return status;
}

static enum status read_sampling(struct field root, struct model_config *config,
                                 struct error *error)
{
    bool *found = &config->has_generation;
    enum status status =
        read_float(field_member(root, "temperature"), 0, 100, &config->temperature, found, error);
    if (status == STATUS_OK)
        status = read_float(field_member(root, "top_p"), 0, 1, &config->top_p, found, error);
    if (status == STATUS_OK)
        status = read_float(field_member(root, "min_p"), 0, 1, &config->min_p, found, error);
    if (status == STATUS_OK)
        status = read_float(field_member(root, "repetition_penalty"), 1e-3, 100,
                            &config->repetition_penalty, found, error);
    struct field top_k = field_member(root, "top_k");
    if (status == STATUS_OK && field_present(top_k)) {
        *found = true;
        status = field_int(top_k, -1, TOP_K_MAX, &config->top_k, error);
        if (config->top_k < 0) /* another spelling of off */
            config->top_k = 0;
    }
    struct field sample = field_member(root, "do_sample");
    if (status == STATUS_OK && field_present(sample)) {
        bool on = true;
        *found = true;
        status = field_bool(sample, &on, error);
        if (!on)
            config->temperature = 0;
    }
    if (status == STATUS_OK && config->top_p <= 0)
        status = error_set(error, STATUS_CONFIG, "%s: top_p is 0, which keeps no token", root.file);
    return status;
}

static enum status read_generation(const struct document *json, struct model_config *config,
                                   struct error *error)
{
    struct field root = document_root(json);
    struct model_config found;
    memcpy(&found, config, sizeof found);
    enum status status = field_expect_object(root, error);
    if (status == STATUS_OK)
        status = config_eos_read(field_member(root, "eos_token_id"), &found, error);
    if (status == STATUS_OK)
        status = read_sampling(root, &found, error);
    if (status == STATUS_OK)
        memcpy(config, &found, sizeof found);
    return status;
}

enum status model_generation_parse(const char *name, const char *text, size_t length,
                                   struct model_config *config, struct error *error)
{
    struct document *json;
    enum status status = document_parse(name, text, length, generation_limits, &json, error);
    if (status != STATUS_OK)
        return status;
    status = read_generation(json, config, error);
    document_free(json);
    return status;
}

enum status model_generation_load(const char *path, struct model_config *config,
                                  struct error *error)
{
    struct document *json;
    struct error cause = {0};
    enum status status = document_load(path, generation_limits, &json, &cause);
    if (status == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (status != STATUS_OK)
        return error_set(error, status, "%s", cause.text);
    status = read_generation(json, config, error);
    document_free(json);
    return status;
}
