#include <stdlib.h>
#include <string.h>

#include "daemon/tokenizer_fields.h"

/* The id of a JSON integer, -1 when it is none or out of bounds. */
static int32_t id_of(const json_t *value)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    return id < 0 || id >= TOKENIZER_IDS_MAX ? -1 : (int32_t)id;
}

static enum status no_memory(struct error *error)
{
    return error_set(error, STATUS_NO_MEMORY, "out of memory");
}

/* The largest id: ids may have gaps, but not be larger than the file could mean. */
static enum status size_find(json_t *vocab, const json_t *added, struct tokenizer *tokenizer,
                             struct error *error)
{
    const char *key;
    json_t *value;
    int32_t largest = -1;
    json_object_foreach(vocab, key, value)
    {
        int32_t id = id_of(value);
        if (id < 0)
            return error_set(error, STATUS_CORRUPT,
                             "model.vocab[\"%s\"]: must be an id from 0 to %d",
                             field_name(key).text, TOKENIZER_IDS_MAX - 1);
        largest = id > largest ? id : largest;
    }
    for (size_t i = 0; i < json_array_size(added); ++i) {
        int32_t id = id_of(json_object_get(json_array_get(added, i), "id"));
        if (id < 0)
            return error_set(error, STATUS_CORRUPT,
                             "added_tokens[%zu].id: must be an id from 0 to %d", i,
                             TOKENIZER_IDS_MAX - 1);
        largest = id > largest ? id : largest;
    }
    tokenizer->size = largest + 1;
    tokenizer->tokens = calloc((size_t)tokenizer->size + 1, sizeof *tokenizer->tokens);
    return tokenizer->tokens == NULL ? no_memory(error) : STATUS_OK;
}

/* Stores a token's raw bytes under its id. */
static bool token_store(struct tokenizer *tokenizer, int32_t id, const char *content, size_t length,
                        bool *outside)
{
    if (!text_reserve(&tokenizer->bytes, length) ||
        tokenizer->bytes.length > UINT32_MAX - TOKENIZER_TOKEN_MAX)
        return false;
    struct token *token = &tokenizer->tokens[id];
    token->offset = (uint32_t)tokenizer->bytes.length;
    token->length = (uint16_t)bytes_from_text(
        content, length, tokenizer->bytes.bytes + tokenizer->bytes.length, outside);
    token->present = true;
    tokenizer->bytes.length += token->length;
    if (token->length > tokenizer->longest)
        tokenizer->longest = token->length;
    return true;
}

static enum status vocab_tokens(json_t *vocab, struct tokenizer *tokenizer, struct error *error)
{
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value)
    {
        int32_t id = id_of(value);
        size_t length = strlen(key);
        bool outside;
        if (length == 0 || length > TOKENIZER_TOKEN_MAX)
            return error_set(error, STATUS_CORRUPT,
                             "model.vocab[\"%s\"]: %zu bytes, must be 1 to %d",
                             field_name(key).text, length, TOKENIZER_TOKEN_MAX);
        if (tokenizer->tokens[id].present)
            return error_set(error, STATUS_CORRUPT, "model.vocab[\"%s\"]: id %d is taken",
                             field_name(key).text, id);
        if (!token_store(tokenizer, id, key, length, &outside))
            return no_memory(error);
        if (!outside)
            words_add(tokenizer, id);
    }
    for (int byte = 0; byte < 256; ++byte) {
        char one = (char)byte;
        tokenizer->byte_ids[byte] = words_find(tokenizer, &one, 1);
        if (tokenizer->byte_ids[byte] < 0)
            return error_set(error, STATUS_CORRUPT, "model.vocab: no token for byte 0x%02X", byte);
    }
    return STATUS_OK;
}

