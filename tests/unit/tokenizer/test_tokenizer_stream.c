/* Incremental decoding: never half a character, and the same text as decoding all at once. */
#include "tests/unit/tokenizer/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/request.h"

static struct stream *stream_with(struct stream_options options)
{
    options.tokenizer = vectors_tokenizer;
    struct stream *stream = stream_create(&options);
    assert_non_null(stream);
    return stream;
}

static struct stream *stream_of(const struct stops *stops, bool include)
{
    return stream_with((struct stream_options){.stops = stops, .include_stop = include});
}

static struct stops *stops_of(const struct stop_string *strings, int count)
{
    struct stops *stops = stops_create(strings, count);
    assert_non_null(stops);
    return stops;
}

/* Pushes single bytes; what came out so far, without the end. */
static size_t bytes_push(struct stream *stream, const char *bytes, size_t length, char *out,
                         int *matched)
{
    size_t total = 0;
    *matched = -1;
    for (size_t i = 0; i < length; ++i) {
        const char *text;
        size_t released;
        int32_t id = vectors_tokenizer->byte_ids[(unsigned char)bytes[i]];
        assert_int_equal(stream_push(stream, id, &text, &released, matched), STATUS_OK);
        assert_int_equal(utf8_invalid(text, released), released);
        memcpy(out + total, text, released);
        total += released;
    }
    return total;
}

