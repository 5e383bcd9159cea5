/* One JSON object a line on standard output. */
#ifndef JETD_CTL_JSON_LINE_H
#define JETD_CTL_JSON_LINE_H

#include <jansson.h>

#include "daemon/ctl/ctl.h"

/* Prints and releases. */
void ctl_print_json(json_t *object);
json_t *ctl_json_text(ProtobufCBinaryData text);
json_t *ctl_json_ids(const uint32_t *ids, size_t count);

#endif
