/* One call, one explicit state machine:
 *
 *            arrival              rpc_call_end, rpc_call_reply         status batch and
 *   ARMED -----------> OPEN -------------------------------> ENDING -------------------> freed
 *     \                 \___ messages, one at a time                 RECV_CLOSE came back
 *      \__ server stops: freed
 *
 * `cancelled` beside it: the client is gone. Messages are dropped from then on, but the call still
 * goes through ENDING, so that there is one way out. A call lives by references: its arrival, each
 * batch under way, its places in the queues of pump and workers, and its request in the engine. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc_private.h"
#include "daemon/rpc_unpack.h"

grpc_status_code rpc_status_code(enum status status)
{
    switch (status) {
    case STATUS_OK:
        return GRPC_STATUS_OK;
    case STATUS_CANCELLED:
        return GRPC_STATUS_CANCELLED;
    case STATUS_DEADLINE_EXCEEDED:
        return GRPC_STATUS_DEADLINE_EXCEEDED;
    case STATUS_INVALID_ARGUMENT:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case STATUS_NOT_FOUND:
        return GRPC_STATUS_NOT_FOUND;
    case STATUS_FAILED_PRECONDITION:
        return GRPC_STATUS_FAILED_PRECONDITION;
    case STATUS_RESOURCE_EXHAUSTED:
    case STATUS_NO_MEMORY:
        return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case STATUS_UNAUTHENTICATED:
        return GRPC_STATUS_UNAUTHENTICATED;
    case STATUS_UNIMPLEMENTED:
        return GRPC_STATUS_UNIMPLEMENTED;
    case STATUS_DEVICE:
    case STATUS_PEER_LOST:
    case STATUS_PEER_MISMATCH:
    case STATUS_ABORTED:
        return GRPC_STATUS_UNAVAILABLE;
    case STATUS_CONFIG:
    case STATUS_CORRUPT:
    case STATUS_IO:
    case STATUS_INTERNAL:
        break;
    }
    return GRPC_STATUS_INTERNAL;
}

int64_t rpc_call_deadline(const struct rpc_call *call)
{
    gpr_timespec at = gpr_convert_clock_type(call->deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(at, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0 ||
        at.tv_sec >= CLOCK_NEVER / CLOCK_SECOND)
        return CLOCK_NEVER;
    return at.tv_sec < 0 ? 0 : at.tv_sec * CLOCK_SECOND + at.tv_nsec;
}

/* ---- life ---- */

static bool arm(struct rpc_call *call, struct rpc_server *server, const struct rpc_method *method,
                void *registered);

static void call_free(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    bool counted = call->state != RPC_ARMED;
    if (call->call)
        grpc_call_unref(call->call);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    grpc_byte_buffer_destroy(call->payload);
    request_release(call->request);
    event_free(call->held);
    pthread_mutex_destroy(&call->lock);
    if (call->arms_again)
        arm(call, server, call->method, call->registered);
    else
        free(call);
    if (!counted)
        return;
    pthread_mutex_lock(&server->lock);
    server->calls--;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

void rpc_call_retain(struct rpc_call *call)
{
    atomic_fetch_add(&call->references, 1);
}

void rpc_call_release(struct rpc_call *call)
{
    if (atomic_fetch_sub(&call->references, 1) == 1)
        call_free(call);
}

void rpc_call_release_locked(struct rpc_call *call)
{
    pthread_mutex_unlock(&call->lock);
    rpc_call_release(call);
}

void rpc_call_away(struct rpc_call *call)
{
    pthread_mutex_unlock(&call->lock);
}

bool rpc_call_back(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (!call->cancelled)
        return true;
    rpc_call_end(call, STATUS_CANCELLED, "the client left");
    return false;
}

static void start_batch(struct rpc_call *call, const grpc_op *ops, size_t count,
                        struct rpc_tag *tag)
{
    rpc_call_retain(call);
    grpc_call_error result = grpc_call_start_batch(call->call, ops, count, tag, NULL);
    if (result == GRPC_CALL_OK)
        return;
    rpc_unread_over(call);
    atomic_fetch_sub(&call->references, 1); /* the caller has one of its own */
    log_error("rpc: batch refused: %s", grpc_call_error_to_string(result));
}

/* ---- sending ---- */

static grpc_byte_buffer *pack(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

static size_t add_metadata(struct rpc_call *call, grpc_op *ops, size_t count)
{
    if (call->metadata_sent)
        return count;
    call->metadata_sent = true;
    ops[count] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    return count + 1;
}

void rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    grpc_op ops[2];
    size_t count = add_metadata(call, ops, 0);
    grpc_byte_buffer *buffer = pack(message);
    ops[count] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE};
    ops[count++].data.send_message.send_message = buffer;
    call->writing = true;
    rpc_unread_begin(call);
    start_batch(call, ops, count, &call->written);
    grpc_byte_buffer_destroy(buffer);
}

