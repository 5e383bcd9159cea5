/* Generate and Score: a checked request goes to the engine, its events come back through the pump.
 *
 * The engine may wake us until it has let go of the request, so the call keeps its waiter and takes
 * events (dropping them when the client is gone) until the last one. */
#include <stdio.h>

#include "daemon/rpc_answer.h"
#include "daemon/rpc_private.h"

static void let_go(struct rpc_call *call)
{
    rpc_waiter_give(call->waiter);
    call->waiter = NULL;
    request_release(call->request);
    call->request = NULL;
    rpc_call_release(call); /* the waiter's; whoever pumps holds another */
}

static void submit(struct rpc_call *call, const struct request_spec *spec, struct arena *arena)
{
    struct error error = {0};
    call->waiter = rpc_waiter_take(call);
    if (call->waiter)
        call->request = request_create(spec, arena, rpc_server_wake, call->waiter);
    if (!call->request) {
        if (call->waiter)
            rpc_waiter_give(call->waiter);
        call->waiter = NULL;
        arena_destroy(arena);
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
        rpc_call_refuse(call, &error);
        return;
    }
    rpc_call_retain(call);
    if (engine_submit(call->server->options.engine, call->request, &error) == STATUS_OK)
        return;
    let_go(call);
    rpc_call_refuse(call, &error);
}

static void start(struct rpc_call *call, const ProtobufCMessage *message, enum request_kind kind)
{
    const struct rpc_model *model = &call->server->model;
    struct error error = {0};
    struct request_spec spec;
    if (engine_admits(call->server->options.engine, &error) != STATUS_OK) {
        rpc_call_refuse(call, &error);
        return;
    }
    struct arena *arena =
        arena_create(rpc_request_room(protobuf_c_message_get_packed_size(message)));
    enum status status;
    rpc_call_away(call);
    if (!arena)
        status = error_set(&error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    else if (kind == REQUEST_SCORE)
        status = rpc_validate_score(model, (const void *)message, rpc_call_deadline(call), arena,
                                    &spec, &error);
    else
        status = rpc_validate_generate(model, (const void *)message, rpc_call_deadline(call), arena,
                                       &spec, &error);
    bool stays = rpc_call_back(call);
    if (stays && status == STATUS_OK) {
        spec.arrival = call->arrival;
        submit(call, &spec, arena);
        return;
    }
    arena_destroy(arena);
    if (stays)
        rpc_call_fail(call, &error);
}

static void generate_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    start(call, message, REQUEST_GENERATE);
}

static void score_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    start(call, message, REQUEST_SCORE);
}

/* The call's status is that of the first choice that did not end well. */
static void note_outcome(struct rpc_call *call, const struct event *event)
{
    if (event->kind != EVENT_FINISHED || call->outcome != STATUS_OK)
        return;
    const char *text = "";
    switch (event->reason) {
    case FINISH_CANCELLED:
        call->outcome = STATUS_CANCELLED;
        text = "the request was cancelled";
        break;
    case FINISH_DEADLINE:
        call->outcome = STATUS_DEADLINE_EXCEEDED;
        text = "the deadline passed";
        break;
    case FINISH_ERROR:
        call->outcome = event->status == STATUS_OK ? STATUS_INTERNAL : event->status;
        text = status_name(call->outcome);
        break;
    default:
        return;
    }
    snprintf(call->outcome_text, sizeof call->outcome_text, "%s",
             event->detail[0] ? event->detail : text);
}

static void gave_up(struct rpc_call *call)
{
    call->lost = true;
    call->outcome = STATUS_RESOURCE_EXHAUSTED;
    snprintf(call->outcome_text, sizeof call->outcome_text, "out of memory for an answer");
    engine_cancel(call->server->options.engine, call->request);
}

static void generate_pump(struct rpc_call *call)
{
    while (call->request && !call->writing) {
        struct event *event = request_next(call->request);
        if (!event)
            return;
        bool last = event->last;
        note_outcome(call, event);
        if (!call->cancelled && !call->lost && !rpc_send_event(call, event))
            gave_up(call);
        event_free(event);
        if (last) {
            let_go(call);
            rpc_call_end(call, call->outcome, call->outcome_text);
        }
    }
}

static void reply_score(struct rpc_call *call, const struct event *score)
{
    size_t count = (size_t)score->logprob_count;
    struct arena *arena = arena_create(SIZE_MAX / 2);
    float *logprobs = arena ? arena_allocate(arena, count + 1, sizeof *logprobs) : NULL;
    protobuf_c_boolean *best = arena ? arena_allocate(arena, count + 1, sizeof *best) : NULL;
    if (!logprobs || !best) {
        rpc_call_end(call, STATUS_RESOURCE_EXHAUSTED, "out of memory for the answer");
        arena_destroy(arena);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        logprobs[i] = score->logprobs[i].logprob;
        best[i] = score->logprobs[i].is_argmax != 0;
    }
    Jet__V1__ScoreResponse response = JET__V1__SCORE_RESPONSE__INIT;
    response.n_ids = (size_t)score->id_count;
    response.ids = (uint32_t *)(uintptr_t)score->ids;
    response.n_logprobs = count;
    response.logprobs = logprobs;
    response.n_is_argmax = count;
    response.is_argmax = best;
    rpc_call_reply(call, &response.base);
    arena_destroy(arena);
}

static void score_pump(struct rpc_call *call)
{
    while (call->request) {
        struct event *event = request_next(call->request);
        if (!event)
            return;
        bool last = event->last;
        note_outcome(call, event);
        if (event->kind == EVENT_SCORE) {
            event_free(call->held);
            call->held = event;
        } else {
            event_free(event);
        }
        if (!last)
            continue;
        let_go(call);
        if (call->outcome == STATUS_OK && call->held)
            reply_score(call, call->held);
        else if (call->outcome == STATUS_OK)
            rpc_call_end(call, STATUS_INTERNAL, "the engine gave no score");
        else
            rpc_call_end(call, call->outcome, call->outcome_text);
    }
}

static void cancel(struct rpc_call *call)
{
    if (call->request)
        engine_cancel(call->server->options.engine, call->request);
}

const struct rpc_method rpc_generation_methods[] = {
    {.path = "/jet.v1.Generation/Generate",
     .request = &jet__v1__generate_request__descriptor,
     .start = generate_start,
     .pump = generate_pump,
     .cancel = cancel},
    {.path = "/jet.v1.Generation/Score",
     .request = &jet__v1__score_request__descriptor,
     .start = score_start,
     .pump = score_pump,
     .cancel = cancel},
    {.path = NULL},
};
