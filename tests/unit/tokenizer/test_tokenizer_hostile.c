/* Inputs made to be slow, and the classes of all code points. Work is counted, not timed. */
#include "tests/unit/tokenizer/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/utf8.h"

/* `unit` repeated up to `length` bytes. */
static char *repeat(const char *unit, size_t length)
{
    size_t bytes = strlen(unit);
    char *text = malloc(length + 1);
    assert_non_null(text);
    for (size_t i = 0; i < length; ++i)
        text[i] = unit[i % bytes];
    return text;
}

static uint64_t work_of(const char *text, size_t length)
{
    struct encoder *encoder = encoder_create(vectors_tokenizer);
    struct error error = {0};
    assert_non_null(encoder);
    if (encoder_text(encoder, text, length, true, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    uint64_t work = encoder_work(encoder);
    encoder_destroy(encoder);
    return work;
}

static const char *const units[] = {
    "a",  " ",    "!",   "\n",       "\r\n", "\xE6\xBC\xA2", "\xCC\x81",  "\xCC\xA3\xCC\x81",
    "0",  "'s",   " \n", "\xC2\x85", "ab",   "e\xCC\x81",    "<|im_end|", "\xF0\x9F\x98\x80",
    "aA", "\t x",
};

/* A hundred times the input (1 MB; less for the later ones), at most 2.5 times the work for each
 * byte: n log n needs 1.5 times. */
static void test_linear(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof units / sizeof *units; ++i) {
        size_t bytes = strlen(units[i]), small = 10000 / bytes * bytes, times = i < 8 ? 100 : 16;
        char *text = repeat(units[i], small * times);
        uint64_t little = work_of(text, small), much = work_of(text, small * times);
        if ((double)much > 2.5 * (double)times * (double)little)
            fail_msg("\"%s\": %llu operations for %zu bytes, %llu for %zu", units[i],
                     (unsigned long long)little, small, (unsigned long long)much, small * times);
        free(text);
    }
}

/* Marks in descending classes: an ordering by neighbours would take hours. */
static void test_marks(void **state)
{
    (void)state;
    enum { HALF = 250000 };
    char *text = malloc(4 * HALF);
    assert_non_null(text);
    for (size_t i = 0; i < HALF; ++i) {
        memcpy(text + 2 * i, "\xCC\x81", 2);          /* U+0301, class 230 */
        memcpy(text + 2 * (HALF + i), "\xCC\xA3", 2); /* U+0323, class 220 */
    }
    struct text normal = {0};
    assert_int_equal(nfc_append(text, 4 * HALF, &normal, NULL), STATUS_OK);
    assert_int_equal(normal.length, 4 * HALF);
    assert_memory_equal(normal.bytes, "\xCC\xA3", 2);
    assert_memory_equal(normal.bytes + normal.length - 2, "\xCC\x81", 2);
    text_free(&normal);
    free(text);
}

/* Words that `text` splits into. */
static int words_of(struct splitter *splitter, const char *text, size_t length)
{
    size_t start, end;
    int count = 0;
    splitter_start(splitter, text, length);
    for (;; ++count) {
        assert_int_equal(splitter_next(splitter, &start, &end, NULL), STATUS_OK);
        if (start == end)
            return count;
    }
}

static int words_with(struct splitter *splitter, const char *before, const char *code, size_t bytes)
{
    char text[16];
    size_t length = strlen(before);
    memcpy(text, before, length);
    memcpy(text + length, code, bytes);
    return words_of(splitter, text, length + bytes);
}

/* Letters, numbers and spaces are those of the HF tokenizer, for every code point. */
static void test_classes(void **state)
{
    (void)state;
    FILE *file = fopen(JETD_TEST_DATA "/tokenizer/codepoint_classes.bin", "rb");
    unsigned char *classes = malloc(0x110000);
    assert_non_null(file);
    assert_non_null(classes);
    assert_int_equal(fread(classes, 1, 0x110000, file), 0x110000);
    fclose(file);
    struct splitter *splitter = splitter_create(vectors_tokenizer->split);
    assert_non_null(splitter);
    for (uint32_t code = 0; code < 0x110000; ++code) {
        char bytes[4];
        if (classes[code] == 9 || code == '\r' || code == '\n')
            continue;
        size_t length = utf8_write(code, bytes);
        int got = 0;
        if (words_with(splitter, "a", bytes, length) == 1)
            got = 1; /* a letter joins a letter */
        else if (words_with(splitter, " ", bytes, length) == 2)
            got = 2; /* a number stands alone */
        else if (words_with(splitter, "!", bytes, length) == 2)
            got = 3; /* a space ends a run of signs */
        if (got != classes[code])
            fail_msg("U+%04X is of class %d, expected %d", code, got, classes[code]);
    }
    splitter_destroy(splitter);
    free(classes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_marks),
        cmocka_unit_test(test_classes),
    };
    return cmocka_run_group_tests(tests, vectors_setup, vectors_teardown);
}
