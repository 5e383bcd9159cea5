/* Bytes that grow. */
#ifndef JETD_DAEMON_TEXT_H
#define JETD_DAEMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *bytes;
    size_t length, room;
};

bool text_reserve(struct text *text, size_t more); /* false: out of memory */
bool text_append(struct text *text, const char *bytes, size_t length);
void text_free(struct text *text);

#endif
