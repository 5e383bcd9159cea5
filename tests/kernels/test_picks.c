/* The file of choices made by timing: its text, its hostile readers' and writers' cases, its place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/picks.h"

#define HEAD "jetd products 1\non a device, version 7\n"
#define HEX16 "00112233445566778899aabbccddeeff"
#define HEX HEX16 HEX16 HEX16 HEX16

static struct picks picks, back;
static char text[PICKS_TEXT_MAX + 1];

static enum status parse(const char *from, struct error *error)
{
    *error = (struct error){0};
    return picks_parse(from, strlen(from), &picks, error);
}

static void a_text_is_read(void **state)
{
    struct error error;

    (void)state;
    assert_int_equal(parse(HEAD "22016 2048 1 act none form 1\n"
                                "2048 11008 96 f32 bias algorithm " HEX "\n",
                           &error),
                     STATUS_OK);
    assert_string_equal(picks.key, "a device, version 7");
    assert_int_equal(picks.count, 2);
    const struct pick like = {
        .columns = 2048, .depth = 11008, .row_class = 96, .float_out = true, .bias = true};
    const struct pick *pick = picks_find(&picks, &like);
    assert_ptr_equal(pick, &picks.pick[1]);
    assert_int_equal(pick->form, -1);
    assert_int_equal(pick->algorithm[0], 0x00);
    assert_int_equal(pick->algorithm[63], 0xff);
    assert_int_equal(picks.pick[0].form, 1);
    struct pick other = like;
    other.bias = false;
    assert_null(picks_find(&picks, &other));
}

static void what_is_printed_is_read_again(void **state)
{
    struct error error = {0};

    (void)state;
    memset(&picks, 0, sizeof picks);
    snprintf(picks.key, sizeof picks.key, "%0*d", PICKS_KEY_MAX - 1, 7);
    for (int i = 0; i < PICKS_MAX; i++) {
        struct pick pick = {(1 << 30) - i, 1 << 30,   1 << 30, i % 2 == 0,
                            i % 3 == 0,    i % 5 - 1, {0}};
        for (int b = 0; b < PICK_BYTES && pick.form < 0; b++)
            pick.algorithm[b] = (unsigned char)(i * 7 + b * 31);
        assert_true(picks_add(&picks, &pick));
    }
    struct pick more = {.columns = 1, .depth = 1, .row_class = 1};
    assert_false(picks_add(&picks, &more));
    assert_true(picks_add(&picks, &picks.pick[5])); /* in its place */
    assert_int_equal(picks.count, PICKS_MAX);
    size_t length = picks_print(&picks, text);
    assert_true(length < PICKS_TEXT_MAX);
    memset(&back, 0, sizeof back);
    assert_int_equal(picks_parse(text, length, &back, &error), STATUS_OK);
    assert_memory_equal(&back, &picks, sizeof picks);
    /* One line too many. */
    length += (size_t)sprintf(text + length, "1 1 1 act none form 0\n");
    assert_int_equal(picks_parse(text, length, &back, &error), STATUS_CORRUPT);
}

static void other_texts_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "jetd products 2\non a device\n",
        "jetd products 1\n",
        "jetd products 1\non \n",
        "jetd products 1\non a\x01\n",
        "jetd products 1\non no end of line",
        HEAD "\n",
        HEAD "22016 2048 1 act none form 1",
        HEAD "22016 2048 1 act none form 1 \n",
        HEAD "22016  2048 1 act none form 1\n",
        HEAD "0 2048 1 act none form 1\n",
        HEAD "-1 2048 1 act none form 1\n",
        HEAD "+1 2048 1 act none form 1\n",
        HEAD "01 2048 1 act none form 1\n",
        HEAD "1073741825 2048 1 act none form 1\n",
        HEAD "99999999999999999999999999 2048 1 act none form 1\n",
        HEAD "22016 2048 1 bf16 none form 1\n",
        HEAD "22016 2048 1 act no form 1\n",
        HEAD "22016 2048 1 act none form 100\n",
        HEAD "22016 2048 1 act none form -1\n",
        HEAD "22016 2048 1 act none form \n",
        HEAD "22016 2048 1 act none algorithm \n",
        HEAD "22016 2048 1 act none algorithm " HEX16 "\n",
        HEAD "22016 2048 1 act none algorithm " HEX "00\n",
        HEAD "22016 2048 1 act none algorithm " HEX16 HEX16 HEX16
             "0011223344556677 899aabbccddeef\n",
        HEAD "22016 2048 1 act none algorithm " HEX16 HEX16 HEX16
             "00112233445566778899AABBCCDDEEFF\n",
        HEAD "1 2 3 act none form 1\n1 2 3 act none form 0\n",
    };
    struct error error = {0};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (parse(bad[i], &error) != STATUS_CORRUPT)
            fail_msg("accepted: %s", bad[i]);
        assert_true(error.text[0] != '\0');
    }
    /* A zero byte is a byte like others. */
    static const char zero[] = HEAD "1 2 3 act none form 1\n\0";
    assert_int_equal(picks_parse(zero, sizeof zero - 1, &picks, &error), STATUS_CORRUPT);
    static const char inside[] = HEAD "1 2 3 act none algorithm 00\0" HEX "\n";
    assert_int_equal(picks_parse(inside, sizeof inside - 1, &picks, &error), STATUS_CORRUPT);
    /* A key as long as it may be, and one longer. */
    snprintf(text, sizeof text, "jetd products 1\non %0*d\n", PICKS_KEY_MAX - 1, 1);
    assert_int_equal(parse(text, &error), STATUS_OK);
    snprintf(text, sizeof text, "jetd products 1\non %0*d\n", PICKS_KEY_MAX, 1);
    assert_int_equal(parse(text, &error), STATUS_CORRUPT);
}

