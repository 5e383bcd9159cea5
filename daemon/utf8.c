#include "daemon/utf8.h"

#include "daemon/tokenizer.h"

/* Bytes of the character that `lead` starts (0: none), and the bounds of its second byte. */
static size_t lead_bytes(unsigned char lead, unsigned char *low, unsigned char *high)
{
    *low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

enum utf8_kind utf8_next(const char *text, size_t length, size_t *taken)
{
    unsigned char low, high;
    size_t bytes = lead_bytes((unsigned char)text[0], &low, &high);
    *taken = 1;
    if (bytes == 0)
        return UTF8_BROKEN;
    for (; *taken < bytes; ++*taken) {
        if (*taken == length)
            return UTF8_PARTIAL;
        unsigned char byte = (unsigned char)text[*taken];
        if (byte < low || byte > high)
            return UTF8_BROKEN;
        low = 0x80;
        high = 0xBF;
    }
    return UTF8_WHOLE;
}

uint32_t utf8_code(const char *text, size_t length)
{
    static const unsigned char mask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t code = (unsigned char)text[0] & mask[length];
    for (size_t i = 1; i < length; ++i)
        code = code << 6 | ((unsigned char)text[i] & 0x3F);
    return code;
}

size_t utf8_write(uint32_t code, char *text)
{
    if (code < 0x80) {
        text[0] = (char)code;
        return 1;
    }
    size_t bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = bytes - 1; i > 0; --i, code >>= 6)
        text[i] = (char)(0x80 | (code & 0x3F));
    text[0] = (char)(lead[bytes] | code);
    return bytes;
}

size_t utf8_invalid(const char *text, size_t length)
{
    size_t at = 0, taken;
    while (at < length) {
        if ((unsigned char)text[at] < 0x80) {
            ++at;
            continue;
        }
        if (utf8_next(text + at, length - at, &taken) != UTF8_WHOLE)
            return at;
        at += taken;
    }
    return length;
}
