/* UTF-8 by the Unicode standard's table 3-7: no overlong forms, no surrogates. Broken input is
 * replaced by maximal subparts, as Rust's from_utf8_lossy does. */
#ifndef JETD_DAEMON_UTF8_H
#define JETD_DAEMON_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT "\xEF\xBF\xBD"

enum utf8_kind {
    UTF8_WHOLE,   /* a character of *length bytes */
    UTF8_BROKEN,  /* *length >= 1 bytes that one U+FFFD stands for */
    UTF8_PARTIAL, /* all bytes are the beginning of a character */
};

/* What `text` [length >= 1] starts with. */
enum utf8_kind utf8_next(const char *text, size_t length, size_t *taken);
/* The code point of a whole character. */
uint32_t utf8_code(const char *text, size_t length);
/* Bytes written to `text` [4]; `code` is a scalar value. */
size_t utf8_write(uint32_t code, char *text);

#endif