/* When a client that was turned away may try again: the queue ahead of it at a step's pace would be
 * a guess too, so a plain quarter of a second for each waiting request a slot. */
static int retry_after(struct rpc_call *call)
{
    struct engine_load load;
    engine_load(call->server->options.engine, &load);
    int rounds = load.slots > 0 ? load.waiting / load.slots + 1 : 1;
    return rounds > 40 ? 10000 : 250 * rounds;
}

static void send_status(struct rpc_call *call, const ProtobufCMessage *message)
{
    grpc_op ops[3];
    size_t count = add_metadata(call, ops, 0);
    grpc_byte_buffer *buffer = message ? pack(message) : NULL;
    if (buffer) {
        ops[count] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE};
        ops[count++].data.send_message.send_message = buffer;
    }
    char number[16];
    grpc_metadata retry;
    memset(&retry, 0, sizeof retry);
    ops[count] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
    if (call->refused && rpc_status_code(call->end_status) == GRPC_STATUS_RESOURCE_EXHAUSTED) {
        int wait = retry_after(call);
        snprintf(number, sizeof number, "%d", wait);
        size_t used = strlen(call->end_text);
        snprintf(call->end_text + used, sizeof call->end_text - used, "; retry after %d ms", wait);
        retry.key = grpc_slice_from_static_string("retry-after-ms");
        retry.value = grpc_slice_from_copied_string(number);
        ops[count].data.send_status_from_server.trailing_metadata_count = 1;
        ops[count].data.send_status_from_server.trailing_metadata = &retry;
    }
    grpc_slice details = grpc_slice_from_copied_string(call->end_text);
    ops[count].data.send_status_from_server.status = rpc_status_code(call->end_status);
    ops[count++].data.send_status_from_server.status_details = &details;
    rpc_unread_begin(call);
    start_batch(call, ops, count, &call->ended);
    grpc_slice_unref(details);
    if (ops[count - 1].data.send_status_from_server.trailing_metadata_count)
        grpc_slice_unref(retry.value);
    grpc_byte_buffer_destroy(buffer);
}

void rpc_call_end(struct rpc_call *call, enum status status, const char *text)
{
    if (call->state != RPC_OPEN)
        return;
    rpc_watch_forget(call);
    call->end_status = status;
    if (text != call->end_text)
        snprintf(call->end_text, sizeof call->end_text, "%s", status == STATUS_OK ? "" : text);
    if (call->writing) {
        call->end_wanted = true;
        return;
    }
    call->state = RPC_ENDING;
    send_status(call, NULL);
}

void rpc_call_fail(struct rpc_call *call, const struct error *error)
{
    rpc_call_end(call, error->status, error->text);
}

void rpc_call_refuse(struct rpc_call *call, const struct error *error)
{
    call->refused = true;
    rpc_call_fail(call, error);
}

void rpc_call_reply(struct rpc_call *call, const ProtobufCMessage *message)
{
    if (call->state != RPC_OPEN)
        return;
    call->end_status = STATUS_OK;
    call->end_text[0] = 0;
    call->state = RPC_ENDING;
    send_status(call, message);
}

void rpc_call_read(struct rpc_call *call)
{
    if (call->reading)
        return;
    call->reading = true;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->payload;
    start_batch(call, &op, 1, &call->read);
}

/* ---- what comes back ---- */

static void pump(struct rpc_call *call)
{
    if (call->end_wanted && !call->writing) {
        call->end_wanted = false;
        rpc_call_end(call, call->end_status, call->end_text);
    } else if (call->state == RPC_OPEN && !call->end_wanted && call->method && call->method->pump) {
        call->method->pump(call);
    }
}

void rpc_call_pump(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    pump(call);
    rpc_call_release_locked(call);
}

static void on_written(struct rpc_call *call, bool ok)
{
    rpc_unread_over(call);
    pthread_mutex_lock(&call->lock);
    call->writing = false;
    (void)ok; /* RECV_CLOSE tells why */
    pump(call);
    rpc_call_release_locked(call);
}

static void on_ended(struct rpc_call *call, bool ok)
{
    (void)ok; /* false: the client had left */
    rpc_unread_over(call);
    pthread_mutex_lock(&call->lock);
    rpc_call_release_locked(call);
}

static void on_closed(struct rpc_call *call, bool ok)
{
    pthread_mutex_lock(&call->lock);
    if (ok && call->was_cancelled && !call->cancelled) {
        call->cancelled = true;
        if (call->method && call->method->cancel)
            call->method->cancel(call);
        pump(call);
    }
    rpc_call_release_locked(call);
}

/* Joins the slices of a message. */
static grpc_slice read_all(grpc_byte_buffer *buffer, bool *ok)
{
    grpc_byte_buffer_reader reader;
    *ok = buffer && grpc_byte_buffer_reader_init(&reader, buffer);
    if (!*ok)
        return grpc_empty_slice();
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    return slice;
}

