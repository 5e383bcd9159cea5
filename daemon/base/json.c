#include "daemon/base/json.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/file.h"

struct document {
    const char *file;
    json_t *root;
};

/* ---- parse -------------------------------------------------------------------------------- */

/* Counts containers and separators outside strings: an upper bound on what the parser will build,
 * known before it builds anything. */
static enum status scan(const char *file, const char *text, size_t length,
                        struct document_limits limits, struct error *error)
{
    size_t depth = 0, values = 1;
    bool quoted = false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
            continue;
        }
        if (c == '"')
            quoted = true;
        else if (c == '{' || c == '[')
            depth++, values++;
        else if ((c == '}' || c == ']') && depth > 0)
            depth--;
        else if (c == ',')
            values++;
        if (depth > limits.depth)
            return error_set(error, STATUS_CORRUPT,
                             "%s: JSON nested deeper than %zu levels at offset %zu", file,
                             limits.depth, i);
        if (values > limits.values)
            return error_set(error, STATUS_CORRUPT,
                             "%s: JSON of more than %zu values at offset %zu", file, limits.values,
                             i);
    }
    return STATUS_OK;
}

bool text_is_lfs_pointer(const char *text, size_t length)
{
    static const char start[] = "version https://git-lfs";
    return length >= sizeof start - 1 && memcmp(text, start, sizeof start - 1) == 0;
}

enum status document_parse(const char *file, const char *text, size_t length,
                           struct document_limits limits, struct document **json,
                           struct error *error)
{
    if (length > limits.bytes)
        return error_set(error, STATUS_CORRUPT, "%s: %zu bytes, more than the %zu allowed", file,
                         length, limits.bytes);
    if (text_is_lfs_pointer(text, length))
        return error_set(error, STATUS_CORRUPT,
                         "%s: a git-LFS pointer, not the file itself; fetch it (git lfs pull)",
                         file);
    enum status status = scan(file, text, length, limits, error);
    if (status != STATUS_OK)
        return status;
    struct document *made = malloc(sizeof *made);
    if (made == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory", file);
    json_error_t cause;
    made->file = file;
    made->root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &cause);
    if (made->root == NULL) {
        free(made);
        bool memory = json_error_code(&cause) == json_error_out_of_memory;
        return error_set(error, memory ? STATUS_NO_MEMORY : STATUS_CORRUPT,
                         "%s: line %d column %d (offset %d): %s", file, cause.line, cause.column,
                         cause.position, cause.text);
    }
    *json = made;
    return STATUS_OK;
}

enum status document_load(const char *path, struct document_limits limits, struct document **json,
                          struct error *error)
{
    char *text;
    size_t length;
    enum status status = file_read(path, limits.bytes, &text, &length, error);
    if (status != STATUS_OK)
        return status;
    status = document_parse(path, text, length, limits, json, error);
    free(text);
    return status;
}

void document_free(struct document *json)
{
    if (json == NULL)
        return;
    json_decref(json->root);
    free(json);
}

/* ---- places ------------------------------------------------------------------------------- */

struct field document_root(const struct document *json)
{
    return (struct field){.file = json->file, .value = json->root};
}

struct field field_member(struct field at, const char *key)
{
    struct field member = {.file = at.file};
    snprintf(member.path, sizeof member.path, "%.90s%s%.60s", at.path, at.path[0] ? "." : "", key);
    json_t *value = json_object_get(at.value, key);
    member.value = json_is_null(value) ? NULL : value;
    return member;
}

struct field field_element(struct field at, size_t index)
{
    struct field element = {.file = at.file, .value = json_array_get(at.value, index)};
    snprintf(element.path, sizeof element.path, "%.130s[%zu]", at.path, index);
    return element;
}

bool field_is_object(struct field at)
{
    return at.value != NULL && at.value->type == JSON_OBJECT;
}

bool field_is_array(struct field at)
{
    return at.value != NULL && at.value->type == JSON_ARRAY;
}

