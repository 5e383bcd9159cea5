/* Reads JSON lines on standard input, answers one line each:
 *   {"text": "...", "specials": true}      -> {"ids": [...]}
 *   {"ids": [...], "skip_special": false}  -> {"text": "..."}
 * argv[1]: a checkpoint folder. For tests that compare with other tokenizers. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/tokenizer.h"

static json_t *encode(const struct tokenizer *tokenizer, const json_t *line, struct arena *arena)
{
    const json_t *text = json_object_get(line, "text");
    int32_t *ids;
    size_t count;
    struct error error = {0};
    if (tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                         json_is_true(json_object_get(line, "specials")), arena, &ids, &count,
                         &error) != STATUS_OK)
        return json_pack("{s:s}", "error", error.text);
    json_t *array = json_array();
    for (size_t i = 0; i < count; ++i)
        json_array_append_new(array, json_integer(ids[i]));
    return json_pack("{s:o}", "ids", array);
}

static json_t *decode(const struct tokenizer *tokenizer, const json_t *line, struct arena *arena)
{
    const json_t *array = json_object_get(line, "ids");
    size_t count = json_array_size(array), length;
    int32_t *ids = arena_allocate(arena, count, sizeof *ids);
    char *text;
    struct error error = {0};
    for (size_t i = 0; ids != NULL && i < count; ++i)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    if (ids == NULL ||
        tokenizer_decode(tokenizer, ids, count, json_is_true(json_object_get(line, "skip_special")),
                         arena, &text, &length, &error) != STATUS_OK)
        return json_pack("{s:s}", "error", error.text);
    return json_pack("{s:o}", "text", json_stringn(text, length));
}

static int answer(const struct tokenizer *tokenizer, const char *bytes, size_t length)
{
    json_error_t where;
    json_t *line = json_loadb(bytes, length, JSON_ALLOW_NUL, &where);
    struct arena *arena = arena_create((size_t)1 << 30);
    if (line == NULL || arena == NULL) {
        fprintf(stderr, "%s\n", where.text);
        return 1;
    }
    json_t *result = json_object_get(line, "text") != NULL ? encode(tokenizer, line, arena)
                                                           : decode(tokenizer, line, arena);
    json_dumpf(result, stdout, JSON_ENSURE_ASCII | JSON_COMPACT);
    putchar('\n');
    json_decref(result);
    json_decref(line);
    arena_destroy(arena);
    return 0;
}

int main(int argc, char **argv)
{
    struct tokenizer *tokenizer;
    struct error error = {0};
    if (argc != 2 || tokenizer_load(argv[1], &tokenizer, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", argc != 2 ? "usage: tokenizer_cli FOLDER" : error.text);
        return 2;
    }
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int code = 0;
    while (code == 0 && (length = getline(&line, &room, stdin)) > 0)
        code = answer(tokenizer, line, (size_t)length);
    free(line);
    tokenizer_free(tokenizer);
    return code;
}
