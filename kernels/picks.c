#include "kernels/picks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char heading[] = "jetd products 1\non ";
enum { EXTENT_MAX = 1 << 30, FORM_MAX = 99 };

static bool same_product(const struct pick *a, const struct pick *b)
{
    return a->columns == b->columns && a->depth == b->depth && a->row_class == b->row_class &&
           a->float_out == b->float_out && a->bias == b->bias;
}

const struct pick *picks_find(const struct picks *picks, const struct pick *like)
{
    for (int i = 0; i < picks->count; i++)
        if (same_product(&picks->pick[i], like))
            return &picks->pick[i];
    return NULL;
}

bool picks_add(struct picks *picks, const struct pick *pick)
{
    struct pick *place = (struct pick *)picks_find(picks, pick);
    if (place == NULL && picks->count == PICKS_MAX)
        return false;
    if (place == NULL)
        place = &picks->pick[picks->count++];
    *place = *pick;
    return true;
}

/* ---- text --------------------------------------------------------------------------------- */

struct scan {
    const char *at, *end;
};

static bool take(struct scan *scan, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(scan->end - scan->at) < length || memcmp(scan->at, word, length) != 0)
        return false;
    scan->at += length;
    return true;
}

/* Digits without a needless zero, at most `most`. */
static bool take_number(struct scan *scan, int least, int most, int *number)
{
    const char *begin = scan->at;
    int64_t value = 0;
    for (; scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9'; scan->at++) {
        value = value * 10 + (*scan->at - '0');
        if (value > most)
            return false;
    }
    *number = (int)value;
    return scan->at > begin && (*begin != '0' || scan->at == begin + 1) && value >= least;
}

static bool take_hex(struct scan *scan, unsigned char *bytes, int count)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 2 * count; i++, scan->at++) {
        const char *digit =
            scan->at < scan->end && *scan->at != '\0' ? strchr(digits, *scan->at) : NULL;
        if (digit == NULL)
            return false;
        bytes[i / 2] = (unsigned char)(bytes[i / 2] << 4 | (digit - digits));
    }
    return true;
}

/* "yes" or "no". */
static bool take_either(struct scan *scan, const char *yes, const char *no, bool *answer)
{
    *answer = take(scan, yes);
    return *answer || take(scan, no);
}

static bool take_pick(struct scan *scan, struct pick *pick)
{
    *pick = (struct pick){.form = -1};
    if (!take_number(scan, 1, EXTENT_MAX, &pick->columns) || !take(scan, " ") ||
        !take_number(scan, 1, EXTENT_MAX, &pick->depth) || !take(scan, " ") ||
        !take_number(scan, 1, EXTENT_MAX, &pick->row_class) || !take(scan, " ") ||
        !take_either(scan, "f32 ", "act ", &pick->float_out) ||
        !take_either(scan, "bias ", "none ", &pick->bias))
        return false;
    bool right = take(scan, "form ")
                     ? take_number(scan, 0, FORM_MAX, &pick->form)
                     : take(scan, "algorithm ") && take_hex(scan, pick->algorithm, PICK_BYTES);
    return right && take(scan, "\n");
}

static bool take_key(struct scan *scan, char *key)
{
    size_t length = 0;
    for (; scan->at < scan->end && *scan->at >= ' ' && *scan->at <= '~'; scan->at++) {
        if (length == PICKS_KEY_MAX - 1)
            return false;
        key[length++] = *scan->at;
    }
    key[length] = '\0';
    return length > 0 && take(scan, "\n");
}

enum status picks_parse(const char *text, size_t length, struct picks *picks, struct error *error)
{
    struct scan scan = {text, text + length};
    struct pick pick;
    picks->count = 0;
    if (!take(&scan, heading) || !take_key(&scan, picks->key))
        return error_set(error, STATUS_CORRUPT, "not a file of choices of this version");
    for (int line = 3; scan.at < scan.end; line++) {
        if (!take_pick(&scan, &pick))
            return error_set(error, STATUS_CORRUPT, "line %d is not a choice", line);
        if (picks_find(picks, &pick) != NULL)
            return error_set(error, STATUS_CORRUPT, "line %d: a product's second choice", line);
        if (!picks_add(picks, &pick))
            return error_set(error, STATUS_CORRUPT, "line %d: more than %d choices", line,
                             PICKS_MAX);
    }
    return STATUS_OK;
}

