/* One call at a time over one channel, on the thread that asks. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/file.h"
#include "daemon/ctl/ctl.h"

enum { FILE_MAX = 1 << 20 };

struct ctl_client {
    grpc_channel *channel;
    grpc_completion_queue *queue;
    double timeout;
    char *authorization; /* NULL: none */
};

static char *read_file(const char *path)
{
    char *bytes;
    size_t length;
    struct error error = {0};
    if (file_read(path, FILE_MAX, &bytes, &length, &error) != STATUS_OK) {
        fprintf(stderr, "jetctl: %s\n", error.text);
        return NULL;
    }
    if (length > 0)
        return bytes;
    fprintf(stderr, "jetctl: %s: empty\n", path);
    free(bytes);
    return NULL;
}

static bool check_tls(const struct ctl_settings *settings, bool tls)
{
    if (!*settings->cert != !*settings->key)
        fputs("jetctl: --cert and --key must be given together\n", stderr);
    else if (*settings->cert && !tls)
        fputs("jetctl: --cert and --key are for TLS: give --ca, or --tls\n", stderr);
    else
        return true;
    return false;
}

/* NULL: a file could not be read, or options that do not go together. */
static grpc_channel_credentials *credentials(const struct ctl_settings *settings)
{
    bool tls = settings->tls || *settings->ca;
    if (!check_tls(settings, tls))
        return NULL;
    if (!tls)
        return grpc_insecure_credentials_create();
    char *ca = *settings->ca ? read_file(settings->ca) : NULL;
    char *cert = *settings->cert ? read_file(settings->cert) : NULL;
    char *key = *settings->key ? read_file(settings->key) : NULL;
    grpc_channel_credentials *made = NULL;
    if (!*settings->ca == !ca && !*settings->cert == !cert && !*settings->key == !key) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
        made = grpc_ssl_credentials_create(ca, cert ? &pair : NULL, NULL, NULL);
    }
    free(ca);
    free(cert);
    free(key);
    return made;
}

static grpc_channel *open_channel(const struct ctl_settings *settings,
                                  grpc_channel_credentials *creds)
{
    grpc_arg args[3] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH},
        {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)GRPC_ARG_ENABLE_RETRIES},
        {.type = GRPC_ARG_STRING,
         .key = (char *)(uintptr_t)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = (char *)(uintptr_t)settings->server_name},
    };
    args[0].value.integer = -1;
    args[1].value.integer = 0;
    grpc_channel_args list = {.num_args = *settings->server_name ? 3 : 2, .args = args};
    return grpc_channel_create(settings->address, creds, &list);
}

int ctl_connect(const struct ctl_settings *settings, struct ctl_client **client)
{
    grpc_channel_credentials *creds = credentials(settings);
    if (!creds)
        return CTL_USAGE;
    struct ctl_client *made = calloc(1, sizeof *made);
    size_t room = strlen(settings->token) + sizeof "Bearer ";
    if (made && *settings->token)
        made->authorization = malloc(room);
    if (!made || (*settings->token && !made->authorization)) {
        fputs("jetctl: out of memory\n", stderr);
        free(made);
        return CTL_USAGE;
    }
    if (made->authorization)
        snprintf(made->authorization, room, "Bearer %s", settings->token);
    made->timeout = settings->timeout;
    made->queue = grpc_completion_queue_create_for_next(NULL);
    made->channel = open_channel(settings, creds);
    grpc_channel_credentials_release(creds);
    *client = made;
    return CTL_OK;
}

