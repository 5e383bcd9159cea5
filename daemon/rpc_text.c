/* Tokenize, Detokenize and Abort: answered at once, on the thread that has the request. */
#include <string.h>

#include "daemon/rpc_private.h"

/* A conversion runs without the call's lock, on memory of its own. */
struct conversion {
    struct rpc_call *call;
    struct arena *arena;
    struct error error;
};

/* False: there is no memory. `more`: bytes beside what the request is turned into. */
static bool conversion_begin(struct conversion *self, const ProtobufCMessage *message, size_t more)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    self->arena = arena_create(rpc_request_room(bytes) + more);
    rpc_call_away(self->call);
    if (!self->arena)
        error_set(&self->error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    return self->arena != NULL;
}

/* `response` is sent if there was no error and the client still waits. */
static void conversion_end(struct conversion *self, const ProtobufCMessage *response)
{
    bool stays = rpc_call_back(self->call);
    if (stays && self->error.status != STATUS_OK)
        rpc_call_fail(self->call, &self->error);
    else if (stays)
        rpc_call_reply(self->call, response);
    arena_destroy(self->arena);
}

static void tokenize_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    Jet__V1__TokenizeResponse response = JET__V1__TOKENIZE_RESPONSE__INIT;
    struct conversion conversion = {.call = call};
    int32_t *ids = NULL;
    if (conversion_begin(&conversion, message, 0))
        rpc_tokenize(&call->server->model, (const void *)message, conversion.arena, &ids,
                     &response.n_ids, &conversion.error);
    response.ids = (uint32_t *)ids;
    conversion_end(&conversion, &response.base);
}

static void detokenize_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    Jet__V1__DetokenizeResponse response = JET__V1__DETOKENIZE_RESPONSE__INIT;
    struct conversion conversion = {.call = call};
    size_t most = rpc_message_bytes(&call->server->options), length = 0;
    char *text = NULL;
    if (conversion_begin(&conversion, message, 4 * most))
        rpc_detokenize(&call->server->model, (const void *)message, most, conversion.arena, &text,
                       &length, &conversion.error);
    response.text = rpc_text(text, length);
    conversion_end(&conversion, &response.base);
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