/* The two halves of a merge: "a b" or ["a", "b"]. */
static bool merge_halves(const json_t *merge, const char **left, size_t *left_length,
                         const char **right, size_t *right_length)
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge), *space = strchr(text, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL)
            return false;
        *left = text;
        *left_length = (size_t)(space - text);
        *right = space + 1;
        *right_length = strlen(space + 1);
        return true;
    }
    const json_t *first = json_array_get(merge, 0), *second = json_array_get(merge, 1);
    if (json_array_size(merge) != 2 || !json_is_string(first) || !json_is_string(second))
        return false;
    *left = json_string_value(first);
    *left_length = json_string_length(first);
    *right = json_string_value(second);
    *right_length = json_string_length(second);
    return true;
}

static int32_t vocab_id(const json_t *vocab, char *key, size_t length)
{
    key[length] = '\0';
    return id_of(json_object_get(vocab, key));
}

static enum status merge_load(const json_t *vocab, const json_t *merge, size_t index,
                              struct tokenizer *tokenizer, struct error *error)
{
    const char *left, *right;
    size_t left_length, right_length;
    char key[TOKENIZER_TOKEN_MAX + 1];
    if (!merge_halves(merge, &left, &left_length, &right, &right_length))
        return error_set(error, STATUS_CORRUPT,
                         "model.merges[%zu]: must be \"left right\" or [\"left\", \"right\"]",
                         index);
    if (left_length > TOKENIZER_TOKEN_MAX || right_length > TOKENIZER_TOKEN_MAX - left_length)
        return error_set(error, STATUS_CORRUPT, "model.merges[%zu]: longer than %d bytes", index,
                         TOKENIZER_TOKEN_MAX);
    memcpy(key, left, left_length);
    int32_t left_id = vocab_id(vocab, key, left_length);
    memcpy(key, right, right_length);
    int32_t right_id = vocab_id(vocab, key, right_length);
    memcpy(key, left, left_length);
    memcpy(key + left_length, right, right_length);
    int32_t id = vocab_id(vocab, key, left_length + right_length);
    if (left_id < 0 || right_id < 0 || id < 0)
        return error_set(error, STATUS_CORRUPT,
                         "model.merges[%zu]: its halves and their union must be in model.vocab",
                         index);
    if (!merges_add(tokenizer, left_id, right_id, (uint32_t)index, id))
        return error_set(error, STATUS_CORRUPT, "model.merges[%zu]: repeats a merge", index);
    return STATUS_OK;
}

static enum status added_check(const json_t *entry, size_t index, const char **content,
                               size_t *length, struct error *error)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip", "normalized"};
    char path[40];
    snprintf(path, sizeof path, "added_tokens[%zu]", index);
    const json_t *text = json_object_get(entry, "content");
    *content = json_string_value(text);
    *length = json_string_length(text);
    if (*content == NULL || *length == 0 || *length > TOKENIZER_TOKEN_MAX)
        return error_set(error, STATUS_CORRUPT, "%s.content: must be a string of 1 to %d bytes",
                         path, TOKENIZER_TOKEN_MAX);
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof off / sizeof *off; ++i)
        status = field_flag(entry, path, off[i], false, error);
    return status;
}

/* An added token may repeat a token of the vocabulary, under the same id. */
static enum status added_store(const json_t *vocab, const json_t *entry, size_t index,
                               struct tokenizer *tokenizer, struct error *error)
{
    const char *content;
    size_t length;
    bool outside;
    enum status status = added_check(entry, index, &content, &length, error);
    if (status != STATUS_OK)
        return status;
    int32_t id = id_of(json_object_get(entry, "id"));
    int32_t known = id_of(json_object_get(vocab, content));
    for (int i = 0; i < tokenizer->added_count; ++i)
        if (tokenizer->added[i].id == id ||
            (tokenizer->added[i].length == length &&
             memcmp(tokenizer->added[i].text, content, length) == 0))
            return error_set(error, STATUS_CORRUPT, "added_tokens[%zu]: repeats added_tokens[%d]",
                             index, i);
    if (known >= 0 ? known != id : tokenizer->tokens[id].present)
        return error_set(error, STATUS_CORRUPT,
                         "added_tokens[%zu].id: model.vocab says otherwise about %d", index, id);
    if (known < 0 && !token_store(tokenizer, id, content, length, &outside))
        return no_memory(error);
    tokenizer->tokens[id].special = json_is_true(json_object_get(entry, "special"));
    tokenizer->added[tokenizer->added_count++] =
        (struct added){.text = tokenizer->added_text.bytes + tokenizer->added_text.length,
                       .length = length,
                       .id = id};
    if (length > tokenizer->longest_added)
        tokenizer->longest_added = length;
    text_append(&tokenizer->added_text, content, length); /* reserved before: does not move */
    return STATUS_OK;
}

