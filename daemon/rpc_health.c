/* grpc.health.v1: "" and each service by name; SERVING after load and warm-up, until the drain. */
#include <string.h>

#include "daemon/rpc_private.h"
#include "grpc/health/v1/health.pb-c.h"
#include "proto/descriptors.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

#define SERVING_STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

static bool known_service(const char *name)
{
    if (!*name)
        return true;
    for (size_t f = 0; f < proto_file_count; f++)
        for (const char *const *service = proto_files[f].services; *service; service++)
            if (strcmp(*service, name) == 0)
                return true;
    return false;
}

/* Too long for any service of ours: kept as a name that none has. */
static void take_service(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Grpc__Health__V1__HealthCheckRequest *request = (const void *)message;
    size_t length = request->service.len;
    if (length >= sizeof call->service || (length && memchr(request->service.data, 0, length))) {
        strcpy(call->service, "?");
        return;
    }
    if (length)
        memcpy(call->service, request->service.data, length);
    call->service[length] = 0;
}

static serving_status current(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    pthread_mutex_lock(&server->lock);
    bool serving = server->serving && !server->stopping;
    pthread_mutex_unlock(&server->lock);
    return serving ? SERVING_STATUS(SERVING) : SERVING_STATUS(NOT_SERVING);
}

static void check_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    take_service(call, message);
    if (!known_service(call->service)) {
        rpc_call_end(call, STATUS_NOT_FOUND, "service: no such service");
        return;
    }
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = current(call);
    rpc_call_reply(call, &response.base);
}

void rpc_watch_forget(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    pthread_mutex_lock(&server->lock);
    if (call->watching) {
        call->watching = false;
        if (call->previous_watch)
            call->previous_watch->next_watch = call->next_watch;
        else
            server->watches = call->next_watch;
        if (call->next_watch)
            call->next_watch->previous_watch = call->previous_watch;
    }
    pthread_mutex_unlock(&server->lock);
}

void rpc_watch_add(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    pthread_mutex_lock(&server->lock);
    call->watching = true;
    call->previous_watch = NULL;
    call->next_watch = server->watches;
    if (server->watches)
        server->watches->previous_watch = call;
    server->watches = call;
    pthread_mutex_unlock(&server->lock);
}

/* An open stream would hold the server's shutdown. */
bool rpc_watch_over(struct rpc_call *call)
{
    pthread_mutex_lock(&call->server->lock);
    bool stopping = call->server->stopping;
    pthread_mutex_unlock(&call->server->lock);
    return stopping || call->cancelled;
}

/* After the last news it is ended. */
static void watch_pump(struct rpc_call *call)
{
    bool over = rpc_watch_over(call);
    serving_status now =
        known_service(call->service) ? current(call) : SERVING_STATUS(SERVICE_UNKNOWN);
    if (call->writing)
        return;
    if ((int)now != call->reported && !call->cancelled) {
        Grpc__Health__V1__HealthCheckResponse response =
            GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        response.status = now;
        call->reported = (int)now;
        rpc_call_send(call, &response.base);
    } else if (over) {
        rpc_call_end(call, STATUS_CANCELLED, "the server stops");
    }
}

static void watch_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    take_service(call, message);
    rpc_watch_add(call);
    watch_pump(call);
}

void rpc_watch_all(struct rpc_server *server)
{
    pthread_mutex_lock(&server->lock);
    for (struct rpc_call *call = server->watches; call; call = call->next_watch)
        rpc_server_pump_locked(call);
    pthread_mutex_unlock(&server->lock);
}

const struct rpc_method rpc_health_methods[] = {
    {.path = "/grpc.health.v1.Health/Check",
     .request = &grpc__health__v1__health_check_request__descriptor,
     .start = check_start},
    {.path = "/grpc.health.v1.Health/Watch",
     .request = &grpc__health__v1__health_check_request__descriptor,
     .start = watch_start,
     .pump = watch_pump},
    {.path = NULL},
};
