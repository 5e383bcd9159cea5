#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/ctl/ctl.h"

static char *read_stream(FILE *file, const char *name, size_t *length)
{
    size_t used = 0, room = 4096;
    char *text = malloc(room);
    while (text) {
        size_t got = fread(text + used, 1, room - used - 1, file);
        used += got;
        if (!got)
            break;
        if (room - used > 1)
            continue;
        room *= 2;
        char *longer = realloc(text, room);
        if (!longer)
            free(text);
        text = longer;
    }
    if (text && ferror(file)) {
        fprintf(stderr, "jetctl: %s: %s\n", name, strerror(errno));
        free(text);
        return NULL;
    }
    if (!text) {
        fputs("jetctl: out of memory\n", stderr);
        return NULL;
    }
    text[used] = 0;
    *length = used;
    return text;
}

char *ctl_read_text(const struct ctl_settings *settings, size_t *length)
{
    if (*settings->text) {
        *length = strlen(settings->text);
        char *copy = strdup(settings->text);
        if (!copy)
            fputs("jetctl: out of memory\n", stderr);
        return copy;
    }
    if (!*settings->file || strcmp(settings->file, "-") == 0) {
        if (!*settings->file && isatty(STDIN_FILENO))
            fputs("reading the text from the terminal; end it with Ctrl-D\n", stderr);
        return read_stream(stdin, "standard input", length);
    }
    FILE *file = fopen(settings->file, "re");
    if (!file) {
        fprintf(stderr, "jetctl: %s: %s\n", settings->file, strerror(errno));
        return NULL;
    }
    char *text = read_stream(file, settings->file, length);
    fclose(file);
    return text;
}

uint32_t *ctl_read_ids(const char *text, size_t *count)
{
    uint32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof *ids);
    size_t n = 0;
    const char *at = text;
    while (ids) {
        while (*at == ',' || isspace((unsigned char)*at))
            at++;
        if (!*at)
            break;
        char *end;
        errno = 0;
        unsigned long long id = strtoull(at, &end, 10);
        if (end == at || !isdigit((unsigned char)*at) || errno || id > UINT32_MAX) {
            fprintf(stderr, "jetctl: no list of ids: ...%.40s\n", at);
            free(ids);
            return NULL;
        }
        ids[n++] = (uint32_t)id;
        at = end;
    }
    if (!ids)
        fputs("jetctl: out of memory\n", stderr);
    *count = n;
    return ids;
}

bool ctl_read_prompt(const struct ctl_settings *settings, struct ctl_prompt *prompt)
{
    *prompt = (struct ctl_prompt){.ids = JET__V1__TOKEN_IDS__INIT};
    if (*settings->ids)
        prompt->ids.ids = ctl_read_ids(settings->ids, &prompt->ids.n_ids);
    else
        prompt->text = ctl_read_text(settings, &prompt->length);
    return prompt->text || prompt->ids.ids;
}

void ctl_free_prompt(struct ctl_prompt *prompt)
{
    free(prompt->text);
    free(prompt->ids.ids);
}

bool ctl_float(const char *option, const char *text, bool *set, float *value)
{
    char *end;
    *set = *text;
    if (!*text)
        return true;
    *value = strtof(text, &end);
    if (end != text && !*end)
        return true;
    fprintf(stderr, "jetctl: --%s %s: not a number\n", option, text);
    return false;
}

bool ctl_unsigned(const char *option, const char *text, uint64_t most, bool *set, uint64_t *value)
{
    char *end;
    *set = *text;
    if (!*text)
        return true;
    errno = 0;
    *value = strtoull(text, &end, 10);
    if (isdigit((unsigned char)*text) && !*end && !errno && *value <= most)
        return true;
    fprintf(stderr, "jetctl: --%s %s: not a number from 0 to %llu\n", option, text,
            (unsigned long long)most);
    return false;
}