bool field_is_string(struct field at)
{
    return at.value != NULL && at.value->type == JSON_STRING;
}

size_t field_size(struct field at)
{
    return field_is_object(at)  ? json_object_size(at.value)
           : field_is_array(at) ? json_array_size(at.value)
                                : 0;
}

/* ---- typed values ------------------------------------------------------------------------- */

static const char *type_name(struct field at)
{
    if (at.value == NULL)
        return "missing";
    switch (at.value->type) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

static enum status mistyped(struct field at, const char *wanted, struct error *error)
{
    const char *path = at.path[0] ? at.path : "the text";
    if (at.value == NULL)
        return error_set(error, STATUS_CONFIG, "%s: %s is missing (%s)", at.file, path, wanted);
    return error_set(error, STATUS_CONFIG, "%s: %s is %s, not %s", at.file, path, type_name(at),
                     wanted);
}

enum status field_integer(struct field at, int64_t low, int64_t high, int64_t *value,
                          struct error *error)
{
    if (at.value == NULL || at.value->type != JSON_INTEGER)
        return mistyped(at, "an integer", error);
    int64_t found = json_integer_value(at.value);
    if (found < low || found > high)
        return error_set(error, STATUS_CONFIG, "%s: %s is %lld, outside %lld to %lld", at.file,
                         at.path, (long long)found, (long long)low, (long long)high);
    *value = found;
    return STATUS_OK;
}

enum status field_int(struct field at, int low, int high, int *value, struct error *error)
{
    int64_t wide = 0;
    enum status status = field_integer(at, low, high, &wide, error);
    if (status == STATUS_OK)
        *value = (int)wide;
    return status;
}

/* strtod alone would take "0x1p3", "inf", "nan" and leading blanks. */
static bool text_number(const char *text, double *value)
{
    if (text[0] == '\0' || strspn(text, "+-.0123456789eE") != strlen(text))
        return false;
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == '\0';
}

enum status field_number(struct field at, double low, double high, double *value,
                         struct error *error)
{
    double found;
    if (field_is_string(at)) {
        if (!text_number(json_string_value(at.value), &found))
            return error_set(error, STATUS_CONFIG, "%s: %s is \"%.40s\", not a number", at.file,
                             at.path, json_string_value(at.value));
    } else if (at.value != NULL && json_is_number(at.value)) {
        found = json_number_value(at.value);
    } else {
        return mistyped(at, "a number", error);
    }
    if (!isfinite(found) || found < low || found > high)
        return error_set(error, STATUS_CONFIG, "%s: %s is %g, outside %g to %g", at.file, at.path,
                         found, low, high);
    *value = found;
    return STATUS_OK;
}

enum status field_bool(struct field at, bool *value, struct error *error)
{
    if (at.value == NULL || !json_is_boolean(at.value))
        return mistyped(at, "true or false", error);
    *value = json_is_true(at.value);
    return STATUS_OK;
}

enum status field_string(struct field at, const char **value, struct error *error)
{
    if (!field_is_string(at))
        return mistyped(at, "a string", error);
    *value = json_string_value(at.value);
    return STATUS_OK;
}

enum status field_expect_object(struct field at, struct error *error)
{
    return field_is_object(at) ? STATUS_OK : mistyped(at, "an object", error);
}

enum status field_each(struct field at, field_visit *visit, void *context, struct error *error)
{
    enum status status = field_expect_object(at, error);
    if (status != STATUS_OK)
        return status;
    /* The iterator functions take a mutable object, but only read it. */
    json_t *object = (json_t *)at.value;
    for (void *i = json_object_iter(object); i != NULL; i = json_object_iter_next(object, i)) {
        const char *key = json_object_iter_key(i);
        struct field member = {.file = at.file, .value = json_object_iter_value(i)};
        snprintf(member.path, sizeof member.path, "%.90s%s%.60s", at.path, at.path[0] ? "." : "",
                 key);
        status = visit(context, key, member, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}
