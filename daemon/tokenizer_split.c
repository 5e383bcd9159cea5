/* The split expression of a tokenizer.json by PCRE2. Its character classes are rewritten so that
 * they mean what they mean to HF: \s and \S become explicit sets (PCRE2's own include U+180E),
 * \p{L} and \p{N} gain what newer Unicode versions added. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_private.h"
#include "daemon/unicode_tables.h"
#include "daemon/utf8.h"

#define SPACES                                                                                     \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"       \
    "\\x{3000}"

/* A match that needs more steps than this is refused: real words need a few. */
enum { MATCH_STEPS = 20 << 20, STACK_START = 32 << 10, STACK_MAX = 1 << 20 };

static bool append(struct text *out, const char *string)
{
    return text_append(out, string, strlen(string));
}

/* `\p{L}` or `\p{N}` with the newer ranges, for use inside a class. */
static bool append_property(struct text *out, const char *name, const struct code_range *ranges,
                            size_t count)
{
    char item[32];
    bool fine = append(out, name);
    for (size_t i = 0; fine && i < count; ++i) {
        snprintf(item, sizeof item, "\\x{%x}-\\x{%x}", ranges[i].first, ranges[i].last);
        fine = append(out, item);
    }
    return fine;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Rewrites one escape at `from` ("\x..."); *taken bytes of it. */
static enum status append_escape(struct text *out, const char *from, size_t length, bool in_class,
                                 size_t *taken, struct error *error)
{
    bool fine = true;
    bool letter = length >= 5 && memcmp(from, "\\p{L}", 5) == 0;
    bool number = length >= 5 && memcmp(from, "\\p{N}", 5) == 0;
    *taken = letter || number ? 5 : 2;
    if (length < 2)
        return error_set(error, STATUS_CORRUPT, "ends in a backslash");
    if (!in_class && (letter || number || from[1] == 's'))
        fine = append(out, "[");
    if (letter)
        fine =
            fine && append_property(out, "\\p{L}", unicode_new_letters, COUNT(unicode_new_letters));
    else if (number)
        fine =
            fine && append_property(out, "\\p{N}", unicode_new_numbers, COUNT(unicode_new_numbers));
    else if (from[1] == 's')
        fine = fine && append(out, SPACES);
    else if (from[1] == 'S' && in_class)
        return error_set(error, STATUS_UNIMPLEMENTED, "\\S inside a class is not supported");
    else if (from[1] == 'S')
        return append(out, "[^" SPACES "]") ? STATUS_OK
                                            : error_set(error, STATUS_NO_MEMORY, "out of memory");
    else
        fine = text_append(out, from, 2);
    if (!in_class && (letter || number || from[1] == 's'))
        fine = fine && append(out, "]");
    return fine ? STATUS_OK : error_set(error, STATUS_NO_MEMORY, "out of memory");
}

static enum status pattern_rewrite(const char *pattern, size_t length, struct text *out,
                                   struct error *error)
{
    bool in_class = false;
    for (size_t at = 0, taken; at < length; at += taken) {
        taken = 1;
        if (pattern[at] == '\\') {
            enum status status =
                append_escape(out, pattern + at, length - at, in_class, &taken, error);
            if (status != STATUS_OK)
                return status;
            continue;
        }
        if (!in_class && pattern[at] == '[')
            in_class = true;
        else if (in_class && pattern[at] == ']')
            in_class = false;
        if (!text_append(out, pattern + at, 1))
            return error_set(error, STATUS_NO_MEMORY, "out of memory");
    }
    return STATUS_OK;
}

enum status split_compile(const char *pattern, size_t length, void **split, struct error *error)
{
    if (length == 0 || length > TOKENIZER_PATTERN_MAX)
        return error_set(error, STATUS_CORRUPT, "%zu bytes, must be 1 to %d", length,
                         TOKENIZER_PATTERN_MAX);
    struct text text = {0};
    enum status status = pattern_rewrite(pattern, length, &text, error);
    if (status == STATUS_OK) {
        int code = 0;
        PCRE2_SIZE offset = 0;
        pcre2_code *compiled =
            pcre2_compile((PCRE2_SPTR)text.bytes, text.length,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
        if (compiled == NULL) {
            PCRE2_UCHAR message[128] = "";
            pcre2_get_error_message(code, message, sizeof message);
            status = error_set(error, STATUS_CORRUPT, "%s", (const char *)message);
        } else {
            /* Without the just-in-time compiler pcre2_match interprets: slower, same result. */
            pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
            *split = compiled;
        }
    }
    text_free(&text);
    return status;
}

void split_free(void *split)
{
    pcre2_code_free(split);
}

struct splitter {
    const pcre2_code *code;
    pcre2_match_context *context;
    pcre2_match_data *match;
    pcre2_jit_stack *stack;
    const char *text;
    size_t length, at;
    size_t match_start, match_end; /* the match found beyond a gap; start < at: none */
    bool pending;
};

struct splitter *splitter_create(const void *split)
{
    struct splitter *splitter = calloc(1, sizeof *splitter);
    if (splitter == NULL)
        return NULL;
    splitter->code = split;
    splitter->context = pcre2_match_context_create(NULL);
    splitter->match = pcre2_match_data_create_from_pattern(splitter->code, NULL);
    splitter->stack = pcre2_jit_stack_create(STACK_START, STACK_MAX, NULL);
    if (splitter->context == NULL || splitter->match == NULL) {
        splitter_destroy(splitter);
        return NULL;
    }
    pcre2_set_match_limit(splitter->context, MATCH_STEPS);
    if (splitter->stack != NULL) /* NULL where there is no just-in-time compiler */
        pcre2_jit_stack_assign(splitter->context, NULL, splitter->stack);
    return splitter;
}

void splitter_destroy(struct splitter *splitter)
{
    if (splitter == NULL)
        return;
    pcre2_jit_stack_free(splitter->stack);
    pcre2_match_data_free(splitter->match);
    pcre2_match_context_free(splitter->context);
    free(splitter);
}

void splitter_start(struct splitter *splitter, const char *text, size_t length)
{
    splitter->text = text;
    splitter->length = length;
    splitter->at = 0;
    splitter->pending = false;
}

/* The next match that is not empty, from splitter->at; at the end of the text without one. */
static enum status match_find(struct splitter *splitter, struct error *error)
{
    size_t from = splitter->at;
    while (from < splitter->length) {
        int count =
            pcre2_match(splitter->code, (PCRE2_SPTR)splitter->text, splitter->length, from,
                        PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, splitter->match, splitter->context);
        if (count == PCRE2_ERROR_NOMATCH)
            break;
        if (count < 0)
            return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                             "text: the split expression gave up near byte %zu (%d)", from, count);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(splitter->match);
        if (range[1] > range[0] && range[0] >= from) {
            splitter->match_start = range[0];
            splitter->match_end = range[1];
            return STATUS_OK;
        }
        size_t taken; /* \K can move a match's start: step on by one character */
        utf8_next(splitter->text + from, splitter->length - from, &taken);
        from += taken;
    }
    splitter->match_start = splitter->match_end = splitter->length;
    return STATUS_OK;
}

enum status splitter_next(struct splitter *splitter, size_t *start, size_t *end,
                          struct error *error)
{
    *start = *end = splitter->at;
    if (splitter->at >= splitter->length)
        return STATUS_OK;
    if (!splitter->pending) {
        enum status status = match_find(splitter, error);
        if (status != STATUS_OK)
            return status;
    }
    bool gap = splitter->match_start > splitter->at; /* text between matches is a word too */
    splitter->pending = gap;
    *end = gap ? splitter->match_start : splitter->match_end;
    splitter->at = *end;
    return STATUS_OK;
}
