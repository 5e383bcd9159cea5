/* tokenizer.json files that must be refused, each naming its field, and forms that must load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "daemon/tokenizer.h"

#define DEMO JETD_TEST_DATA "/../../ops/demo-model"

/* A small tokenizer: 256 bytes, "ab" (256), "abc" (257), "Ġa" (258). */
static json_t *small_file(void)
{
    json_t *root = json_loads(
        "{\"added_tokens\": [{\"id\": 300, \"content\": \"<x>\", \"special\": true},"
        "                    {\"id\": 301, \"content\": \"<x>y\", \"special\": false}],"
        " \"normalizer\": null,"
        " \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false,"
        "                     \"use_regex\": true},"
        " \"decoder\": {\"type\": \"ByteLevel\"},"
        " \"model\": {\"type\": \"BPE\", \"vocab\": {\"ab\": 256, \"abc\": 257, \"\u0120a\": 258},"
        "             \"merges\": [\"a b\", [\"ab\", \"c\"], \"\u0120 a\"]}}",
        0, NULL);
    assert_non_null(root);
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        int code = printable ? byte : next++;
        char key[3] = {(char)code, 0, 0};
        if (code >= 0x80) {
            key[0] = (char)(0xC0 | code >> 6);
            key[1] = (char)(0x80 | (code & 0x3F));
        }
        json_object_set_new(vocab, key, json_integer(byte));
    }
    return root;
}

static enum status parse(const json_t *root, struct tokenizer **tokenizer, struct error *error)
{
    char *text = json_dumps(root, JSON_ENCODE_ANY);
    assert_non_null(text);
    enum status status = tokenizer_parse("file", text, strlen(text), tokenizer, error);
    free(text);
    return status;
}

static void encode_assert(const struct tokenizer *tokenizer, const char *text,
                          const int32_t *expected, size_t count)
{
    struct arena *arena = arena_create(1 << 20);
    int32_t *ids;
    size_t got;
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), true, arena, &ids, &got, NULL),
                     STATUS_OK);
    assert_int_equal(got, count);
    assert_memory_equal(ids, expected, count * sizeof *ids);
    arena_destroy(arena);
}