/* A line has 3 numbers of at most 10 digits, 27 letters and blanks, and 2 hex digits a byte. */
_Static_assert(PICKS_MAX *(3 * 10 + 27 + 2 * PICK_BYTES) + PICKS_KEY_MAX + 64 <= PICKS_TEXT_MAX,
               "room for every line");

size_t picks_print(const struct picks *picks, char *out)
{
    char *at = out + sprintf(out, "%s%s\n", heading, picks->key);
    for (int i = 0; i < picks->count; i++) {
        const struct pick *pick = &picks->pick[i];
        at += sprintf(at, "%d %d %d %s %s ", pick->columns, pick->depth, pick->row_class,
                      pick->float_out ? "f32" : "act", pick->bias ? "bias" : "none");
        if (pick->form >= 0)
            at += sprintf(at, "form %d", pick->form);
        else
            at += sprintf(at, "algorithm ");
        for (int b = 0; pick->form < 0 && b < PICK_BYTES; b++)
            at += sprintf(at, "%02x", pick->algorithm[b]);
        at += sprintf(at, "\n");
    }
    return (size_t)(at - out);
}

/* ---- file --------------------------------------------------------------------------------- */

/* Up to PICKS_TEXT_MAX bytes and one more, which says that there is too much. */
static enum status read_text(int file, char *text, size_t *length, struct error *error)
{
    struct stat about;
    if (fstat(file, &about) != 0 || !S_ISREG(about.st_mode))
        return error_set(error, STATUS_IO, "not a regular file");
    for (*length = 0; *length <= PICKS_TEXT_MAX;) {
        ssize_t got = read(file, text + *length, PICKS_TEXT_MAX + 1 - *length);
        if (got < 0)
            return error_set(error, STATUS_IO, "%s", strerror(errno));
        if (got == 0)
            return STATUS_OK;
        *length += (size_t)got;
    }
    return error_set(error, STATUS_CORRUPT, "larger than %d bytes", PICKS_TEXT_MAX);
}

enum status picks_load(const char *path, struct picks *picks, struct error *error)
{
    size_t length = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0 && errno == ENOENT)
        return STATUS_NOT_FOUND;
    if (file < 0)
        return error_set(error, STATUS_IO, "%s: %s", path, strerror(errno));
    char *text = malloc(PICKS_TEXT_MAX + 1);
    enum status status = text == NULL ? error_set(error, STATUS_NO_MEMORY, "out of memory")
                                      : read_text(file, text, &length, error);
    if (status == STATUS_OK)
        status = picks_parse(text, length, picks, error);
    close(file);
    free(text);
    return status == STATUS_OK ? status : error_prefix(error, "%s", path);
}

static bool write_all(int file, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t put = write(file, text, length);
        if (put <= 0)
            return false;
        text += put;
        length -= (size_t)put;
    }
    return true;
}

enum status picks_save(const char *path, const struct picks *picks, struct error *error)
{
    size_t room = strlen(path) + sizeof ".XXXXXX";
    char *text = malloc(PICKS_TEXT_MAX), *beside = malloc(room);
    enum status status = STATUS_NO_MEMORY;
    int file = -1;
    if (text != NULL && beside != NULL) {
        snprintf(beside, room, "%s.XXXXXX", path);
        file = mkstemp(beside);
        bool written = file >= 0 && write_all(file, text, picks_print(picks, text));
        written = file >= 0 && close(file) == 0 && written;
        status = written && rename(beside, path) == 0 ? STATUS_OK : STATUS_IO;
    }
    if (status != STATUS_OK)
        error_set(error, status, "%s: %s", path, strerror(errno));
    if (status != STATUS_OK && file >= 0)
        (void)unlink(beside);
    free(text);
    free(beside);
    return status;
}

/* ---- place -------------------------------------------------------------------------------- */

/* path += name, with a new folder's rights. */
static bool enter(char *path, size_t room, const char *name)
{
    size_t length = strlen(path);
    int more = snprintf(path + length, room - length, "%s", name);
    return more >= 0 && (size_t)more < room - length && (mkdir(path, 0700) == 0 || errno == EEXIST);
}

const char *picks_place(char *path, size_t room)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool given = cache != NULL && cache[0] == '/';
    path[0] = '\0';
    if (!given && (home == NULL || home[0] != '/'))
        return NULL;
    if (!enter(path, room, given ? cache : home) || (!given && !enter(path, room, "/.cache")) ||
        !enter(path, room, "/jetd"))
        return NULL;
    size_t length = strlen(path);
    int more = snprintf(path + length, room - length, "/products");
    return more >= 0 && (size_t)more < room - length ? path : NULL;
}
