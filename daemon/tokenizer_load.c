#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/file.h"
#include "daemon/base/json.h"
#include "daemon/tokenizer_fields.h"

static const struct document_limits file_limits = {
    .bytes = TOKENIZER_FILE_MAX,
    .depth = 32,
    .values = 4 * (size_t)TOKENIZER_IDS_MAX, /* an id, and a merge: a list of two */
};

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    text_free(&tokenizer->bytes);
    text_free(&tokenizer->added_text);
    free(tokenizer->tokens);
    free(tokenizer->merges);
    free(tokenizer->words);
    free(tokenizer->added);
    split_free(tokenizer->split);
    free(tokenizer);
}

static enum status root_load(const json_t *root, struct tokenizer *tokenizer, struct error *error)
{
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(root))
        return error_set(error, STATUS_CORRUPT, "must be an object");
    enum status status = fields_model(model, error);
    if (status == STATUS_OK)
        status = fields_normalizer(root, tokenizer, error);
    if (status == STATUS_OK)
        status = fields_pre_tokenizer(root, tokenizer, error);
    if (status == STATUS_OK)
        status = fields_decoder(root, error);
    if (status == STATUS_OK)
        status = vocab_load(model, json_object_get(root, "added_tokens"), tokenizer, error);
    return status;
}

enum status tokenizer_parse(const char *name, const char *text, size_t length,
                            struct tokenizer **tokenizer, struct error *error)
{
    struct error unasked = {0};
    error = error == NULL ? &unasked : error;
    struct document *document;
    enum status status = document_parse(name, text, length, file_limits, &document, error);
    if (status != STATUS_OK)
        return status;
    struct tokenizer *fresh = calloc(1, sizeof *fresh);
    status = fresh == NULL ? error_set(error, STATUS_NO_MEMORY, "out of memory")
                           : root_load(document_root(document).value, fresh, error);
    document_free(document);
    if (status != STATUS_OK) {
        tokenizer_free(fresh);
        error_prefix(error, "%s", name);
        return status;
    }
    *tokenizer = fresh;
    return STATUS_OK;
}

enum status tokenizer_load(const char *folder, struct tokenizer **tokenizer, struct error *error)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    if (length < 0 || (size_t)length >= sizeof path)
        return error_set(error, STATUS_CONFIG, "%.80s...: the path is too long", folder);
    char *text;
    size_t bytes;
    enum status status = file_read(path, file_limits.bytes, &text, &bytes, error);
    if (status != STATUS_OK)
        return status;
    status = tokenizer_parse(path, text, bytes, tokenizer, error);
    free(text);
    return status;
}
