/* NFC by utf8proc's tables. utf8proc's own ordering of combining marks is quadratic, so runs of
 * marks are sorted here. */
#include <stdlib.h>
#include <utf8proc.h>

#include "daemon/tokenizer_private.h"
#include "daemon/unicode_tables.h"
#include "daemon/utf8.h"

enum { NFC_OPTIONS = UTF8PROC_STABLE | UTF8PROC_COMPOSE, DECOMPOSED_MAX = 16 };

struct codes {
    utf8proc_int32_t *values;
    size_t count, room;
};

static bool code_inert(uint32_t code)
{
    size_t low = 0, high = sizeof unicode_inert / sizeof *unicode_inert;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > unicode_inert[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof unicode_inert / sizeof *unicode_inert && code >= unicode_inert[low].first;
}

static bool codes_reserve(struct codes *codes, size_t more)
{
    if (codes->room - codes->count >= more)
        return true;
    size_t room = codes->room * 2 + more + 256;
    if (room > SIZE_MAX / sizeof *codes->values)
        return false;
    utf8proc_int32_t *values = realloc(codes->values, room * sizeof *values);
    if (values == NULL)
        return false;
    codes->values = values;
    codes->room = room;
    return true;
}

static int code_class(utf8proc_int32_t code)
{
    return utf8proc_get_property(code)->combining_class;
}

/* A stable sort of one run of marks by combining class: 256 classes, so by counting. */
static bool run_sort(utf8proc_int32_t *run, size_t count)
{
    if (count <= 16) {
        for (size_t i = 1; i < count; ++i) {
            utf8proc_int32_t code = run[i];
            size_t at = i;
            for (; at > 0 && code_class(run[at - 1]) > code_class(code); --at)
                run[at] = run[at - 1];
            run[at] = code;
        }
        return true;
    }
    size_t starts[257] = {0};
    utf8proc_int32_t *sorted = malloc(count * sizeof *sorted);
    if (sorted == NULL)
        return false;
    for (size_t i = 0; i < count; ++i)
        ++starts[(code_class(run[i]) & 255) + 1];
    for (int i = 0; i < 256; ++i)
        starts[i + 1] += starts[i];
    for (size_t i = 0; i < count; ++i)
        sorted[starts[code_class(run[i]) & 255]++] = run[i];
    for (size_t i = 0; i < count; ++i)
        run[i] = sorted[i];
    free(sorted);
    return true;
}

static bool codes_order(struct codes *codes)
{
    for (size_t i = 0; i < codes->count;) {
        size_t end = i;
        while (end < codes->count && code_class(codes->values[end]) != 0)
            ++end;
        if (end - i > 1 && !run_sort(codes->values + i, end - i))
            return false;
        i = end + 1;
    }
    return true;
}

/* Composes what was decomposed so far, appends it and starts anew. */
static bool codes_flush(struct codes *codes, struct text *text)
{
    if (codes->count == 0)
        return true;
    if (!codes_order(codes))
        return false;
    utf8proc_ssize_t count = utf8proc_normalize_utf32(codes->values, (utf8proc_ssize_t)codes->count,
                                                      (utf8proc_option_t)NFC_OPTIONS);
    if (count < 0 || !text_reserve(text, (size_t)count * 4))
        return false;
    for (utf8proc_ssize_t i = 0; i < count; ++i)
        text->length += utf8_write((uint32_t)codes->values[i], text->bytes + text->length);
    codes->count = 0;
    return true;
}

static bool codes_add(struct codes *codes, uint32_t code)
{
    if (!codes_reserve(codes, DECOMPOSED_MAX))
        return false;
    int boundary = 0;
    utf8proc_ssize_t count =
        utf8proc_decompose_char((utf8proc_int32_t)code, codes->values + codes->count,
                                DECOMPOSED_MAX, (utf8proc_option_t)NFC_OPTIONS, &boundary);
    if (count < 0 || count > DECOMPOSED_MAX)
        return false;
    codes->count += (size_t)count;
    return true;
}

static bool codes_text(struct codes *codes, const char *from, size_t length, struct text *text)
{
    for (size_t at = 0, taken; at < length; at += taken) {
        utf8_next(from + at, length - at, &taken);
        uint32_t code = utf8_code(from + at, taken);
        if (code_inert(code)) {
            if (!codes_flush(codes, text) || !text_append(text, from + at, taken))
                return false;
        } else if (!codes_add(codes, code)) {
            return false;
        }
    }
    return codes_flush(codes, text);
}

/* Nothing below U+0300 composes or moves. */
static size_t plain_bytes(const char *from, size_t length)
{
    size_t at = 0;
    while (at < length && (unsigned char)from[at] < 0xCC)
        ++at;
    return at;
}

enum status nfc_append(const char *from, size_t length, struct text *text, struct error *error)
{
    size_t plain = plain_bytes(from, length);
    if (plain < length) /* the character before a mark takes part in its composition */
        while (plain > 0) {
            --plain;
            if (((unsigned char)from[plain] & 0xC0) != 0x80)
                break;
        }
    struct codes codes = {0};
    bool fine =
        text_append(text, from, plain) && codes_text(&codes, from + plain, length - plain, text);
    free(codes.values);
    return fine ? STATUS_OK : error_set(error, STATUS_RESOURCE_EXHAUSTED, "text: out of memory");
}
