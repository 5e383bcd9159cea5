/* Appends a JSON value as Python's json.dumps(ensure_ascii=False) writes it. INVALID_ARGUMENT where
 * it is nested too deep. */
#ifndef JETD_DAEMON_CHAT_JSON_H
#define JETD_DAEMON_CHAT_JSON_H

#include <jansson.h>

#include "daemon/tokenizer_private.h"

enum status chat_json_append(const json_t *value, struct text *text, struct error *error);

#endif
