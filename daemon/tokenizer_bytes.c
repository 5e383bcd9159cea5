#include <string.h>

#include "daemon/tokenizer_private.h"
#include "daemon/utf8.h"

/* GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, the other 68 bytes, in
 * order, for U+0100 and on. */
static bool byte_printable(uint32_t byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
           (byte >= 0xAE && byte <= 0xFF);
}

static int code_byte(uint32_t code)
{
    if (code < 0x100)
        return byte_printable(code) ? (int)code : -1;
    if (code >= 0x100 + 68)
        return -1;
    uint32_t left = code - 0x100, byte = 0;
    for (;; ++byte)
        if (!byte_printable(byte) && left-- == 0)
            return (int)byte;
}

size_t bytes_from_text(const char *text, size_t length, char *bytes, bool *outside)
{
    size_t count = 0, at = 0, taken;
    *outside = false;
    while (at < length) {
        int byte = -1;
        if (utf8_next(text + at, length - at, &taken) == UTF8_WHOLE)
            byte = code_byte(utf8_code(text + at, taken));
        if (byte < 0) {
            *outside = true;
            memcpy(bytes, text, length);
            return length;
        }
        bytes[count++] = (char)byte;
        at += taken;
    }
    return count;
}
