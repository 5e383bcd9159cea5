/* JSON as Python's json.dumps(ensure_ascii=False) writes it: what the template's `tojson` gives. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/chat_json.h"

enum { DEPTH_MAX = 64 };

static bool append(struct text *text, const char *string)
{
    return text_append(text, string, strlen(string));
}

static bool string_append(struct text *text, const char *string, size_t length)
{
    static const char named[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    bool fine = append(text, "\"");
    for (size_t i = 0; fine && i < length; ++i) {
        unsigned char byte = (unsigned char)string[i];
        const char *found = byte == 0 ? NULL : strchr(named, byte);
        char escape[8] = {'\\', 0};
        if (found != NULL)
            escape[1] = letters[found - named];
        else if (byte < 0x20)
            snprintf(escape, sizeof escape, "\\u%04x", byte);
        fine =
            found != NULL || byte < 0x20 ? append(text, escape) : text_append(text, string + i, 1);
    }
    return fine && append(text, "\"");
}

/* Python's repr of a float: the fewest digits that read back the same, with an exponent from 1e16
 * and below 1e-4. */
static bool real_append(struct text *text, double value)
{
    char digits[40], out[64];
    int precision = 0;
    do
        snprintf(digits, sizeof digits, "%.*e", precision, value);
    while (strtod(digits, NULL) != value && ++precision < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (value != 0.0 && (exponent < -4 || exponent >= 16))
        snprintf(out, sizeof out, "%s", digits);
    else if (precision <= exponent)
        snprintf(out, sizeof out, "%.1f", value);
    else
        snprintf(out, sizeof out, "%.*f", precision - exponent, value);
    return append(text, out);
}

static enum status value_append(const json_t *value, int depth, struct text *text,
                                struct error *error);

static enum status object_append(const json_t *object, int depth, struct text *text,
                                 struct error *error)
{
    bool fine = append(text, "{");
    bool first = true;
    /* jansson's iterators take a mutable object, and only read it */
    json_t *members = (json_t *)object;
    for (void *at = json_object_iter(members); fine && at != NULL;
         at = json_object_iter_next(members, at), first = false) {
        const char *key = json_object_iter_key(at);
        fine = (first || append(text, ", ")) && string_append(text, key, strlen(key)) &&
               append(text, ": ");
        if (!fine)
            break;
        enum status status = value_append(json_object_iter_value(at), depth + 1, text, error);
        if (status != STATUS_OK)
            return status;
    }
    return fine && append(text, "}") ? STATUS_OK
                                     : error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status array_append(const json_t *array, int depth, struct text *text,
                                struct error *error)
{
    bool fine = append(text, "[");
    for (size_t i = 0; fine && i < json_array_size(array); ++i) {
        fine = i == 0 || append(text, ", ");
        if (!fine)
            break;
        enum status status = value_append(json_array_get(array, i), depth + 1, text, error);
        if (status != STATUS_OK)
            return status;
    }
    return fine && append(text, "]") ? STATUS_OK
                                     : error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

static enum status value_append(const json_t *value, int depth, struct text *text,
                                struct error *error)
{
    char number[32];
    bool fine;
    if (depth > DEPTH_MAX)
        return error_set(error, STATUS_INVALID_ARGUMENT, "nested deeper than %d", DEPTH_MAX);
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return object_append(value, depth, text, error);
    case JSON_ARRAY:
        return array_append(value, depth, text, error);
    case JSON_STRING:
        fine = string_append(text, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        fine = append(text, number);
        break;
    case JSON_REAL:
        fine = real_append(text, json_real_value(value));
        break;
    default:
        fine = append(text, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
    return fine ? STATUS_OK : error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
}

enum status chat_json_append(const json_t *value, struct text *text, struct error *error)
{
    return value_append(value, 0, text, error);
}