static enum status added_load(const json_t *vocab, const json_t *added, struct tokenizer *tokenizer,
                              struct error *error)
{
    size_t count = json_array_size(added), bytes = 0;
    for (size_t i = 0; i < count; ++i)
        bytes += json_string_length(json_object_get(json_array_get(added, i), "content"));
    tokenizer->added = calloc(count + 1, sizeof *tokenizer->added);
    if (tokenizer->added == NULL || !text_reserve(&tokenizer->added_text, bytes + 1))
        return no_memory(error);
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < count; ++i)
        status = added_store(vocab, json_array_get(added, i), i, tokenizer, error);
    added_order(tokenizer);
    return status;
}

/* Marks the tokens that their own bytes merge to, so that whole words need no merging. */
static enum status whole_mark(struct tokenizer *tokenizer, struct error *error)
{
    struct bpe *bpe = bpe_create(tokenizer);
    struct ids ids = {0};
    bool fine = bpe != NULL;
    for (size_t i = 0; fine && i <= tokenizer->word_mask; ++i) {
        int32_t id = tokenizer->words[i];
        if (id < 0)
            continue;
        struct token *token = &tokenizer->tokens[id];
        ids.count = 0;
        fine = bpe_word(bpe, tokenizer->bytes.bytes + token->offset, token->length, &ids);
        token->whole = fine && ids.count == 1 && ids.values[0] == id;
    }
    free(ids.values);
    bpe_destroy(bpe);
    return fine ? STATUS_OK : no_memory(error);
}

enum status vocab_load(const json_t *model, const json_t *added, struct tokenizer *tokenizer,
                       struct error *error)
{
    json_t *vocab = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab) || json_object_size(vocab) > TOKENIZER_IDS_MAX)
        return error_set(error, STATUS_CORRUPT, "model.vocab: must be an object of at most %d",
                         TOKENIZER_IDS_MAX);
    if (!json_is_array(merges) || json_array_size(merges) > TOKENIZER_IDS_MAX)
        return error_set(error, STATUS_CORRUPT, "model.merges: must be an array of at most %d",
                         TOKENIZER_IDS_MAX);
    if (added != NULL && (!json_is_array(added) || json_array_size(added) > TOKENIZER_ADDED_MAX))
        return error_set(error, STATUS_CORRUPT, "added_tokens: must be an array of at most %d",
                         TOKENIZER_ADDED_MAX);
    if (!merges_create(tokenizer, json_array_size(merges)) ||
        !words_create(tokenizer, json_object_size(vocab)))
        return no_memory(error);
    enum status status = size_find(vocab, added, tokenizer, error);
    if (status == STATUS_OK)
        status = vocab_tokens(vocab, tokenizer, error);
    for (size_t i = 0; status == STATUS_OK && i < json_array_size(merges); ++i)
        status = merge_load(vocab, json_array_get(merges, i), i, tokenizer, error);
    if (status == STATUS_OK)
        status = added_load(vocab, added, tokenizer, error);
    if (status == STATUS_OK)
        status = whole_mark(tokenizer, error);
    return status;
}