static bool is_large(const struct rpc_call *call)
{
    return call->payload && grpc_byte_buffer_length(call->payload) >= RPC_LARGE;
}

static void on_read(struct rpc_call *call, bool ok)
{
    pthread_mutex_lock(&call->lock);
    bool have = false, large = is_large(call);
    if (large) /* it would keep this poller from others */
        rpc_call_end(call, STATUS_INVALID_ARGUMENT, "message: must be below 64 KiB");
    grpc_slice slice = read_all(ok && !large ? call->payload : NULL, &have);
    call->reading = false;
    if (call->state == RPC_OPEN && !call->end_wanted)
        call->method->read(call, have ? GRPC_SLICE_START_PTR(slice) : NULL,
                           have ? GRPC_SLICE_LENGTH(slice) : 0);
    grpc_slice_unref(slice);
    if (call->payload) {
        grpc_byte_buffer_destroy(call->payload);
        call->payload = NULL;
    }
    rpc_call_release_locked(call);
}

static void start_unpacked(struct rpc_call *call)
{
    struct arena *arena = NULL;
    ProtobufCMessage *message = NULL;
    struct error error = {0};
    bool have;
    enum status status;
    rpc_call_away(call);
    grpc_slice slice = read_all(call->payload, &have);
    if (!have)
        status = error_set(&error, STATUS_INVALID_ARGUMENT, "request: no message was received");
    else
        status = rpc_unpack(call->method->request, GRPC_SLICE_START_PTR(slice),
                            GRPC_SLICE_LENGTH(slice), &arena, &message, &error);
    if (rpc_call_back(call)) {
        if (status == STATUS_OK)
            call->method->start(call, message);
        else
            rpc_call_fail(call, &error);
    }
    grpc_slice_unref(slice);
    arena_destroy(arena);
    grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
}

void rpc_call_begin(struct rpc_call *call)
{
    if (rpc_call_back(call))
        start_unpacked(call);
    rpc_call_release_locked(call);
}

static void start_call(struct rpc_call *call)
{
    static const struct error no_memory = {STATUS_RESOURCE_EXHAUSTED, "out of memory"};
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    close.data.recv_close_on_server.cancelled = &call->was_cancelled;
    start_batch(call, &close, 1, &call->closed);
    struct error error = {0};
    if (!rpc_authorized(call->server, &call->metadata))
        rpc_call_end(call, STATUS_UNAUTHENTICATED,
                     "authorization: a bearer token that this server accepts is needed");
    else if (call->arms_again)
        rpc_call_refuse(call, &no_memory);
    else if (!call->method)
        rpc_call_end(call, STATUS_UNIMPLEMENTED, "no such method");
    else if (!call->method->request)
        call->method->start(call, NULL);
    else if (!is_large(call))
        start_unpacked(call);
    else if (rpc_work_add(&call->server->work, call, &error) != STATUS_OK)
        rpc_call_refuse(call, &error);
}

static void on_arrived(struct rpc_call *call, bool ok)
{
    struct rpc_server *server = call->server;
    if (!ok) { /* the server stops */
        call_free(call);
        return;
    }
    call->arrival = clock_now();
    /* Without another in wait nobody would hear the method's next caller: this one ends at once. */
    call->arms_again = !rpc_call_arm(server, call->method, call->registered);
    pthread_mutex_lock(&server->lock);
    server->calls++;
    pthread_mutex_unlock(&server->lock);
    pthread_mutex_lock(&call->lock);
    call->state = RPC_OPEN;
    if (!call->method)
        call->deadline = call->details.deadline;
    start_call(call);
    rpc_call_release_locked(call);
}

static grpc_call_error request_call(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    if (!call->method)
        return grpc_server_request_call(server->grpc, &call->call, &call->details, &call->metadata,
                                        server->queue, server->queue, &call->arrived);
    return grpc_server_request_registered_call(server->grpc, call->registered, &call->call,
                                               &call->deadline, &call->metadata,
                                               call->method->request ? &call->payload : NULL,
                                               server->queue, server->queue, &call->arrived);
}

/* Takes the memory over. */
static bool arm(struct rpc_call *call, struct rpc_server *server, const struct rpc_method *method,
                void *registered)
{
    *call = (struct rpc_call){
        .server = server, .method = method, .registered = registered, .reported = -1};
    atomic_init(&call->references, 1);
    call->arrived = (struct rpc_tag){on_arrived, call};
    call->closed = (struct rpc_tag){on_closed, call};
    call->written = (struct rpc_tag){on_written, call};
    call->ended = (struct rpc_tag){on_ended, call};
    call->read = (struct rpc_tag){on_read, call};
    pthread_mutex_init(&call->lock, NULL);
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    if (request_call(call) == GRPC_CALL_OK)
        return true;
    call_free(call);
    return false;
}

bool rpc_call_arm(struct rpc_server *server, const struct rpc_method *method, void *registered)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    return call && arm(call, server, method, registered);
}
