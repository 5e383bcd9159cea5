/* status, checked arithmetic, arena, files, log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/arena.h"
#include "daemon/base/checked.h"
#include "daemon/base/file.h"
#include "daemon/base/log.h"
#include "daemon/base/status.h"

static void every_status_has_a_name(void **state)
{
    (void)state;
    for (int i = 0; i <= STATUS_ABORTED; i++)
        assert_string_not_equal(status_name((enum status)i), "unknown status");
}

static void error_keeps_its_first_text(void **state)
{
    (void)state;
    struct error error = {0};
    assert_int_equal(error_set(&error, STATUS_CORRUPT, "tensor %d", 7), STATUS_CORRUPT);
    assert_int_equal(error_set(&error, STATUS_IO, "later"), STATUS_IO);
    assert_int_equal(error.status, STATUS_CORRUPT);
    assert_string_equal(error.text, "tensor 7");
    assert_int_equal(error_prefix(&error, "file %s", "a"), STATUS_CORRUPT);
    assert_string_equal(error.text, "file a: tensor 7");
    error_clear(&error);
    assert_int_equal(error.status, STATUS_OK);
    assert_int_equal(error_set(NULL, STATUS_IO, "nobody asks"), STATUS_IO);
}

/* What ops/README.md promises to supervisors. */
static void exit_codes_tell_what_to_look_at(void **state)
{
    (void)state;
    assert_int_equal(status_exit_code(STATUS_OK), 0);
    assert_int_equal(status_exit_code(STATUS_CONFIG), 2);
    assert_int_equal(status_exit_code(STATUS_CORRUPT), 2);
    assert_int_equal(status_exit_code(STATUS_DEVICE), 3);
    assert_int_equal(status_exit_code(STATUS_IO), 1);
    assert_int_equal(status_exit_code(STATUS_PEER_LOST), 1);
}

static void error_prefix_never_overflows(void **state)
{
    (void)state;
    char longest[600];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    for (int length = 400; length < 599; length += 7) {
        struct error error = {0};
        error_set(&error, STATUS_IO, "%s", longest);
        error_prefix(&error, "%.*s", length, longest);
        assert_true(strlen(error.text) < sizeof error.text);
        assert_int_equal(error.text[0], 'x');
    }
}

static void checked_arithmetic_refuses_overflow(void **state)
{
    (void)state;
    uint64_t result = 5;
    assert_false(checked_multiply(UINT64_C(1) << 32, UINT64_C(1) << 32, &result));
    assert_false(checked_add(UINT64_MAX, 1, &result));
    assert_int_equal(result, 5);
    assert_true(checked_multiply(3, 4, &result));
    assert_int_equal(result, 12);
    assert_int_equal(round_up(13, 8), 16);
    assert_int_equal(divide_up(13, 8), 2);
}

static void arena_zeroes_aligns_and_keeps_its_limit(void **state)
{
    (void)state;
    struct arena *arena = arena_create(100000);
    assert_non_null(arena);
    for (size_t bytes = 1; bytes < 400; bytes += 13) {
        unsigned char *memory = arena_allocate(arena, bytes, 1);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 16, 0);
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(memory[i], 0);
        memset(memory, 0xff, bytes);
    }
    assert_non_null(arena_allocate(arena, 60000, 1)); /* larger than a block */
    assert_null(arena_allocate(arena, 60000, 1));     /* over the limit */
    assert_null(arena_allocate(arena, SIZE_MAX, 2));  /* product overflows */
    assert_null(arena_string(arena, "", SIZE_MAX));
    char *copy = arena_string(arena, "abcdef", 3);
    assert_string_equal(copy, "abc");
    arena_destroy(arena);
    arena_destroy(NULL);
}

static void expect_unread(const char *path, size_t most, enum status status, const char *cause)
{
    char *bytes = NULL;
    size_t length;
    struct error error = {0};
    assert_int_equal(file_read(path, most, &bytes, &length, &error), status);
    assert_null(bytes);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, cause));
}

static void only_regular_files_of_a_size_are_read(void **state)
{
    (void)state;
    char folder[] = "/tmp/jetd-file-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/x", folder);
    expect_unread(path, 9, STATUS_NOT_FOUND, "No such file");
    expect_unread(folder, 9, STATUS_IO, "not a regular file");
    assert_int_equal(mkfifo(path, 0600), 0); /* without a writer: open() would wait for one */
    expect_unread(path, 9, STATUS_IO, "not a regular file");
    unlink(path);
    FILE *file = fopen(path, "w");
    fputs("four", file);
    fclose(file);
    expect_unread(path, 3, STATUS_CORRUPT, "4 bytes, more than the 3 allowed");
    char *bytes;
    size_t length;
    assert_int_equal(file_read(path, 4, &bytes, &length, NULL), STATUS_OK);
    assert_int_equal(length, 4);
    assert_string_equal(bytes, "four");
    free(bytes);
    unlink(path);
    rmdir(folder);
}

static void log_counts_errors(void **state)
{
    (void)state;
    unsigned before = log_errors();
    log_configure(LOG_ERROR, 3, true);
    log_info("not shown");
    log_error("an expected line with a control byte \x01 and a \"quote\"");
    assert_int_equal(log_errors(), before + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_a_name),
        cmocka_unit_test(error_keeps_its_first_text),
        cmocka_unit_test(exit_codes_tell_what_to_look_at),
        cmocka_unit_test(error_prefix_never_overflows),
        cmocka_unit_test(checked_arithmetic_refuses_overflow),
        cmocka_unit_test(arena_zeroes_aligns_and_keeps_its_limit),
        cmocka_unit_test(only_regular_files_of_a_size_are_read),
        cmocka_unit_test(log_counts_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
