/* Tokenize, Detokenize and Abort without the wire. */
#include <string.h>

#include "daemon/rpc_validate.h"

enum status rpc_tokenize(const struct rpc_model *from, const Jet__V1__TokenizeRequest *request,
                         struct arena *arena, int32_t **ids, size_t *count, struct error *error)
{
    struct rpc_model model = *from;
    model.max_model_len = INT32_MAX; /* also a text too long for a request */
    switch (request->prompt_case) {
    case JET__V1__TOKENIZE_REQUEST__PROMPT_TEXT:
        return rpc_encode_text(&model, request->text, request->special_tokens, arena, ids, count,
                               error);
    case JET__V1__TOKENIZE_REQUEST__PROMPT_CHAT:
        return rpc_encode_chat(&model, request->chat, !request->no_generation_prompt, arena, ids,
                               count, error);
    default:
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "prompt: one of text and chat must be set");
    }
}

/* A token's text is up to thousands of bytes, its id two or three: an answer must not be larger
 * than a message may be. */
static enum status check_text(size_t bytes, size_t most, struct error *error)
{
    if (bytes <= most)
        return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "ids: their text has %zu bytes, max_message_bytes is %zu", bytes, most);
}

enum status rpc_detokenize(const struct rpc_model *model, const Jet__V1__DetokenizeRequest *request,
                           size_t most, struct arena *arena, char **text, size_t *length,
                           struct error *error)
{
    const struct tokenizer *tokenizer = model->tokenizer;
    if (!tokenizer)
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "text: the checkpoint has no tokenizer.json");
    int32_t *ids = NULL;
    size_t n = request->n_ids;
    bool skip = !request->special_tokens;
    enum status status = rpc_copy_ids(model, "ids", request->ids, n, arena, &ids, error);
    if (status == STATUS_OK)
        status = check_text(tokenizer_raw_bytes(tokenizer, ids, n, skip), most, error);
    if (status == STATUS_OK)
        status = tokenizer_decode(tokenizer, ids, n, skip, arena, text, length, error);
    if (status == STATUS_OK) /* broken bytes are three each */
        status = check_text(*length, most, error);
    return status;
}

/* An id with U+0000 in it is no request's, but its beginning may be another's. */
static enum status check_id(ProtobufCBinaryData id, size_t index, struct error *error)
{
    if (!id.len || id.len > REQUEST_ID_MAX)
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "request_ids[%zu]: must have 1 to %d bytes", index, REQUEST_ID_MAX);
    if (memchr(id.data, 0, id.len))
        return error_set(error, STATUS_INVALID_ARGUMENT, "request_ids[%zu]: holds U+0000", index);
    return STATUS_OK;
}

enum status rpc_check_abort(const Jet__V1__AbortRequest *request, struct error *error)
{
    if (request->n_request_ids > RPC_ABORTS_MAX)
        return error_set(error, STATUS_INVALID_ARGUMENT, "request_ids: %zu, at most %d",
                         request->n_request_ids, RPC_ABORTS_MAX);
    for (size_t i = 0; i < request->n_request_ids; i++) {
        enum status status = check_id(request->request_ids[i], i, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}
