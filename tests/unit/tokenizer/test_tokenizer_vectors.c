/* The conformance vectors: ids and texts that the HF tokenizer and its chat template gave. */
#include "tests/unit/tokenizer/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct arena *arena;

static void encode_check(const json_t *line, int number)
{
    const json_t *text = json_object_get(line, "text");
    int32_t *ids;
    size_t count;
    assert_int_equal(tokenizer_encode(vectors_tokenizer, json_string_value(text),
                                      json_string_length(text), true, arena, &ids, &count, NULL),
                     STATUS_OK);
    vectors_assert_ids(json_object_get(line, "ids"), ids, count, number);
}

static void decode_check(const json_t *line, int number)
{
    const json_t *list = json_object_get(line, "ids"), *expected = json_object_get(line, "text");
    size_t count = json_array_size(list), length;
    int32_t *ids = arena_allocate(arena, count, sizeof *ids);
    char *text;
    for (size_t i = 0; i < count; ++i)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    assert_int_equal(tokenizer_decode(vectors_tokenizer, ids, count,
                                      json_is_true(json_object_get(line, "skip_special")), arena,
                                      &text, &length, NULL),
                     STATUS_OK);
    if (length != json_string_length(expected) ||
        memcmp(text, json_string_value(expected), length) != 0)
        fail_msg("line %d: \"%s\", expected \"%s\"", number, text, json_string_value(expected));
}

static void test_encode(void **state)
{
    (void)state;
    assert_int_equal(vectors_each("vectors.jsonl", encode_check), 256);
    assert_int_equal(vectors_each("fuzz_vectors.jsonl", encode_check), 1500);
}

static void test_decode(void **state)
{
    (void)state;
    assert_int_equal(vectors_each("decode_vectors.jsonl", decode_check), 915);
}

struct chat_case {
    struct chat_message messages[16];
    char *calls[16], *tools;
    size_t count;
    bool prompt, injects; /* some content spells a control token */
};

static void chat_read(const json_t *line, struct chat_case *chat)
{
    const json_t *messages = json_object_get(line, "messages");
    const json_t *tools = json_object_get(line, "tools");
    *chat = (struct chat_case){.count = json_array_size(messages)};
    assert_true(chat->count <= 16);
    for (size_t i = 0; i < chat->count; ++i) {
        const json_t *message = json_array_get(messages, i);
        const json_t *role = json_object_get(message, "role");
        const json_t *content = json_object_get(message, "content");
        const json_t *calls = json_object_get(message, "tool_calls");
        chat->calls[i] = json_is_array(calls) ? json_dumps(calls, 0) : NULL;
        chat->messages[i] = (struct chat_message){
            .role = json_string_value(role),
            .role_length = json_string_length(role),
            .content = json_string_value(content),
            .content_length = json_string_length(content),
            .tool_calls = chat->calls[i],
            .tool_calls_length = chat->calls[i] == NULL ? 0 : strlen(chat->calls[i])};
        if (json_is_string(content) && strstr(json_string_value(content), "<|") != NULL)
            chat->injects = true;
    }
    chat->tools = json_is_array(tools) ? json_dumps(tools, 0) : NULL;
    chat->prompt = json_is_true(json_object_get(line, "add_generation_prompt"));
}

static void chat_free(struct chat_case *chat)
{
    for (size_t i = 0; i < chat->count; ++i)
        free(chat->calls[i]);
    free(chat->tools);
}

static size_t ids_count(const int32_t *ids, size_t count, int32_t id)
{
    size_t found = 0;
    for (size_t i = 0; i < count; ++i)
        found += ids[i] == id;
    return found;
}

/* HF lets content become control tokens; here it must stay text: same text, fewer such tokens. */
static void injection_check(const struct chat_case *chat, const json_t *line, const int32_t *ids,
                            size_t count)
{
    const json_t *expected = json_object_get(line, "text");
    char *text;
    size_t length;
    assert_int_equal(ids_count(ids, count, 151645), chat->count + 1); /* + the system turn */
    assert_int_equal(
        tokenizer_decode(vectors_tokenizer, ids, count, false, arena, &text, &length, NULL),
        STATUS_OK);
    assert_string_equal(text, json_string_value(expected));
}

