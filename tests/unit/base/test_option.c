/* Options: precedence of sources, types, ranges, and errors that name the source. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/option.h"

struct values {
    const char *config, *name, *mode;
    int count;
    uint64_t size;
    double ratio;
    bool flag, action;
    struct option_list list;
};

#define AT(field) offsetof(struct values, field)
static const struct option_entry entries[] = {
    {"config", NULL, OPTION_STRING, "", "FILE", "file", 0, 0, NULL, AT(config)},
    {"name", "alias", OPTION_STRING, "x", "TEXT", "name", 0, 0, NULL, AT(name)},
    {"mode", NULL, OPTION_CHOICE, "auto", NULL, "mode", 0, 0, "auto|on|off", AT(mode)},
    {"count-of", NULL, OPTION_INT, "3", "N", "count", 1, 9, NULL, AT(count)},
    {"size", NULL, OPTION_SIZE, "1K", "BYTES", "size", 0, 0, NULL, AT(size)},
    {"ratio", NULL, OPTION_DOUBLE, "0.5", "X", "ratio", 0, 1, NULL, AT(ratio)},
    {"flag", NULL, OPTION_FLAG, "false", NULL, "flag", 0, 0, NULL, AT(flag)},
    {"action", NULL, OPTION_ACTION, "false", NULL, "action", 0, 0, NULL, AT(action)},
    {"list", NULL, OPTION_LIST, "", "TEXT", "list", 0, 0, NULL, AT(list)},
};
static const struct option_table table = {"t", "JETTEST", "t", entries, 9, "name", "config"};

static enum status load(const char *const *arguments, struct values *values,
                        struct option_store **store, struct error *error)
{
    char *argv[40] = {(char *)"t"};
    int argc = 1;
    for (; arguments[argc - 1] != NULL; argc++)
        argv[argc] = (char *)arguments[argc - 1];
    return option_load(&table, argc, argv, values, store, error);
}

static char *write_file(const char *text)
{
    static char path[64];
    strcpy(path, "/tmp/jetd-option-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    return path;
}

static void defaults_hold(void **state)
{
    (void)state;
    struct values values;
    struct option_store *store;
    struct error error = {0};
    assert_int_equal(load((const char *[]){NULL}, &values, &store, &error), STATUS_OK);
    assert_string_equal(values.name, "x");
    assert_int_equal(values.count, 3);
    assert_int_equal(values.size, 1024);
    assert_true(values.ratio == 0.5);
    assert_false(values.flag);
    option_free(store);
}

static void sources_take_precedence_in_order(void **state)
{
    (void)state;
    char *path = write_file("# comment\ncount-of: 4\nname: from-file\nmode: on\nsize: 2M\n");
    setenv("JETTEST_CONFIG", path, 1);
    setenv("JETTEST_COUNT_OF", "5", 1);
    setenv("JETTEST_NAME", "from-environment", 1);
    struct values values;
    struct option_store *store;
    struct error error = {0};
    assert_int_equal(load((const char *[]){"--count-of", "6", "--flag", "--ratio=0.25", NULL},
                          &values, &store, &error),
                     STATUS_OK);
    assert_int_equal(values.count, 6);
    assert_string_equal(values.name, "from-environment");
    assert_string_equal(values.mode, "on");
    assert_int_equal(values.size, 2 << 20);
    assert_true(values.ratio == 0.25);
    assert_true(values.flag);
    option_free(store);
    assert_int_equal(load((const char *[]){"bare", NULL}, &values, &store, &error), STATUS_OK);
    assert_string_equal(values.name, "bare");
    option_free(store);
    unsetenv("JETTEST_CONFIG");
    unsetenv("JETTEST_COUNT_OF");
    unsetenv("JETTEST_NAME");
    unlink(path);
}

/* What Kubernetes sets for a Service that is named like the program is not for us. */
static void a_service_link_is_passed_over(void **state)
{
    (void)state;
    struct values values;
    struct option_store *store;
    struct error error = {0};
    setenv("JETTEST_COUNT_OF", "tcp://10.0.0.1:50051", 1);
    assert_int_equal(load((const char *[]){NULL}, &values, &store, &error), STATUS_OK);
    assert_int_equal(values.count, 3);
    option_free(store);
    setenv("JETTEST_COUNT_OF", "tcp", 1);
    assert_int_equal(load((const char *[]){NULL}, &values, &store, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "JETTEST_COUNT_OF"));
    unsetenv("JETTEST_COUNT_OF");
}

/* JETD_VERSION in a container says which release it is. */
static void no_variable_is_an_action(void **state)
{
    (void)state;
    struct values values;
    struct option_store *store;
    struct error error = {0};
    setenv("JETTEST_ACTION", "1.2.3", 1);
    assert_int_equal(load((const char *[]){NULL}, &values, &store, &error), STATUS_OK);
    assert_false(values.action);
    option_free(store);
    assert_int_equal(load((const char *[]){"--action", NULL}, &values, &store, &error), STATUS_OK);
    assert_true(values.action);
    option_free(store);
    unsetenv("JETTEST_ACTION");
}

