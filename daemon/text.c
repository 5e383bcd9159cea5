#include "daemon/text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"

bool text_reserve(struct text *text, size_t more)
{
    uint64_t need;
    if (!checked_add(text->length, more, &need) || need > SIZE_MAX / 2)
        return false;
    if (need <= text->room)
        return true;
    size_t room = text->room * 2 > need ? text->room * 2 : (size_t)need + 64;
    char *bytes = realloc(text->bytes, room);
    if (bytes == NULL)
        return false;
    text->bytes = bytes;
    text->room = room;
    return true;
}

bool text_append(struct text *text, const char *bytes, size_t length)
{
    if (!text_reserve(text, length))
        return false;
    if (length > 0)
        memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    return true;
}

void text_free(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}