static void chat_check(const json_t *line, int number)
{
    struct chat_case chat;
    struct chat_text rendered = {0};
    struct error error = {0};
    const json_t *text = json_object_get(line, "text");
    int32_t *ids;
    size_t count, tools_length;
    chat_read(line, &chat);
    tools_length = chat.tools == NULL ? 0 : strlen(chat.tools);
    if (chat_render(chat.messages, chat.count, chat.tools, tools_length, chat.prompt, &rendered,
                    &error) != STATUS_OK)
        fail_msg("line %d: %s", number, error.text);
    assert_int_equal(rendered.text.length, json_string_length(text));
    assert_memory_equal(rendered.text.bytes, json_string_value(text), rendered.text.length);
    assert_int_equal(tokenizer_chat_tools(vectors_tokenizer, chat.messages, chat.count, chat.tools,
                                          tools_length, chat.prompt, arena, &ids, &count, &error),
                     STATUS_OK);
    if (chat.injects)
        injection_check(&chat, line, ids, count);
    else
        vectors_assert_ids(json_object_get(line, "ids"), ids, count, number);
    if (chat.tools == NULL) {
        int32_t *same;
        size_t same_count;
        assert_int_equal(tokenizer_chat(vectors_tokenizer, chat.messages, chat.count, chat.prompt,
                                        arena, &same, &same_count, NULL),
                         STATUS_OK);
        assert_int_equal(same_count, count);
        assert_memory_equal(same, ids, count * sizeof *ids);
    }
    chat_text_free(&rendered);
    chat_free(&chat);
}

static void test_chat(void **state)
{
    (void)state;
    assert_int_equal(vectors_each("chat_vectors.jsonl", chat_check), 26);
}

static void chat_refused(struct chat_message *messages, size_t count, const char *tools,
                         const char *cause)
{
    struct error error = {0};
    int32_t *ids;
    size_t id_count;
    assert_int_equal(tokenizer_chat_tools(vectors_tokenizer, messages, count, tools,
                                          tools == NULL ? 0 : strlen(tools), true, arena, &ids,
                                          &id_count, &error),
                     STATUS_INVALID_ARGUMENT);
    if (strstr(error.text, cause) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.text, cause);
}

#define MESSAGE(r, c)                                                                              \
    {                                                                                              \
        .role = (r), .role_length = strlen(r), .content = (c), .content_length = strlen(c)         \
    }

static void test_chat_refused(void **state)
{
    (void)state;
    struct chat_message role[] = {MESSAGE("user", "a"), MESSAGE("robot", "b")};
    struct chat_message broken[] = {MESSAGE("user", "ab\xC3(")};
    struct chat_message calls[] = {MESSAGE("user", "a"), MESSAGE("assistant", "")};
    calls[1].tool_calls = "[{\"name\": 1}]";
    calls[1].tool_calls_length = strlen(calls[1].tool_calls);
    chat_refused(role, 0, NULL, "messages: must not be empty");
    chat_refused(role, 2, NULL, "messages[1]: role");
    chat_refused(broken, 1, NULL, "messages[0]: content: invalid UTF-8 at byte 2");
    chat_refused(calls, 2, NULL, "messages[1]: tool_calls[0]");
    chat_refused(role, 1, "{}", "tools: must be a JSON array");
    chat_refused(role, 1, "[1,", "tools: byte 3");
}