static void test_small(void **state)
{
    (void)state;
    struct error error = {0};
    struct tokenizer *tokenizer;
    json_t *root = small_file();
    if (parse(root, &tokenizer, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    assert_int_equal(tokenizer_size(tokenizer), 302);
    encode_assert(tokenizer, "abcab a", (const int32_t[]){257, 256, 258}, 3);
    encode_assert(tokenizer, "a<x>y<x>b", (const int32_t[]){'a', 301, 300, 'b'}, 4);
    size_t length;
    assert_memory_equal(tokenizer_bytes(tokenizer, 258, true, &length), " a", 2);
    tokenizer_bytes(tokenizer, 300, true, &length);
    assert_int_equal(length, 0);
    tokenizer_bytes(tokenizer, 299, false, &length); /* a gap in the ids */
    assert_int_equal(length, 0);
    tokenizer_free(tokenizer);
    json_decref(root);
}

/* `path`: members and [indices]; the value there is replaced, or removed when json is NULL. */
struct change {
    const char *parent[4];
    const char *name; /* a number: an index */
    const char *json;
    enum status status;
    const char *cause;
};

static void change_apply(json_t *root, const struct change *change)
{
    json_t *at = root;
    for (int i = 0; i < 4 && change->parent[i] != NULL; ++i)
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(change->parent[i]))
                               : json_object_get(at, change->parent[i]);
    assert_non_null(at);
    json_t *value = change->json == NULL ? NULL : json_loads(change->json, JSON_DECODE_ANY, NULL);
    assert_true(change->json == NULL || value != NULL);
    if (value == NULL)
        json_object_del(at, change->name);
    else if (json_is_array(at))
        json_array_set_new(at, (size_t)atoi(change->name), value);
    else
        json_object_set_new(at, change->name, value);
}

static const struct change changes[] = {
    {{0}, "model", "[]", STATUS_CORRUPT, "model: must be an object"},
    {{"model"}, "type", "\"Unigram\"", STATUS_UNIMPLEMENTED, "model.type: \"Unigram\""},
    {{"model"}, "type", NULL, STATUS_CORRUPT, "model.type"},
    {{"model"}, "byte_fallback", "true", STATUS_UNIMPLEMENTED, "model.byte_fallback"},
    {{"model"}, "byte_fallback", "1", STATUS_CORRUPT, "model.byte_fallback"},
    {{"model"}, "ignore_merges", "true", STATUS_UNIMPLEMENTED, "model.ignore_merges"},
    {{"model"}, "dropout", "0.1", STATUS_UNIMPLEMENTED, "model.dropout"},
    {{"model"}, "unk_token", "\"a\"", STATUS_UNIMPLEMENTED, "model.unk_token"},
    {{"model"}, "end_of_word_suffix", "\"</w>\"", STATUS_UNIMPLEMENTED, "end_of_word_suffix"},
    {{"model"}, "vocab", "[]", STATUS_CORRUPT, "model.vocab: must be an object"},
    {{"model", "vocab"}, "ab", "-1", STATUS_CORRUPT, "model.vocab[\"ab\"]"},
    {{"model", "vocab"}, "ab", "4194304", STATUS_CORRUPT, "model.vocab[\"ab\"]"},
    {{"model", "vocab"}, "ab", "9223372036854775807", STATUS_CORRUPT, "model.vocab[\"ab\"]"},
    {{"model", "vocab"}, "ab", "1.5", STATUS_CORRUPT, "model.vocab[\"ab\"]"},
    {{"model", "vocab"}, "ab", "257", STATUS_CORRUPT, "id 257 is taken"},
    {{"model", "vocab"}, "", "290", STATUS_CORRUPT, "0 bytes"},
    {{"model", "vocab"}, "a", NULL, STATUS_CORRUPT, "no token for byte 0x61"},
    {{"model"}, "merges", "{}", STATUS_CORRUPT, "model.merges: must be an array"},
    {{"model", "merges"}, "1", "\"ab\"", STATUS_CORRUPT, "model.merges[1]"},
    {{"model", "merges"}, "1", "\"a b c\"", STATUS_CORRUPT, "model.merges[1]"},
    {{"model", "merges"}, "1", "[\"a\"]", STATUS_CORRUPT, "model.merges[1]"},
    {{"model", "merges"}, "1", "[\"a\", 1]", STATUS_CORRUPT, "model.merges[1]"},
    {{"model", "merges"}, "1", "7", STATUS_CORRUPT, "model.merges[1]"},
    {{"model", "merges"}, "1", "\"a c\"", STATUS_CORRUPT, "model.merges[1]: its halves"},
    {{"model", "merges"}, "1", "\"a b\"", STATUS_CORRUPT, "model.merges[1]: repeats"},
    {{0}, "normalizer", "{\"type\": \"NFKC\"}", STATUS_UNIMPLEMENTED, "normalizer.type: \"NFKC\""},
    {{0}, "normalizer", "3", STATUS_CORRUPT, "normalizer.type"},
    {{0}, "pre_tokenizer", "null", STATUS_CORRUPT, "pre_tokenizer: must be"},
    {{"pre_tokenizer"}, "type", "\"Whitespace\"", STATUS_UNIMPLEMENTED, "pre_tokenizer.type"},
    {{"pre_tokenizer"}, "add_prefix_space", "true", STATUS_UNIMPLEMENTED, "add_prefix_space"},
    {{"pre_tokenizer"}, "use_regex", "false", STATUS_UNIMPLEMENTED, "pre_tokenizer.use_regex"},
    {{0}, "decoder", "{\"type\": \"Metaspace\"}", STATUS_UNIMPLEMENTED, "decoder.type"},
    {{0}, "decoder", NULL, STATUS_CORRUPT, "decoder.type"},
    {{0},
     "post_processor",
     "{\"type\": \"TemplateProcessing\"}",
     STATUS_UNIMPLEMENTED,
     "post_processor.type"},
    {{0}, "added_tokens", "3", STATUS_CORRUPT, "added_tokens: must be an array"},
    {{"added_tokens", "0"}, "id", "-1", STATUS_CORRUPT, "added_tokens[0].id"},
    {{"added_tokens", "0"}, "id", "301", STATUS_CORRUPT, "added_tokens[1]: repeats"},
    {{"added_tokens", "0"}, "id", "97", STATUS_CORRUPT, "added_tokens[0].id"},
    {{"added_tokens", "0"}, "content", "\"\"", STATUS_CORRUPT, "added_tokens[0].content"},
    {{"added_tokens", "0"}, "content", "5", STATUS_CORRUPT, "added_tokens[0].content"},
    {{"added_tokens", "0"}, "content", "\"ab\"", STATUS_CORRUPT, "added_tokens[0].id"},
    {{"added_tokens", "0"}, "lstrip", "true", STATUS_UNIMPLEMENTED, "added_tokens[0].lstrip"},
    {{"added_tokens", "1"}, "normalized", "true", STATUS_UNIMPLEMENTED, "normalized"},
};

static const struct change split_changes[] = {
    {{"pre_tokenizer"}, "pretokenizers", "[]", STATUS_UNIMPLEMENTED, "pretokenizers: must be"},
    {{"pre_tokenizer", "pretokenizers", "0"},
     "type",
     "\"Digits\"",
     STATUS_UNIMPLEMENTED,
     "pretokenizers[0].type: \"Digits\""},
    {{"pre_tokenizer", "pretokenizers", "0"},
     "behavior",
     "\"Removed\"",
     STATUS_UNIMPLEMENTED,
     "behavior: \"Removed\""},
    {{"pre_tokenizer", "pretokenizers", "0"}, "invert", "true", STATUS_UNIMPLEMENTED, "invert"},
    {{"pre_tokenizer", "pretokenizers", "0"},
     "pattern",
     "{\"String\": \" \"}",
     STATUS_UNIMPLEMENTED,
     "pattern.Regex"},
    {{"pre_tokenizer", "pretokenizers", "0", "pattern"},
     "Regex",
     "\"(a\"",
     STATUS_CORRUPT,
     "pretokenizers[0].pattern.Regex: "},
    {{"pre_tokenizer", "pretokenizers", "0", "pattern"},
     "Regex",
     "\"a\\\\\"",
     STATUS_CORRUPT,
     "pattern.Regex: ends in a backslash"},
    {{"pre_tokenizer", "pretokenizers", "0", "pattern"},
     "Regex",
     "\"[\\\\S]\"",
     STATUS_UNIMPLEMENTED,
     "\\S inside a class"},
    {{"pre_tokenizer", "pretokenizers", "0", "pattern"},
     "Regex",
     "\"\"",
     STATUS_CORRUPT,
     "0 bytes"},
    {{"pre_tokenizer", "pretokenizers", "1"},
     "use_regex",
     "true",
     STATUS_UNIMPLEMENTED,
     "pretokenizers[1].use_regex"},
    {{"pre_tokenizer", "pretokenizers", "1"},
     "type",
     "\"Split\"",
     STATUS_UNIMPLEMENTED,
     "pretokenizers[1].type"},
};

static void refused(json_t *root, const struct change *change)
{
    struct tokenizer *tokenizer = NULL;
    struct error error = {0};
    change_apply(root, change);
    enum status status = parse(root, &tokenizer, &error);
    if (status != change->status || strncmp(error.text, "file: ", 6) != 0 ||
        strstr(error.text, change->cause) == NULL)
        fail_msg("\"%s\": status %d, \"%s\"", change->cause, status, error.text);
    assert_null(tokenizer);
    json_decref(root);
}

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; ++i)
        refused(small_file(), &changes[i]);
    for (size_t i = 0; i < sizeof split_changes / sizeof *split_changes; ++i) {
        json_t *root = small_file();
        json_object_set_new(
            root, "pre_tokenizer",
            json_loads("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\","
                       "\"pattern\": {\"Regex\": \"\\\\s+|\\\\S\"}, \"behavior\": \"Isolated\"},"
                       "{\"type\": \"ByteLevel\", \"use_regex\": false}]}",
                       0, NULL));
        struct tokenizer *tokenizer;
        assert_int_equal(parse(root, &tokenizer, NULL), STATUS_OK);
        tokenizer_free(tokenizer);
        refused(root, &split_changes[i]);
    }
}