static void a_bare_argument_may_look_like_an_option(void **state)
{
    (void)state;
    struct values values;
    struct option_store *store;
    struct error error = {0};
    assert_int_equal(
        load((const char *[]){"--flag", "--", "--size", NULL}, &values, &store, &error), STATUS_OK);
    assert_string_equal(values.name, "--size");
    option_free(store);
    assert_int_equal(load((const char *[]){"--flag", "--", "true", NULL}, &values, &store, &error),
                     STATUS_OK);
    assert_string_equal(values.name, "true");
    option_free(store);
}

/* The command line's own list, in place of what a variable says. */
static void a_list_grows(void **state)
{
    (void)state;
    struct values values;
    struct option_store *store;
    struct error error = {0};
    setenv("JETTEST_LIST", "variable", 1);
    assert_int_equal(load((const char *[]){NULL}, &values, &store, &error), STATUS_OK);
    assert_int_equal(values.list.count, 1);
    assert_string_equal(values.list.text[0], "variable");
    option_free(store);
    assert_int_equal(
        load((const char *[]){"--list", "a", "--list=b", NULL}, &values, &store, &error),
        STATUS_OK);
    assert_int_equal(values.list.count, 2);
    assert_string_equal(values.list.text[0], "a");
    assert_string_equal(values.list.text[1], "b");
    option_free(store);
    unsetenv("JETTEST_LIST");
    const char *arguments[OPTION_LIST_MAX + 2] = {NULL};
    for (int i = 0; i <= OPTION_LIST_MAX; i++)
        arguments[i] = "--list=x";
    assert_int_equal(load(arguments, &values, &store, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "--list"));
}

static void bad_arguments_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *arguments[4], *named;
    } cases[] = {
        {{"--count-of", "0"}, "--count-of"},
        {{"--count-of", "10"}, "--count-of"},
        {{"--count-of", "4x"}, "--count-of"},
        {{"--count-of", "99999999999"}, "--count-of"},
        {{"--count-of", ""}, "--count-of"},
        {{"--size", "-1"}, "--size"},
        {{"--size", "99999999999T"}, "--size"},
        {{"--size", "1KB"}, "--size"},
        {{"--ratio", "nan"}, "--ratio"},
        {{"--ratio", "1.5"}, "--ratio"},
        {{"--mode", "maybe"}, "auto|on|off"},
        {{"--mode", "auto|on"}, "auto|on|off"},
        {{"--flag=perhaps"}, "--flag"},
        {{"--unknown", "1"}, "--unknown"},
        {{"--count-of"}, "--count-of"},
        {{"a", "--flag", "b"}, "\"b\": name is \"a\""},
        {{"a", "--", "b"}, "\"b\""},
        {{"--flag", "false"}, "--flag=false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct values values;
        struct option_store *store = NULL;
        struct error error = {0};
        assert_int_equal(load(cases[i].arguments, &values, &store, &error), STATUS_CONFIG);
        if (strstr(error.text, cases[i].named) == NULL)
            fail_msg("case %zu: \"%s\" does not name %s", i, error.text, cases[i].named);
    }
}

static void bad_files_are_named_with_their_line(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"count-of: 3\nnonsense: 1\n", "line 2: unknown option \"nonsense\""},
        {"count-of: [1, 2]\n", "line 1"},
        {"count-of: 12\n", "line 1: count-of"},
        {"name: a\nname: b\n", "line 2: name is given twice"},
        {"- a\n- b\n", "line 1"},
        {"name: \"unfinished\n", "line"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *path = write_file(cases[i][0]);
        struct values values;
        struct option_store *store = NULL;
        struct error error = {0};
        load((const char *[]){"--config", path, NULL}, &values, &store, &error);
        if (error.status != STATUS_CONFIG)
            fail_msg("case %zu was taken", i);
        if (strstr(error.text, path) == NULL || strstr(error.text, cases[i][1]) == NULL)
            fail_msg("case %zu: \"%s\" does not say %s", i, error.text, cases[i][1]);
        unlink(path);
    }
    struct values values;
    struct option_store *store = NULL;
    struct error error = {0};
    assert_int_equal(
        load((const char *[]){"--config", "/nonexistent/file", NULL}, &values, &store, &error),
        STATUS_CONFIG);
    assert_non_null(strstr(error.text, "/nonexistent/file"));
}

static void help_lists_every_option(void **state)
{
    (void)state;
    char text[4096] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    option_help(&table, out);
    fclose(out);
    for (size_t i = 0; i < table.count; i++)
        assert_non_null(strstr(text, entries[i].name));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_hold),
        cmocka_unit_test(sources_take_precedence_in_order),
        cmocka_unit_test(a_service_link_is_passed_over),
        cmocka_unit_test(no_variable_is_an_action),
        cmocka_unit_test(a_bare_argument_may_look_like_an_option),
        cmocka_unit_test(a_list_grows),
        cmocka_unit_test(bad_arguments_are_named),
        cmocka_unit_test(bad_files_are_named_with_their_line),
        cmocka_unit_test(help_lists_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
