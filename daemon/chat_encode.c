#include "daemon/tokenizer_private.h"

/* Plain text between marks; marks become ids. A mark without a token stays text, as in HF. */
static enum status chat_encode(struct encoder *encoder, const struct tokenizer *tokenizer,
                               const struct chat_text *chat, struct error *error)
{
    const char *text = chat->text.bytes;
    size_t at = 0;
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < chat->mark_count; ++i) {
        const struct chat_mark *mark = &chat->marks[i];
        int32_t id = added_id(tokenizer, text + mark->offset, mark->length);
        if (id < 0)
            continue;
        status = encoder_text(encoder, text + at, mark->offset - at, false, error);
        if (status == STATUS_OK)
            status = encoder_id(encoder, id, error);
        at = mark->offset + mark->length;
    }
    if (status == STATUS_OK)
        status = encoder_text(encoder, text + at, chat->text.length - at, false, error);
    return status;
}

enum status tokenizer_chat_tools(const struct tokenizer *tokenizer,
                                 const struct chat_message *messages, size_t count,
                                 const char *tools, size_t tools_length, bool generation_prompt,
                                 struct arena *arena, int32_t **ids, size_t *id_count,
                                 struct error *error)
{
    struct error unasked = {0};
    error = error == NULL ? &unasked : error;
    if (tokenizer_special(tokenizer, "<|im_start|>") < 0 ||
        tokenizer_special(tokenizer, "<|im_end|>") < 0)
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "chat: the tokenizer has no <|im_start|> and <|im_end|>");
    struct chat_text chat = {0};
    struct encoder *encoder = encoder_create(tokenizer);
    enum status status =
        encoder == NULL
            ? error_set(error, STATUS_RESOURCE_EXHAUSTED, "chat: out of memory")
            : chat_render(messages, count, tools, tools_length, generation_prompt, &chat, error);
    if (status == STATUS_OK)
        status = chat_encode(encoder, tokenizer, &chat, error);
    if (status == STATUS_OK)
        status = encoder_finish(encoder, arena, ids, id_count, error);
    encoder_destroy(encoder);
    chat_text_free(&chat);
    return status;
}

enum status tokenizer_chat(const struct tokenizer *tokenizer, const struct chat_message *messages,
                           size_t count, bool generation_prompt, struct arena *arena, int32_t **ids,
                           size_t *id_count, struct error *error)
{
    return tokenizer_chat_tools(tokenizer, messages, count, NULL, 0, generation_prompt, arena, ids,
                                id_count, error);
}
