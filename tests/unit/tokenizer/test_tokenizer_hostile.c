/* Inputs made to be slow, and the classes of all code points. Work is counted, not timed. */
#include "tests/unit/tokenizer/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <malloc.h>
#include <utf8proc.h>

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

/* One word that is all of a text: 12 bytes a symbol, 16 for its merges, and the text itself. A
 * sanitizer's allocator counts nothing, and the test says nothing then. */
static void test_memory(void **state)
{
    (void)state;
    enum { LENGTH = 4 << 20 };
    char *text = repeat("a", LENGTH);
    struct encoder *encoder = encoder_create(vectors_tokenizer);
    assert_non_null(encoder);
    struct mallinfo2 before = mallinfo2();
    assert_int_equal(encoder_text(encoder, text, LENGTH, true, NULL), STATUS_OK);
    struct mallinfo2 after = mallinfo2();
    size_t bytes = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
    if (bytes > (size_t)LENGTH * 32)
        fail_msg("%zu bytes for %d", bytes, LENGTH);
    encoder_destroy(encoder);
    free(text);
}

/* Bytes of the longest code point that is nothing but `code` when decomposed. */
static void longest_spelling(unsigned char *longest)
{
    utf8proc_int32_t parts[16];
    for (int32_t code = 0; code < 0x110000; ++code) {
        if (!utf8proc_codepoint_valid(code))
            continue;
        int boundary = 0;
        char bytes[4];
        utf8proc_ssize_t count = utf8proc_decompose_char(
            code, parts, 16, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        unsigned char length = (unsigned char)utf8_write((uint32_t)code, bytes);
        if (count == 1 && length > longest[parts[0]])
            longest[parts[0]] = length;
    }
}

/* TOKENIZER_NFC_SHRINK, for every code point: what NFC makes of a text is code points, and what can
 * have become one of them is at most the longest spelling of each of its parts. A code point of
 * several parts is no longer than those together, so spelling parts apart is the worst. */
static void test_shrink(void **state)
{
    (void)state;
    unsigned char *longest = calloc(0x110000, 1);
    utf8proc_int32_t parts[16];
    assert_non_null(longest);
    longest_spelling(longest);
    size_t most = 0;
    for (int32_t code = 0; code < 0x110000; ++code) {
        if (!utf8proc_codepoint_valid(code))
            continue;
        int boundary = 0;
        char bytes[4];
        size_t length = utf8_write((uint32_t)code, bytes), apart = 0;
        utf8proc_ssize_t count = utf8proc_decompose_char(
            code, parts, 16, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        for (utf8proc_ssize_t i = 0; i < count; ++i)
            apart += longest[parts[i]];
        assert_true(length <= apart);
        most = 10 * apart / length > most ? 10 * apart / length : most;
    }
    assert_int_equal(most, 35); /* U+0390, from 3 + 2 + 2 bytes to 2 */
    assert_true(most <= 10 * TOKENIZER_NFC_SHRINK);
    free(longest);
}

/* Texts of few tokens for their bytes are never said to have more than they have. */
static void test_least_tokens(void **state)
{
    (void)state;
    static const char *const dense[] = {
        " ", "\xE1\xBE\xBE\xCC\x88\xCC\x81", "<|im_end|>", "a", "-", "\xE2\x84\xAA", "="};
    for (size_t i = 0; i < sizeof dense / sizeof *dense; ++i) {
        char *text = repeat(dense[i], 65536 / strlen(dense[i]) * strlen(dense[i]));
        size_t length = 65536 / strlen(dense[i]) * strlen(dense[i]), count;
        struct arena *arena = arena_create(1 << 20);
        int32_t *ids;
        assert_int_equal(
            tokenizer_encode(vectors_tokenizer, text, length, true, arena, &ids, &count, NULL),
            STATUS_OK);
        size_t least = tokenizer_least_tokens(vectors_tokenizer, length);
        assert_true(least > 0 && least <= count);
        arena_destroy(arena);
        free(text);
    }
    assert_int_equal(tokenizer_least_tokens(vectors_tokenizer, 0), 0);
    assert_int_equal(tokenizer_least_tokens(vectors_tokenizer, 1), 1);
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
        cmocka_unit_test(test_linear), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_shrink), cmocka_unit_test(test_least_tokens),
        cmocka_unit_test(test_marks),  cmocka_unit_test(test_classes),
    };
    return cmocka_run_group_tests(tests, vectors_setup, vectors_teardown);
}
