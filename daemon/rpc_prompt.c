#include "daemon/rpc_validate.h"

enum status rpc_copy_ids(const struct rpc_model *model, const char *field, const uint32_t *from,
                         size_t count, struct arena *arena, int32_t **ids, struct error *error)
{
    int32_t *copy = arena_allocate(arena, count ? count : 1, sizeof *copy);
    if (!copy)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%s: out of memory", field);
    for (size_t i = 0; i < count; i++) {
        if (from[i] >= (uint32_t)model->vocab)
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "%s[%zu]: %u is not below the vocabulary size %d", field, i, from[i],
                             model->vocab);
        copy[i] = (int32_t)from[i];
    }
    *ids = copy;
    return STATUS_OK;
}

static enum status need_tokenizer(const struct rpc_model *model, const char *field,
                                  struct error *error)
{
    if (model->tokenizer)
        return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION,
                     "%s: the checkpoint has no tokenizer.json; send token ids", field);
}

/* What can never fit is refused before it costs a run of the tokenizer. */
static enum status check_bytes(const struct rpc_model *model, const char *field, size_t bytes,
                               struct error *error)
{
    size_t least = tokenizer_least_tokens(model->tokenizer, bytes);
    if (least <= (size_t)model->max_model_len)
        return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "%s: %zu bytes are at least %zu tokens and do not fit max_model_len %d", field,
                     bytes, least, model->max_model_len);
}

enum status rpc_encode_text(const struct rpc_model *model, ProtobufCBinaryData text, bool specials,
                            struct arena *arena, int32_t **ids, size_t *count, struct error *error)
{
    enum status status = need_tokenizer(model, "text", error);
    if (status == STATUS_OK)
        status = check_bytes(model, "text", text.len, error);
    if (status != STATUS_OK)
        return status;
    const char *bytes = text.len ? (const char *)text.data : "";
    status =
        tokenizer_encode(model->tokenizer, bytes, text.len, specials, arena, ids, count, error);
    return status == STATUS_OK ? STATUS_OK : error_prefix(error, "text");
}

enum status rpc_encode_chat(const struct rpc_model *model, const Jet__V1__Chat *chat,
                            bool generation_prompt, struct arena *arena, int32_t **ids,
                            size_t *count, struct error *error)
{
    enum status status = need_tokenizer(model, "chat", error);
    if (status != STATUS_OK)
        return status;
    size_t n = chat->n_messages;
    if (!n)
        return error_set(error, STATUS_INVALID_ARGUMENT, "chat.messages: empty");
    struct chat_message *messages = arena_allocate(arena, n, sizeof *messages);
    if (!messages)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "chat.messages: out of memory");
    size_t bytes = 0; /* the template adds to them and drops none */
    for (size_t i = 0; i < n; i++) {
        const Jet__V1__Message *from = chat->messages[i];
        bytes += from->content.len;
        messages[i] = (struct chat_message){
            .role = from->role.len ? (const char *)from->role.data : "",
            .role_length = from->role.len,
            .content = from->content.len ? (const char *)from->content.data : "",
            .content_length = from->content.len,
        };
    }
    status = check_bytes(model, "chat", bytes, error);
    if (status != STATUS_OK)
        return status;
    status =
        tokenizer_chat(model->tokenizer, messages, n, generation_prompt, arena, ids, count, error);
    return status == STATUS_OK ? STATUS_OK : error_prefix(error, "chat");
}

enum status rpc_check_prompt(const struct rpc_model *model, const char *field, size_t count,
                             int reserve, struct error *error)
{
    if (!count)
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s: no tokens", field);
    if (count + (size_t)reserve > (size_t)model->max_model_len)
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s: %zu tokens%s do not fit max_model_len %d", field, count,
                         reserve ? " and one new one" : "", model->max_model_len);
    return STATUS_OK;
}
