#include "tests/unit/tokenizer/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

struct tokenizer *vectors_tokenizer;

int vectors_each(const char *name, void (*check)(const json_t *line, int number))
{
    char path[1024], *line = NULL;
    snprintf(path, sizeof path, JETD_TEST_DATA "/tokenizer/%s", name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t room = 0;
    int count = 0;
    for (ssize_t length; (length = getline(&line, &room, file)) > 0;) {
        json_t *root = json_loadb(line, (size_t)length, JSON_ALLOW_NUL, NULL);
        assert_non_null(root);
        check(root, ++count);
        json_decref(root);
    }
    free(line);
    fclose(file);
    return count;
}

int vectors_setup(void **state)
{
    (void)state;
    struct error error = {0};
    if (tokenizer_load(JETD_TEST_DATA "/tokenizer", &vectors_tokenizer, &error) == STATUS_OK)
        return 0;
    print_error("%s\n", error.text);
    return 1;
}

int vectors_teardown(void **state)
{
    (void)state;
    tokenizer_free(vectors_tokenizer);
    return 0;
}

void vectors_assert_ids(const json_t *ids, const int32_t *got, size_t count, int number)
{
    if (json_array_size(ids) != count)
        fail_msg("line %d: %zu ids, expected %zu", number, count, json_array_size(ids));
    for (size_t i = 0; i < count; ++i)
        if (json_integer_value(json_array_get(ids, i)) != got[i])
            fail_msg("line %d: id %zu is %d, expected %d", number, i, got[i],
                     (int)json_integer_value(json_array_get(ids, i)));
}
