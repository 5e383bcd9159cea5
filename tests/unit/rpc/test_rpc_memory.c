/* The front end when memory runs out: a server over the fake executor, asked as jetctl asks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "daemon/ctl/ctl.h"
#include "daemon/rpc_answer.h"
#include "daemon/rpc_private.h"
#include "jet/v1/generation.pb-c.h"

/* ---- what fails --------------------------------------------------------------------------- */

static atomic_int deltas_left; /* until one fails; below 1: none does */

__typeof__(rpc_send_event) __real_rpc_send_event, __wrap_rpc_send_event;

bool __wrap_rpc_send_event(struct rpc_call *call, const struct event *event)
{
    if (event->kind == EVENT_DELTA && atomic_fetch_sub(&deltas_left, 1) == 1)
        return false;
    return __real_rpc_send_event(call, event);
}

static atomic_bool call_fails; /* the next one to be armed */

__typeof__(grpc_server_request_registered_call) __real_grpc_server_request_registered_call,
    __wrap_grpc_server_request_registered_call;

grpc_call_error __wrap_grpc_server_request_registered_call(grpc_server *server, void *method,
                                                           grpc_call **call, gpr_timespec *deadline,
                                                           grpc_metadata_array *metadata,
                                                           grpc_byte_buffer **payload,
                                                           grpc_completion_queue *bound,
                                                           grpc_completion_queue *queue, void *tag)
{
    if (atomic_exchange(&call_fails, false))
        return GRPC_CALL_ERROR;
    return __real_grpc_server_request_registered_call(server, method, call, deadline, metadata,
                                                      payload, bound, queue, tag);
}

/* ---- a server and a client ---------------------------------------------------------------- */

struct service {
    struct bench bench;
    struct rpc_server *server;
    struct ctl_client *client;
};

static void service_open(struct service *service)
{
    struct error error = {0};
    int port;
    char address[32];
    bench_open(&service->bench);
    bench_start(&service->bench);
    struct rpc_options options = {
        .host = "127.0.0.1", .engine = service->bench.engine, .plan = service->bench.plan};
    if (rpc_open(&options, &service->server, &port, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    struct ctl_settings settings = {.address = address,
                                    .ca = "",
                                    .cert = "",
                                    .key = "",
                                    .token = "",
                                    .server_name = "",
                                    .timeout = 5};
    assert_int_equal(ctl_connect(&settings, &service->client), CTL_OK);
}

static void service_close(struct service *service)
{
    ctl_disconnect(service->client);
    assert_true(rpc_stop(service->server));
    bench_close(&service->bench);
    rpc_close(service->server);
}

/* What jetctl says of it goes to `said`. */
static int service_ask(struct service *service, const struct ctl_call *call, char said[512])
{
    FILE *file = tmpfile();
    assert_non_null(file);
    int kept = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    int code = ctl_run(service->client, call);
    dup2(kept, STDERR_FILENO);
    close(kept);
    rewind(file);
    said[fread(said, 1, 511, file)] = 0;
    fclose(file);
    return code;
}

/* ---- tests -------------------------------------------------------------------------------- */

struct answers {
    int deltas, finished;
};

static void answer_count(void *context, const ProtobufCMessage *message)
{
    const Jet__V1__GenerateResponse *response = (const void *)message;
    struct answers *answers = context;
    answers->deltas += response->event_case == JET__V1__GENERATE_RESPONSE__EVENT_DELTA;
    answers->finished += response->event_case == JET__V1__GENERATE_RESPONSE__EVENT_FINISHED;
}

static void nothing_follows_an_answer_that_was_lost(void **state)
{
    (void)state;
    struct service service;
    service_open(&service);
    uint32_t prompt[] = {1, 2, 3};
    Jet__V1__TokenIds ids = JET__V1__TOKEN_IDS__INIT;
    ids.n_ids = 3;
    ids.ids = prompt;
    Jet__V1__GenerateRequest request = JET__V1__GENERATE_REQUEST__INIT;
    request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    request.token_ids = &ids;
    request.max_new_tokens = 50;
    request.logprobs_presence_case = JET__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
    struct answers answers = {0};
    const struct ctl_call call = {.path = "/jet.v1.Generation/Generate",
                                  .request = &request.base,
                                  .response = &jet__v1__generate_response__descriptor,
                                  .visit = answer_count,
                                  .context = &answers};
    char said[512];
    atomic_store(&deltas_left, 3);
    assert_int_equal(service_ask(&service, &call, said), CTL_FAILED);
    assert_non_null(strstr(said, "RESOURCE_EXHAUSTED: out of memory"));
    assert_null(strstr(said, "retry")); /* it was admitted */
    assert_int_equal(answers.deltas, 2);
    assert_int_equal(answers.finished, 0);
    service_close(&service);
}

static void load_count(void *context, const ProtobufCMessage *message)
{
    (void)message;
    ++*(int *)context;
}

/* A method of which no call is armed would keep its callers waiting for ever. */
static void a_call_that_cannot_be_armed_is_made_up_for(void **state)
{
    (void)state;
    struct service service;
    service_open(&service);
    int loads = 0;
    Jet__V1__GetLoadRequest request = JET__V1__GET_LOAD_REQUEST__INIT;
    const struct ctl_call call = {.path = "/jet.v1.Control/GetLoad",
                                  .request = &request.base,
                                  .response = &jet__v1__get_load_response__descriptor,
                                  .visit = load_count,
                                  .context = &loads};
    char said[512];
    for (int i = 0; i < 3; i++) {
        atomic_store(&call_fails, true);
        assert_int_equal(service_ask(&service, &call, said), CTL_FAILED);
        assert_non_null(strstr(said, "RESOURCE_EXHAUSTED: out of memory; retry after"));
        assert_int_equal(service_ask(&service, &call, said), CTL_OK);
    }
    assert_int_equal(loads, 3);
    service_close(&service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_follows_an_answer_that_was_lost),
        cmocka_unit_test(a_call_that_cannot_be_armed_is_made_up_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
