#include "daemon/tokenizer_fields.h"

#include <string.h>

struct field_name field_name(const char *name)
{
    struct field_name result;
    size_t i = 0;
    for (; i + 1 < sizeof result.text && name[i] != '\0'; ++i)
        result.text[i] = name[i] >= 0x20 && name[i] < 0x7F ? name[i] : '?';
    result.text[i] = '\0';
    return result;
}

static enum status unsupported(struct error *error, const char *path, const json_t *value)
{
    const char *kind = json_string_value(value);
    if (kind == NULL)
        return error_set(error, STATUS_CORRUPT, "%s: must be a string", path);
    return error_set(error, STATUS_UNIMPLEMENTED, "%s: \"%s\" is not supported", path,
                     field_name(kind).text);
}

static bool type_is(const json_t *object, const char *kind)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type != NULL && strcmp(type, kind) == 0;
}

static bool absent(const json_t *value)
{
    return value == NULL || json_is_null(value);
}

enum status field_flag(const json_t *object, const char *path, const char *name, bool wanted,
                       struct error *error)
{
    const json_t *value = json_object_get(object, name);
    if (absent(value))
        return STATUS_OK;
    if (!json_is_boolean(value))
        return error_set(error, STATUS_CORRUPT, "%s.%s: must be true or false", path, name);
    if (json_is_true(value) != wanted)
        return error_set(error, STATUS_UNIMPLEMENTED, "%s.%s: %s is not supported", path, name,
                         wanted ? "false" : "true");
    return STATUS_OK;
}

enum status fields_normalizer(const json_t *root, struct tokenizer *tokenizer, struct error *error)
{
    const json_t *normalizer = json_object_get(root, "normalizer");
    if (absent(normalizer))
        return STATUS_OK;
    if (!type_is(normalizer, "NFC"))
        return unsupported(error, "normalizer.type", json_object_get(normalizer, "type"));
    tokenizer->nfc = true;
    return STATUS_OK;
}

/* The ByteLevel step; its own expression only where it stands alone. */
static enum status byte_level(const json_t *step, const char *path, bool alone,
                              struct tokenizer *tokenizer, struct error *error)
{
    char field[96];
    snprintf(field, sizeof field, "%s.type", path);
    if (!type_is(step, "ByteLevel"))
        return unsupported(error, field, json_object_get(step, "type"));
    enum status status = field_flag(step, path, "add_prefix_space", false, error);
    if (status != STATUS_OK)
        return status;
    const json_t *own = json_object_get(step, "use_regex");
    bool uses = absent(own) || json_is_true(own); /* HF's default is true */
    if (uses != alone)
        return error_set(error, STATUS_UNIMPLEMENTED, "%s.use_regex: %s is not supported here",
                         path, uses ? "true" : "false");
    if (!alone)
        return STATUS_OK;
    return split_compile(SPLIT_GPT2, strlen(SPLIT_GPT2), &tokenizer->split, error);
}

static enum status split_step(const json_t *step, const char *path, struct tokenizer *tokenizer,
                              struct error *error)
{
    char field[96];
    snprintf(field, sizeof field, "%s.type", path);
    if (!type_is(step, "Split"))
        return unsupported(error, field, json_object_get(step, "type"));
    const json_t *behavior = json_object_get(step, "behavior");
    snprintf(field, sizeof field, "%s.behavior", path);
    if (!json_is_string(behavior) || strcmp(json_string_value(behavior), "Isolated") != 0)
        return unsupported(error, field, behavior);
    enum status status = field_flag(step, path, "invert", false, error);
    if (status != STATUS_OK)
        return status;
    const json_t *pattern = json_object_get(json_object_get(step, "pattern"), "Regex");
    if (!json_is_string(pattern))
        return error_set(error, STATUS_UNIMPLEMENTED, "%s.pattern.Regex: must be a string", path);
    status = split_compile(json_string_value(pattern), json_string_length(pattern),
                           &tokenizer->split, error);
    if (status != STATUS_OK)
        return error_prefix(error, "%s.pattern.Regex", path);
    return STATUS_OK;
}

enum status fields_pre_tokenizer(const json_t *root, struct tokenizer *tokenizer,
                                 struct error *error)
{
    const json_t *whole = json_object_get(root, "pre_tokenizer");
    if (!json_is_object(whole))
        return error_set(error, STATUS_CORRUPT, "pre_tokenizer: must be an object");
    if (type_is(whole, "ByteLevel"))
        return byte_level(whole, "pre_tokenizer", true, tokenizer, error);
    if (!type_is(whole, "Sequence"))
        return unsupported(error, "pre_tokenizer.type", json_object_get(whole, "type"));
    const json_t *steps = json_object_get(whole, "pretokenizers");
    if (json_array_size(steps) != 2)
        return error_set(error, STATUS_UNIMPLEMENTED,
                         "pre_tokenizer.pretokenizers: must be Split, then ByteLevel");
    enum status status =
        split_step(json_array_get(steps, 0), "pre_tokenizer.pretokenizers[0]", tokenizer, error);
    if (status != STATUS_OK)
        return status;
    return byte_level(json_array_get(steps, 1), "pre_tokenizer.pretokenizers[1]", false, tokenizer,
                      error);
}

enum status fields_decoder(const json_t *root, struct error *error)
{
    const json_t *decoder = json_object_get(root, "decoder");
    if (!type_is(decoder, "ByteLevel"))
        return unsupported(error, "decoder.type", json_object_get(decoder, "type"));
    const json_t *post = json_object_get(root, "post_processor");
    if (!absent(post) && !type_is(post, "ByteLevel"))
        return unsupported(error, "post_processor.type", json_object_get(post, "type"));
    return STATUS_OK;
}

static enum status field_empty(const json_t *model, const char *name, struct error *error)
{
    const json_t *value = json_object_get(model, name);
    if (absent(value) || (json_is_string(value) && json_string_length(value) == 0))
        return STATUS_OK;
    return error_set(error, STATUS_UNIMPLEMENTED, "model.%s: must be null or empty", name);
}

enum status fields_model(const json_t *model, struct error *error)
{
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix",
                                        "unk_token"};
    static const char *const off[] = {"byte_fallback", "ignore_merges"};
    if (!json_is_object(model))
        return error_set(error, STATUS_CORRUPT, "model: must be an object");
    if (!type_is(model, "BPE"))
        return unsupported(error, "model.type", json_object_get(model, "type"));
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof empty / sizeof *empty; ++i)
        status = field_empty(model, empty[i], error);
    for (size_t i = 0; status == STATUS_OK && i < sizeof off / sizeof *off; ++i)
        status = field_flag(model, "model", off[i], false, error);
    const json_t *dropout = json_object_get(model, "dropout");
    if (status == STATUS_OK && !absent(dropout) && json_number_value(dropout) != 0.0)
        status = error_set(error, STATUS_UNIMPLEMENTED, "model.dropout: must be null or 0");
    return status;
}