void ctl_disconnect(struct ctl_client *client)
{
    if (!client)
        return;
    grpc_channel_destroy(client->channel);
    grpc_completion_queue_shutdown(client->queue);
    gpr_timespec never = gpr_inf_future(GPR_CLOCK_REALTIME);
    while (grpc_completion_queue_next(client->queue, never, NULL).type != GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(client->queue);
    free(client->authorization);
    free(client);
}

/* What one call receives. */
struct receiver {
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message;
    grpc_status_code status;
    grpc_slice details;
    bool broken; /* a message that is none */
};

enum tag { TAG_SENT = 1, TAG_RECEIVED, TAG_STATUS };

static void start(struct receiver *receiver, const grpc_op *ops, size_t count, enum tag tag)
{
    grpc_call_error error =
        grpc_call_start_batch(receiver->call, ops, count, (void *)(uintptr_t)tag, NULL);
    if (error != GRPC_CALL_OK) {
        fprintf(stderr, "jetctl: %s\n", grpc_call_error_to_string(error));
        abort();
    }
}

static void start_sending(struct ctl_client *client, struct receiver *receiver,
                          const struct ctl_call *call)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(call->request));
    protobuf_c_message_pack(call->request, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_metadata metadata;
    memset(&metadata, 0, sizeof metadata);
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_MESSAGE},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    if (client->authorization) {
        metadata.key = grpc_slice_from_static_string("authorization");
        metadata.value = grpc_slice_from_static_string(client->authorization);
        ops[0].data.send_initial_metadata.count = 1;
        ops[0].data.send_initial_metadata.metadata = &metadata;
    }
    ops[1].data.send_message.send_message = buffer;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &receiver->initial;
    start(receiver, ops, 4, TAG_SENT);
    grpc_byte_buffer_destroy(buffer);
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &receiver->trailing;
    status.data.recv_status_on_client.status = &receiver->status;
    status.data.recv_status_on_client.status_details = &receiver->details;
    start(receiver, &status, 1, TAG_STATUS);
}

static void start_receiving(struct receiver *receiver)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &receiver->message;
    start(receiver, &op, 1, TAG_RECEIVED);
}

static void visit(struct receiver *receiver, const struct ctl_call *call)
{
    grpc_byte_buffer_reader reader;
    ProtobufCMessage *message = NULL;
    if (grpc_byte_buffer_reader_init(&reader, receiver->message)) {
        grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        message = protobuf_c_message_unpack(call->response, NULL, GRPC_SLICE_LENGTH(slice),
                                            GRPC_SLICE_START_PTR(slice));
        grpc_slice_unref(slice);
    }
    grpc_byte_buffer_destroy(receiver->message);
    receiver->message = NULL;
    receiver->broken |= !message;
    if (message)
        call->visit(call->context, message);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void receive(struct ctl_client *client, struct receiver *receiver,
                    const struct ctl_call *call)
{
    int pending = 3; /* sent, status, a message */
    start_receiving(receiver);
    while (pending) {
        gpr_timespec never = gpr_inf_future(GPR_CLOCK_REALTIME);
        grpc_event event = grpc_completion_queue_next(client->queue, never, NULL);
        if ((enum tag)(uintptr_t)event.tag == TAG_RECEIVED && receiver->message) {
            visit(receiver, call);
            start_receiving(receiver);
        } else {
            pending--;
        }
    }
}

static const char *code_name(grpc_status_code code)
{
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
    return (size_t)code < sizeof names / sizeof names[0] ? names[code] : "UNKNOWN";
}

static int judge(const struct receiver *receiver)
{
    if (receiver->broken) {
        fputs("jetctl: the server's answer is not the message that was expected\n", stderr);
        return CTL_FAILED;
    }
    if (receiver->status == GRPC_STATUS_OK)
        return CTL_OK;
    char *details = grpc_slice_to_c_string(receiver->details);
    fprintf(stderr, "jetctl: %s: %s\n", code_name(receiver->status), details);
    gpr_free(details);
    return receiver->status == GRPC_STATUS_UNAVAILABLE ? CTL_UNREACHABLE : CTL_FAILED;
}

int ctl_run(struct ctl_client *client, const struct ctl_call *call)
{
    struct receiver receiver = {.status = GRPC_STATUS_UNKNOWN, .details = grpc_empty_slice()};
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (client->timeout > 0)
        deadline =
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                         gpr_time_from_micros((int64_t)(client->timeout * 1e6), GPR_TIMESPAN));
    grpc_metadata_array_init(&receiver.initial);
    grpc_metadata_array_init(&receiver.trailing);
    receiver.call =
        grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->queue,
                                 grpc_slice_from_static_string(call->path), NULL, deadline, NULL);
    start_sending(client, &receiver, call);
    receive(client, &receiver, call);
    int code = judge(&receiver);
    grpc_slice_unref(receiver.details);
    grpc_metadata_array_destroy(&receiver.initial);
    grpc_metadata_array_destroy(&receiver.trailing);
    grpc_call_unref(receiver.call);
    return code;
}
