#include "daemon/ctl/json_line.h"

void ctl_print_json(json_t *object)
{
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    fflush(stdout); /* a reader at the other end of a pipe waits for this line */
    json_decref(object);
}

json_t *ctl_json_text(ProtobufCBinaryData text)
{
    json_t *made = json_stringn(text.len ? (const char *)text.data : "", text.len);
    return made ? made : json_null();
}

json_t *ctl_json_ids(const uint32_t *ids, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}
