/* Bytes to messages: what is refused, with which words, and how much memory it may take. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/rpc_unpack.h"
#include "jet/v1/generation.pb-c.h"

static enum status unpack(const void *bytes, size_t length, struct error *error)
{
    struct arena *arena = NULL;
    ProtobufCMessage *message = NULL;
    *error = (struct error){0};
    enum status status =
        rpc_unpack(&jet__v1__generate_request__descriptor, bytes, length, &arena, &message, error);
    assert_int_equal(status, error->status);
    assert_true((status == STATUS_OK) == (message != NULL));
    arena_destroy(arena);
    return status;
}

static void refuse(const char *bytes, size_t length, const char *words)
{
    struct error error;
    assert_int_equal(unpack(bytes, length, &error), STATUS_INVALID_ARGUMENT);
    if (!strstr(error.text, words))
        fail_msg("\"%s\" lacks \"%s\"", error.text, words);
}

static void strings_are_checked_with_their_path(void **state)
{
    (void)state;
    refuse("\x0a\x02\xff\xfe", 4, "request_id: not UTF-8 at byte 0");
    refuse("\x12\x03ok\xc0", 5, "text: not UTF-8 at byte 2");
    /* chat { messages {} messages { content: "\xed\xa0\x80" } } */
    refuse("\x22\x09\x0a\x00\x0a\x05\x12\x03\xed\xa0\x80", 11,
           "chat.messages[1].content: not UTF-8 at byte 0");
    refuse("\x42\x01x\x42\x01\x80", 6, "stop[1]: not UTF-8");
    /* Of a oneof, what stands last counts: the broken text before it is gone. */
    struct error error;
    assert_int_equal(unpack("\x12\x01\xff\x12\x01x", 6, &error), STATUS_OK);
}

static void text_keeps_its_zero_bytes(void **state)
{
    (void)state;
    struct arena *arena;
    ProtobufCMessage *message;
    assert_int_equal(rpc_unpack(&jet__v1__generate_request__descriptor,
                                (const uint8_t *)"\x12\x03"
                                                 "a\0b",
                                5, &arena, &message, NULL),
                     STATUS_OK);
    const Jet__V1__GenerateRequest *request = (const void *)message;
    assert_int_equal(request->prompt_case, JET__V1__GENERATE_REQUEST__PROMPT_TEXT);
    assert_int_equal(request->text.len, 3);
    assert_memory_equal(request->text.data, "a\0b", 3);
    arena_destroy(arena);
}

static void no_message(void **state)
{
    (void)state;
    refuse("\x07", 1, "the bytes are not a jet.v1.GenerateRequest");
    refuse("\x12\x05x", 3, "the bytes are not");
    refuse("\x2a\x02\x0d\x00", 4, "the bytes are not");
    struct error error;
    assert_int_equal(unpack("", 0, &error), STATUS_OK);
}

/* Every cut of a good message is either refused or a message: never a crash. */
static void every_cut(void **state)
{
    (void)state;
    static const char good[] = "\x0a\x02id\x22\x0a\x0a\x08\x0a\x04user\x12\x00\x2a\x05\x0d\x00\x00"
                               "\x00\x3f\x42\x01x\x4a\x02\x01\x02\x70\x05";
    for (size_t length = 0; length < sizeof good; length++) {
        char *exact = malloc(length ? length : 1);
        struct error error;
        memcpy(exact, good, length);
        unpack(exact, length, &error);
        free(exact);
    }
}

static void memory_is_bounded_by_the_bytes(void **state)
{
    (void)state;
    enum { ENTRIES = 1000000 };
    /* sampling { logit_bias {} logit_bias {} ... }: two bytes an entry, forty unpacked. */
    size_t inner = (size_t)ENTRIES * 2, at = 0;
    char *bytes = malloc(inner + 8);
    bytes[at++] = 0x2a;
    for (size_t left = inner; left; left >>= 7)
        bytes[at++] = (char)((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    for (size_t i = 0; i < ENTRIES; i++) {
        bytes[at++] = 0x4a;
        bytes[at++] = 0;
    }
    refuse(bytes, at, "unpack to more than");
    free(bytes);
    /* A million ids one by one, which is how old clients send them, is an honest request. */
    at = 0;
    size_t list = (size_t)ENTRIES * 4;
    bytes = malloc(list + 8);
    bytes[at++] = 0x1a;
    for (size_t left = list; left; left >>= 7)
        bytes[at++] = (char)((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    for (size_t i = 0; i < ENTRIES; i++) {
        memcpy(bytes + at, "\x08\x80\x80\x01", 4);
        at += 4;
    }
    struct error error;
    assert_int_equal(unpack(bytes, at, &error), STATUS_OK);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_checked_with_their_path),
        cmocka_unit_test(text_keeps_its_zero_bytes),
        cmocka_unit_test(no_message),
        cmocka_unit_test(every_cut),
        cmocka_unit_test(memory_is_bounded_by_the_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
