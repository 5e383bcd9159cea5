#include "daemon/keys.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/file.h"

enum { FILE_BYTES_MAX = 1 << 20 };

static enum status check_key(const char *path, int line, const char *key, struct error *error)
{
    if (strlen(key) > KEY_BYTES_MAX)
        return error_set(error, STATUS_CONFIG, "%s: line %d: a key has at most %d bytes", path,
                         line, KEY_BYTES_MAX);
    for (const char *at = key; *at != '\0'; at++)
        if (*at <= ' ' || *at > '~')
            return error_set(error, STATUS_CONFIG,
                             "%s: line %d: a key holds printable ASCII without spaces", path, line);
    return STATUS_OK;
}

/* Splits the text in place. */
static enum status split(const char *path, struct keys *keys, const char **list,
                         struct error *error)
{
    int line = 0;
    for (char *at = keys->text, *next; at != NULL; at = next) {
        next = strchr(at, '\n');
        if (next != NULL)
            *next++ = '\0';
        line++;
        size_t length = strlen(at);
        if (length > 0 && at[length - 1] == '\r')
            at[length - 1] = '\0';
        if (at[0] == '\0' || at[0] == '#')
            continue;
        if (keys->count == KEYS_MAX)
            return error_set(error, STATUS_CONFIG, "%s: line %d: more than %d keys", path, line,
                             KEYS_MAX);
        enum status status = check_key(path, line, at, error);
        if (status != STATUS_OK)
            return status;
        list[keys->count++] = at;
    }
    if (keys->count == 0)
        return error_set(error, STATUS_CONFIG, "%s: there is no key in it", path);
    return STATUS_OK;
}

enum status keys_load(const char *path, struct keys *keys, struct error *error)
{
    *keys = (struct keys){0};
    if (path == NULL)
        return STATUS_OK;
    size_t length;
    struct error cause = {0};
    if (file_read(path, FILE_BYTES_MAX, &keys->text, &length, &cause) != STATUS_OK)
        return error_set(error, STATUS_CONFIG, "%s", cause.text);
    const char **list = calloc(KEYS_MAX, sizeof *list);
    keys->key = list;
    enum status status = list == NULL
                             ? error_set(error, STATUS_NO_MEMORY, "%s: out of memory", path)
                             : split(path, keys, list, error);
    if (status != STATUS_OK)
        keys_free(keys);
    return status;
}

void keys_free(struct keys *keys)
{
    free((void *)keys->key);
    free(keys->text);
    *keys = (struct keys){0};
}