/* UTF-8 by its definition, written apart from the code under test. */
static size_t code_bytes(uint32_t code, char *bytes)
{
    if (code < 0x80) {
        bytes[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        bytes[0] = (char)(192 + code / 64);
        bytes[1] = (char)(128 + code % 64);
        return 2;
    }
    if (code < 0x10000) {
        bytes[0] = (char)(224 + code / 4096);
        bytes[1] = (char)(128 + code / 64 % 64);
        bytes[2] = (char)(128 + code % 64);
        return 3;
    }
    bytes[0] = (char)(240 + code / 262144);
    bytes[1] = (char)(128 + code / 4096 % 64);
    bytes[2] = (char)(128 + code / 64 % 64);
    bytes[3] = (char)(128 + code % 64);
    return 4;
}

/* Every code point, byte by byte: nothing before its last byte, all of it then. */
static void test_code_points(void **state)
{
    (void)state;
    struct stream *stream = stream_of(NULL, false);
    for (uint32_t code = 0; code < 0x110000; ++code) {
        char bytes[8], out[64];
        int matched;
        if (code >= 0xD800 && code < 0xE000)
            continue;
        size_t length = code_bytes(code, bytes);
        assert_int_equal(bytes_push(stream, bytes, length - 1, out, &matched), 0);
        size_t got = bytes_push(stream, bytes + length - 1, 1, out, &matched);
        if (got != length || memcmp(out, bytes, length) != 0)
            fail_msg("U+%04X gives %zu bytes", code, got);
    }
    stream_destroy(stream);
}

/* Every beginning of every code point, cut off by another character: one U+FFFD. */
static void test_truncated(void **state)
{
    (void)state;
    struct stream *stream = stream_of(NULL, false);
    for (uint32_t code = 0x80; code < 0x110000; ++code) {
        char bytes[8], out[64], whole[4];
        int matched;
        if (code >= 0xD800 && code < 0xE000)
            continue;
        size_t length = code_bytes(code, bytes);
        memcpy(whole, bytes, length);
        for (size_t cut = 1; cut < length; ++cut) {
            memcpy(bytes, whole, cut);
            memcpy(bytes + cut, "z", 1);
            if (bytes_push(stream, bytes, cut + 1, out, &matched) != 4 ||
                memcmp(out, "\xEF\xBF\xBDz", 4) != 0)
                fail_msg("U+%04X cut at %zu", code, cut);
        }
    }
    stream_destroy(stream);
}

/* Random tokens, many of them pieces of characters, against decoding them at once. */
static void test_random(void **state)
{
    (void)state;
    unsigned seed = 20240607;
    for (int round = 0; round < 4000; ++round) {
        int32_t ids[24];
        char joined[8192], *whole;
        const char *text;
        size_t count = (size_t)rand_r(&seed) % 24 + 1, total = 0, length;
        struct arena *arena = arena_create(1 << 20);
        struct stream *stream = stream_of(NULL, false);
        for (size_t i = 0; i < count; ++i) {
            int matched;
            ids[i] = rand_r(&seed) % 3 == 0 ? rand_r(&seed) % 151670 : rand_r(&seed) % 256;
            assert_int_equal(stream_push(stream, ids[i], &text, &length, &matched), STATUS_OK);
            assert_int_equal(utf8_invalid(text, length), length);
            memcpy(joined + total, text, length);
            total += length;
        }
        assert_int_equal(stream_finish(stream, &text, &length), STATUS_OK);
        memcpy(joined + total, text, length);
        total += length;
        assert_int_equal(
            tokenizer_decode(vectors_tokenizer, ids, count, true, arena, &whole, &length, NULL),
            STATUS_OK);
        assert_int_equal(total, length);
        assert_memory_equal(joined, whole, length);
        stream_destroy(stream);
        arena_destroy(arena);
    }
}

#define STOP(s)                                                                                    \
    {                                                                                              \
        .text = (s), .length = strlen(s)                                                           \
    }

struct stop_case {
    const char *text;
    struct stop_string stops[3];
    int count;
    const char *plain, *included; /* released without and with the stop string */
    int matched;
};

/* Feeds `text` in pieces of `step` bytes of the vocabulary's tokens where they exist. */
static void stop_check(const struct stop_case *test, bool include, bool by_byte)
{
    struct stops *stops = stops_of(test->stops, test->count);
    struct stream *stream = stream_of(stops, include);
    const char *text = test->text, *piece, *expected = include ? test->included : test->plain;
    char out[256];
    size_t total = 0, length, left = strlen(text);
    int matched = -1;
    while (left > 0) {
        size_t take = by_byte ? 1 : left;
        while (words_find(vectors_tokenizer, text, take) < 0)
            --take;
        assert_int_equal(stream_push(stream, words_find(vectors_tokenizer, text, take), &piece,
                                     &length, &matched),
                         STATUS_OK);
        memcpy(out + total, piece, length);
        total += length;
        text += take;
        left -= take;
    }
    stream_finish(stream, &piece, &length);
    memcpy(out + total, piece, length);
    total += length;
    assert_int_equal(matched, test->matched);
    assert_int_equal(total, strlen(expected));
    assert_memory_equal(out, expected, total);
    stream_destroy(stream);
    stops_destroy(stops);
}

static void test_stops(void **state)
{
    (void)state;
    const struct stop_case cases[] = {
        {"hello world again", {STOP("wor")}, 1, "hello ", "hello wor", 0},
        {"hello world", {STOP("worm"), STOP("xyz")}, 2, "hello world", "hello world", -1},
        {"aabaabaaab", {STOP("aabaaab")}, 1, "aab", "aabaabaaab", 0},
        {"one two", {STOP("o tw"), STOP(" two")}, 2, "one", "one two", 1},
        {"abcd", {STOP("abcd"), STOP("bc")}, 2, "a", "abc", 1},
        {"xabc", {STOP("c"), STOP("abc"), STOP("bc")}, 3, "x", "xabc", 1},
        {"\xE6\xBC\xA2\xE5\xAD\x97!",
         {STOP("\xE5\xAD\x97")},
         1,
         "\xE6\xBC\xA2",
         "\xE6\xBC\xA2\xE5\xAD\x97",
         0},
        {"stop at the en", {STOP("end")}, 1, "stop at the en", "stop at the en", -1},
        {"\n\nUser: hi", {STOP("\n\nUser:")}, 1, "", "\n\nUser:", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i)
        for (int way = 0; way < 4; ++way)
            stop_check(&cases[i], way & 1, way & 2);
}

/* What can still become a stop string waits, and no more than that. */
static void test_held_back(void **state)
{
    (void)state;
    const struct stop_string string = STOP("END");
    struct stops *stops = stops_of(&string, 1);
    struct stream *stream = stream_of(stops, false);
    char out[64];
    int matched;
    assert_int_equal(bytes_push(stream, "xEN", 3, out, &matched), 1);
    assert_int_equal(bytes_push(stream, "E", 1, out, &matched), 2);
    assert_memory_equal(out, "EN", 2);
    assert_int_equal(bytes_push(stream, "ND", 2, out, &matched), 0);
    assert_int_equal(matched, 0);
    assert_int_equal(bytes_push(stream, "more", 4, out, &matched), 0);
    assert_int_equal(matched, 0);
    stream_destroy(stream);
    stops_destroy(stops);
}

/* What min_tokens complete passes; what they begin counts, and so does what overlaps. */
static void test_stops_after_min_tokens(void **state)
{
    (void)state;
    const struct {
        const char *text, *expected;
        int min_tokens, matched;
    } cases[] = {
        {"xaaxaaxaax", "x", 2, 0},    /* the third byte completes the first */
        {"xaaxaaxaax", "xaax", 3, 0}, /* the second */
        {"xaaxaaxaax", "xaax", 5, 0},
        {"xaaxaaxaax", "xaaxaax", 6, 0},
        {"xaaxaaxaax", "xaaxaaxaax", 9, -1},
        {"xaaaax", "xa", 3, 0}, /* the second and third a, after the first two */
        {"xaaaax", "xaa", 4, 0},
    };
    const struct stop_string string = STOP("aa");
    struct stops *stops = stops_of(&string, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        struct stream *stream =
            stream_with((struct stream_options){.stops = stops, .min_tokens = cases[i].min_tokens});
        char out[64];
        const char *rest;
        size_t length;
        int matched;
        size_t total = bytes_push(stream, cases[i].text, strlen(cases[i].text), out, &matched);
        stream_finish(stream, &rest, &length);
        memcpy(out + total, rest, length);
        assert_int_equal(matched, cases[i].matched);
        assert_int_equal(total + length, strlen(cases[i].expected));
        assert_memory_equal(out, cases[i].expected, total + length);
        stream_destroy(stream);
    }
    stops_destroy(stops);
}

/* A plain search, step by step over the whole text, for random small alphabets. */
static void test_stops_random(void **state)
{
    (void)state;
    unsigned seed = 77;
    for (int round = 0; round < 3000; ++round) {
        char text[41] = "", stop_text[2][6] = {"", ""}, out[64];
        for (int i = 0; i < 40; ++i)
            text[i] = (char)('a' + rand_r(&seed) % 2);
        struct stop_string strings[2];
        for (int s = 0; s < 2; ++s) {
            strings[s].length = (size_t)rand_r(&seed) % 5 + 1;
            strings[s].text = stop_text[s];
            for (size_t i = 0; i < strings[s].length; ++i)
                stop_text[s][i] = (char)('a' + rand_r(&seed) % 2);
        }
        size_t expected = 40, best = 0;
        int which = -1;
        for (size_t end = 1; end <= 40 && which < 0; ++end)
            for (int s = 0; s < 2; ++s)
                if (strings[s].length <= end && strings[s].length > best &&
                    memcmp(text + end - strings[s].length, strings[s].text, strings[s].length) ==
                        0) {
                    which = s;
                    best = strings[s].length;
                    expected = end - best;
                }
        struct stops *stops = stops_of(strings, 2);
        struct stream *stream = stream_of(stops, false);
        const char *rest;
        size_t length;
        int matched;
        size_t total = bytes_push(stream, text, 40, out, &matched);
        stream_finish(stream, &rest, &length);
        memcpy(out + total, rest, length);
        assert_int_equal(total + length, expected);
        assert_int_equal(matched, which);
        assert_memory_equal(out, text, expected);
        stream_destroy(stream);
        stops_destroy(stops);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code_points),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_held_back),
        cmocka_unit_test(test_stops_random),
        cmocka_unit_test(test_stops_after_min_tokens),
    };
    return cmocka_run_group_tests(tests, vectors_setup, vectors_teardown);
}
