/* Tokenize, Detokenize and Abort: answered at once, on the thread that has the request. */
#include <string.h>

#include "daemon/rpc_private.h"

static enum status tokenize(const struct rpc_model *model, const Jet__V1__TokenizeRequest *request,
                            struct arena *arena, int32_t **ids, size_t *count, struct error *error)
{
    switch (request->prompt_case) {
    case JET__V1__TOKENIZE_REQUEST__PROMPT_TEXT:
        return rpc_encode_text(model, request->text, request->special_tokens, arena, ids, count,
                               error);
    case JET__V1__TOKENIZE_REQUEST__PROMPT_CHAT:
        return rpc_encode_chat(model, request->chat, !request->no_generation_prompt, arena, ids,
                               count, error);
    default:
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "prompt: one of text and chat must be set");
    }
}

static void tokenize_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__TokenizeRequest *request = (const void *)message;
    struct rpc_model model = call->server->model;
    model.vocab = INT32_MAX; /* ids that the model lacks are still the text's ids */
    model.max_model_len = INT32_MAX;
    struct arena *arena =
        arena_create(rpc_request_room(protobuf_c_message_get_packed_size(message)));
    struct error error = {0};
    int32_t *ids = NULL;
    size_t count = 0;
    rpc_call_away(call);
    if (!arena)
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    else
        tokenize(&model, request, arena, &ids, &count, &error);
    bool stays = rpc_call_back(call);
    if (stays && error.status != STATUS_OK) {
        rpc_call_fail(call, &error);
    } else if (stays) {
        Jet__V1__TokenizeResponse response = JET__V1__TOKENIZE_RESPONSE__INIT;
        response.n_ids = count;
        response.ids = (uint32_t *)ids;
        rpc_call_reply(call, &response.base);
    }
    arena_destroy(arena);
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

static enum status detokenize(const struct rpc_server *server,
                              const Jet__V1__DetokenizeRequest *request, struct arena *arena,
                              char **text, size_t *length, struct error *error)
{
    struct rpc_model known = server->model;
    size_t most = rpc_message_bytes(&server->options);
    if (!known.tokenizer)
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "text: the checkpoint has no tokenizer.json");
    if (known.vocab < tokenizer_size(known.tokenizer))
        known.vocab = tokenizer_size(known.tokenizer);
    int32_t *ids = NULL;
    size_t n = request->n_ids;
    bool skip = !request->special_tokens;
    enum status status = rpc_copy_ids(&known, "ids", request->ids, n, arena, &ids, error);
    if (status == STATUS_OK)
        status = check_text(tokenizer_raw_bytes(known.tokenizer, ids, n, skip), most, error);
    if (status == STATUS_OK)
        status = tokenizer_decode(known.tokenizer, ids, n, skip, arena, text, length, error);
    if (status == STATUS_OK) /* broken bytes are three each */
        status = check_text(*length, most, error);
    return status;
}

static void detokenize_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__DetokenizeRequest *request = (const void *)message;
    const struct rpc_server *server = call->server;
    struct arena *arena =
        arena_create(rpc_request_room(protobuf_c_message_get_packed_size(message)) +
                     4 * rpc_message_bytes(&server->options));
    struct error error = {0};
    char *text = NULL;
    size_t length = 0;
    rpc_call_away(call);
    if (!arena)
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    else
        detokenize(server, request, arena, &text, &length, &error);
    bool stays = rpc_call_back(call);
    if (stays && error.status != STATUS_OK) {
        rpc_call_fail(call, &error);
    } else if (stays) {
        Jet__V1__DetokenizeResponse response = JET__V1__DETOKENIZE_RESPONSE__INIT;
        response.text = rpc_text(text, length);
        rpc_call_reply(call, &response.base);
    }
    arena_destroy(arena);
}

/* An id with U+0000 in it is no request's, but its beginning may be another's. */
static void check_id(ProtobufCBinaryData id, size_t index, struct error *error)
{
    if (!id.len || id.len > REQUEST_ID_MAX)
        error_set(error, STATUS_INVALID_ARGUMENT, "request_ids[%zu]: must have 1 to %d bytes",
                  index, REQUEST_ID_MAX);
    else if (memchr(id.data, 0, id.len))
        error_set(error, STATUS_INVALID_ARGUMENT, "request_ids[%zu]: holds U+0000", index);
}

static void abort_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__AbortRequest *request = (const void *)message;
    struct error error = {0};
    if (request->n_request_ids > RPC_ABORTS_MAX)
        error_set(&error, STATUS_INVALID_ARGUMENT, "request_ids: %zu, at most %d",
                  request->n_request_ids, RPC_ABORTS_MAX);
    for (size_t i = 0; i < request->n_request_ids; i++)
        check_id(request->request_ids[i], i, &error);
    if (error.status != STATUS_OK) {
        rpc_call_fail(call, &error);
        return;
    }
    Jet__V1__AbortResponse response = JET__V1__ABORT_RESPONSE__INIT;
    for (size_t i = 0; i < request->n_request_ids; i++) {
        char id[REQUEST_ID_MAX + 1] = {0};
        memcpy(id, request->request_ids[i].data, request->request_ids[i].len);
        response.aborted += engine_abort(call->server->options.engine, id);
    }
    rpc_call_reply(call, &response.base);
}

const struct rpc_method rpc_text_methods[] = {
    {.path = "/jet.v1.Generation/Tokenize",
     .request = &jet__v1__tokenize_request__descriptor,
     .start = tokenize_start},
    {.path = "/jet.v1.Generation/Detokenize",
     .request = &jet__v1__detokenize_request__descriptor,
     .start = detokenize_start},
    {.path = "/jet.v1.Generation/Abort",
     .request = &jet__v1__abort_request__descriptor,
     .start = abort_start},
    {.path = NULL},
};