static void test_not_json(void **state)
{
    (void)state;
    char nested[80] = {0};
    memset(nested, '[', sizeof nested - 1);
    const struct {
        const char *text, *cause;
    } cases[] = {
        {"", ""},
        {"{", ""},
        {"[]", ""},
        {"{\"a\": 1, \"a\": 2}", ""},
        {"{\"model\": NaN}", ""},
        {"nul", ""},
        {"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"},
        {nested, "nested deeper"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        struct tokenizer *tokenizer;
        struct error error = {0};
        assert_int_equal(
            tokenizer_parse("file", cases[i].text, strlen(cases[i].text), &tokenizer, &error),
            STATUS_CORRUPT);
        assert_int_equal(strncmp(error.text, "file: ", 6), 0);
        assert_non_null(strstr(error.text, cases[i].cause));
    }
}

static void test_folders(void **state)
{
    (void)state;
    struct tokenizer *tokenizer;
    struct error error = {0};
    assert_int_equal(tokenizer_load("/nonexistent", &tokenizer, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "/nonexistent/tokenizer.json"));
    error_clear(&error);
    if (tokenizer_load(DEMO, &tokenizer, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    assert_int_equal(tokenizer_size(tokenizer), 4096);
    assert_int_equal(tokenizer_special(tokenizer, "<|im_end|>"), 4095);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_not_json),
        cmocka_unit_test(test_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