static void test_json(void **state)
{
    (void)state;
    /* Each right side is what Python's json.dumps(json.loads(left), ensure_ascii=False) gives. */
    static const char *const pairs[][2] = {
        {"[1,-0,0.0,-0.5,1e5,1E16,1e15,123456789.125,1e-4,1e-5,0.1,1.5e300]",
         "[1, 0, 0.0, -0.5, 100000.0, 1e+16, 1000000000000000.0, 123456789.125, 0.0001, 1e-05, "
         "0.1, 1.5e+300]"},
        {"{\"b\":null,\"a\":[true,false,{}],\"\\u00e9\\/\":\"\\u0007\\u001f\\t\\\"\\\\<\\u007f\"}",
         "{\"b\": null, \"a\": [true, false, {}], \"\xC3\xA9/\": "
         "\"\\u0007\\u001f\\t\\\"\\\\<\x7f\"}"},
        {"[3.14159265358979312,5e-324,1.7976931348623157e308]",
         "[3.141592653589793, 5e-324, 1.7976931348623157e+308]"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; ++i) {
        struct chat_message message = MESSAGE("user", "x");
        struct chat_text chat = {0};
        char tools[512];
        snprintf(tools, sizeof tools, "[%s]", pairs[i][0]);
        assert_int_equal(chat_render(&message, 1, tools, strlen(tools), false, &chat, NULL),
                         STATUS_OK);
        assert_true(text_append(&chat.text, "", 1));
        const char *start = strstr(chat.text.bytes, "<tools>\n") + strlen("<tools>\n");
        if (strncmp(start, pairs[i][1], strlen(pairs[i][1])) != 0)
            fail_msg("got %.200s", start);
        assert_int_equal(start[strlen(pairs[i][1])], '\n');
        chat_text_free(&chat);
    }
}

static void test_plain_specials(void **state)
{
    (void)state;
    int32_t *ids;
    size_t count;
    assert_int_equal(
        tokenizer_encode(vectors_tokenizer, "<|im_end|>", 10, false, arena, &ids, &count, NULL),
        STATUS_OK);
    assert_true(count > 1);
    assert_int_equal(ids_count(ids, count, 151645), 0);
    assert_int_equal(tokenizer_special(vectors_tokenizer, "<|im_end|>"), 151645);
    assert_int_equal(tokenizer_special(vectors_tokenizer, "<|im_end"), -1);
    assert_int_equal(tokenizer_size(vectors_tokenizer), 151665);
    size_t length;
    tokenizer_bytes(vectors_tokenizer, 151665, false, &length);
    assert_int_equal(length, 0);
    tokenizer_bytes(vectors_tokenizer, -1, false, &length);
    assert_int_equal(length, 0);
}

static void test_invalid(void **state)
{
    (void)state;
    struct error error = {0};
    int32_t *ids;
    size_t count;
    assert_int_equal(tokenizer_encode(vectors_tokenizer, "abc\xED\xA0\x80", 6, true, arena, &ids,
                                      &count, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "byte 3"));
}

static void test_arena_limit(void **state)
{
    (void)state;
    struct arena *small = arena_create(64);
    int32_t *ids;
    size_t count, length;
    char *text;
    assert_int_equal(tokenizer_encode(vectors_tokenizer, "1 2 3 4 5 6 7 8 9 10 11 12", 26, true,
                                      small, &ids, &count, NULL),
                     STATUS_RESOURCE_EXHAUSTED);
    const int32_t many[64] = {0};
    assert_int_equal(
        tokenizer_decode(vectors_tokenizer, many, 64, true, small, &text, &length, NULL),
        STATUS_RESOURCE_EXHAUSTED);
    arena_destroy(small);
}

static int setup(void **state)
{
    arena = arena_create((size_t)1 << 30);
    return vectors_setup(state);
}

static int teardown(void **state)
{
    arena_destroy(arena);
    return vectors_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode),  cmocka_unit_test(test_decode),
        cmocka_unit_test(test_chat),    cmocka_unit_test(test_chat_refused),
        cmocka_unit_test(test_json),    cmocka_unit_test(test_plain_specials),
        cmocka_unit_test(test_invalid), cmocka_unit_test(test_arena_limit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
