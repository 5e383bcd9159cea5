/* grpc.reflection v1 and v1alpha: the same messages under two names. */
#include <stdio.h>
#include <string.h>

#include "daemon/rpc_private.h"
#include "daemon/rpc_unpack.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "proto/descriptors.h"

enum { FILES_MAX = 16, SERVICES_MAX = 32, CODE_NOT_FOUND = 5 };

typedef Grpc__Reflection__V1__ServerReflectionRequest reflection_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse reflection_response;

#define RESPONSE(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name
#define REQUEST(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name

static bool same(ProtobufCBinaryData text, const char *name)
{
    return text.len == strlen(name) && memcmp(text.data, name, text.len) == 0;
}

static int find_file(ProtobufCBinaryData name)
{
    for (size_t f = 0; name.len && f < proto_file_count; f++)
        if (same(name, proto_files[f].name))
            return (int)f;
    return -1;
}

static int find_symbol(ProtobufCBinaryData name)
{
    for (size_t f = 0; name.len && f < proto_file_count; f++)
        for (const char *const *symbol = proto_files[f].symbols; *symbol; symbol++)
            if (same(name, *symbol))
                return (int)f;
    return -1;
}

static void send_error(struct rpc_call *call, reflection_response *response, const char *what)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = CODE_NOT_FOUND;
    error.error_message = rpc_text(what, strlen(what));
    response->message_response_case = RESPONSE(ERROR_RESPONSE);
    response->error_response = &error;
    rpc_call_send(call, &response->base);
}

/* The file and everything it imports, each once. */
static void send_file(struct rpc_call *call, reflection_response *response, int file)
{
    ProtobufCBinaryData bytes[FILES_MAX];
    int order[FILES_MAX] = {file};
    size_t count = 1;
    if (file < 0) {
        send_error(call, response, "no such file or symbol");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        for (const int *import = proto_files[order[i]].imports; *import >= 0; import++) {
            bool have = false;
            for (size_t j = 0; j < count; j++)
                have |= order[j] == *import;
            if (!have && count < FILES_MAX)
                order[count++] = *import;
        }
        bytes[i] =
            rpc_text((const char *)proto_files[order[i]].bytes, proto_files[order[i]].length);
    }
    Grpc__Reflection__V1__FileDescriptorResponse files =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    files.n_file_descriptor_proto = count;
    files.file_descriptor_proto = bytes;
    response->message_response_case = RESPONSE(FILE_DESCRIPTOR_RESPONSE);
    response->file_descriptor_response = &files;
    rpc_call_send(call, &response->base);
}

static void send_services(struct rpc_call *call, reflection_response *response)
{
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX];
    Grpc__Reflection__V1__ServiceResponse *list[SERVICES_MAX];
    size_t count = 0;
    for (size_t f = 0; f < proto_file_count; f++)
        for (const char *const *name = proto_files[f].services; *name; name++) {
            if (count == SERVICES_MAX)
                break;
            grpc__reflection__v1__service_response__init(&services[count]);
            services[count].name = rpc_text(*name, strlen(*name));
            list[count] = &services[count];
            count++;
        }
    Grpc__Reflection__V1__ListServiceResponse all =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    all.n_service = count;
    all.service = list;
    response->message_response_case = RESPONSE(LIST_SERVICES_RESPONSE);
    response->list_services_response = &all;
    rpc_call_send(call, &response->base);
}

static void answer(struct rpc_call *call, reflection_request *request)
{
    reflection_response response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    response.valid_host = request->host;
    response.original_request = request;
    switch (request->message_request_case) {
    case REQUEST(FILE_BY_FILENAME):
        send_file(call, &response, find_file(request->file_by_filename));
        break;
    case REQUEST(FILE_CONTAINING_SYMBOL):
        send_file(call, &response, find_symbol(request->file_containing_symbol));
        break;
    case REQUEST(LIST_SERVICES):
        send_services(call, &response);
        break;
    case REQUEST(FILE_CONTAINING_EXTENSION):
    case REQUEST(ALL_EXTENSION_NUMBERS_OF_TYPE):
        send_error(call, &response, "there are no extensions");
        break;
    default:
        rpc_call_end(call, STATUS_INVALID_ARGUMENT, "message_request: not set");
        break;
    }
}

static void reflection_read(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    if (!bytes) {
        rpc_call_end(call, STATUS_OK, "");
        return;
    }
    struct arena *arena = NULL;
    ProtobufCMessage *message = NULL;
    struct error error = {0};
    if (rpc_unpack(&grpc__reflection__v1__server_reflection_request__descriptor, bytes, length,
                   &arena, &message, &error) == STATUS_OK)
        answer(call, (reflection_request *)(void *)message);
    else
        rpc_call_fail(call, &error);
    arena_destroy(arena);
}

/* The next question is read when the answer to the last one is out. */
static void reflection_pump(struct rpc_call *call)
{
    if (rpc_watch_over(call))
        rpc_call_end(call, STATUS_CANCELLED, "the server stops");
    else if (!call->writing)
        rpc_call_read(call);
}

static void reflection_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    rpc_watch_add(call);
    reflection_pump(call);
}

const struct rpc_method rpc_reflection_methods[] = {
    {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
     .start = reflection_start,
     .read = reflection_read,
     .pump = reflection_pump},
    {.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
     .start = reflection_start,
     .read = reflection_read,
     .pump = reflection_pump},
    {.path = NULL},
};