/* ---- files ---- */

static char folder[64], path[128];

static int folder_make(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_picks.XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/products", folder);
    return 0;
}

static int folder_remove(void **state)
{
    (void)state;
    (void)unlink(path);
    return rmdir(folder);
}

static void write_file(const char *content, size_t length)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(content, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

static void a_file_is_kept(void **state)
{
    struct error error = {0};

    (void)state;
    assert_int_equal(picks_load(path, &back, &error), STATUS_NOT_FOUND);
    assert_int_equal(parse(HEAD "22016 2048 1 act none form 1\n", &error), STATUS_OK);
    assert_int_equal(picks_save(path, &picks, &error), STATUS_OK);
    assert_int_equal(picks_load(path, &back, &error), STATUS_OK);
    assert_memory_equal(back.pick, picks.pick, sizeof picks.pick[0]);
    assert_int_equal(parse(HEAD "22016 2048 1 act none form 0\n", &error), STATUS_OK);
    assert_int_equal(picks_save(path, &picks, &error), STATUS_OK);
    assert_int_equal(picks_load(path, &back, &error), STATUS_OK);
    assert_int_equal(back.pick[0].form, 0);
    /* Nothing is left beside it: folder_remove would fail. */
}

static void a_file_that_is_none_is_refused(void **state)
{
    struct error error = {0};

    (void)state;
    write_file("garbage", 7);
    assert_int_equal(picks_load(path, &back, &error), STATUS_CORRUPT);
    assert_non_null(strstr(error.text, path));
    memset(text, 'a', sizeof text);
    write_file(text, sizeof text); /* one byte too long */
    error_clear(&error);
    assert_int_equal(picks_load(path, &back, &error), STATUS_CORRUPT);
    error_clear(&error);
    assert_int_equal(picks_load(folder, &back, &error), STATUS_IO);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not be waited for */
    error_clear(&error);
    assert_int_equal(picks_load(path, &back, &error), STATUS_IO);
}

static void a_file_that_cannot_be_written_is_an_error(void **state)
{
    struct error error = {0};

    (void)state;
    picks.count = 0;
    assert_int_equal(picks_save("/nowhere/at/all", &picks, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "/nowhere/at/all"));
    /* A folder stands where the file should: the temporary goes. */
    assert_int_equal(mkdir(path, 0700), 0);
    error_clear(&error);
    assert_int_equal(picks_save(path, &picks, &error), STATUS_IO);
    assert_int_equal(rmdir(path), 0);
}

static void the_place_is_the_users_cache(void **state)
{
    char place[128], short_place[24], want[128], made[128];

    (void)state;
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_null(picks_place(place, sizeof place));
    setenv("HOME", "not/absolute", 1);
    assert_null(picks_place(place, sizeof place));
    setenv("HOME", folder, 1);
    assert_null(picks_place(short_place, sizeof short_place));
    snprintf(want, sizeof want, "%s/.cache/jetd/products", folder);
    assert_string_equal(picks_place(place, sizeof place), want);
    snprintf(made, sizeof made, "%s/.cache/jetd", folder);
    assert_int_equal(rmdir(made), 0);
    snprintf(made, sizeof made, "%s/.cache", folder);
    assert_int_equal(rmdir(made), 0);
    setenv("XDG_CACHE_HOME", folder, 1);
    snprintf(want, sizeof want, "%s/jetd/products", folder);
    assert_string_equal(picks_place(place, sizeof place), want);
    snprintf(made, sizeof made, "%s/jetd", folder);
    assert_int_equal(rmdir(made), 0);
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    assert_null(picks_place(place, sizeof place));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_make, folder_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text_is_read),          cmocka_unit_test(what_is_printed_is_read_again),
        cmocka_unit_test(other_texts_are_refused), TEST(a_file_is_kept),
        TEST(a_file_that_is_none_is_refused),      TEST(a_file_that_cannot_be_written_is_an_error),
        TEST(the_place_is_the_users_cache),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
