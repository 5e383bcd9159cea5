/* Tokenize, Detokenize and Abort: answered at once, on the thread that has the request. */
#include <string.h>

#include "daemon/rpc_private.h"

static void tokenize_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__TokenizeRequest *request = (const void *)message;
    struct arena *arena =
        arena_create(rpc_request_room(protobuf_c_message_get_packed_size(message)));
    struct error error = {0};
    int32_t *ids = NULL;
    size_t count = 0;
    rpc_call_away(call);
    if (!arena)
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    else
        rpc_tokenize(&call->server->model, request, arena, &ids, &count, &error);
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
        rpc_detokenize(&server->model, request, rpc_message_bytes(&server->options), arena, &text,
                       &length, &error);
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

static void abort_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__AbortRequest *request = (const void *)message;
    struct error error = {0};
    if (rpc_check_abort(request, &error) != STATUS_OK) {
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
