/* The load over gRPC: one completion queue, one state a stream.
 *
 *   IDLE -> OPEN (metadata, request, half-close sent) -> READING -> (message: READING)
 *        -> CLOSING (no message: waits for the status) -> IDLE */
#include "tests/perf/load.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "jet/v1/generation.pb-c.h"

enum phase { PHASE_IDLE, PHASE_OPEN, PHASE_READING, PHASE_CLOSING };

struct stream {
    enum phase phase;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message;
    grpc_status_code code;
    grpc_slice details;
    bool status_in;
    int64_t sent, last;
};

struct client {
    const struct load *load;
    struct load_result *result;
    grpc_channel *channel;
    grpc_completion_queue *queue;
};

static grpc_byte_buffer *pack_request(const struct load *load, int number)
{
    const char *text = load->prompt[number % load->prompts];
    Jet__V1__SamplingParams sampling = JET__V1__SAMPLING_PARAMS__INIT;
    sampling.temperature_presence_case = JET__V1__SAMPLING_PARAMS__TEMPERATURE_PRESENCE_TEMPERATURE;
    sampling.temperature = 1;
    sampling.seed_presence_case = JET__V1__SAMPLING_PARAMS__SEED_PRESENCE_SEED;
    sampling.seed = (uint64_t)number;
    Jet__V1__GenerateRequest request = JET__V1__GENERATE_REQUEST__INIT;
    request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text.data = (uint8_t *)(uintptr_t)text;
    request.text.len = strlen(text);
    request.max_new_tokens = (uint32_t)load->max_new_tokens;
    request.ignore_eos = 1;
    request.sampling = &sampling;
    grpc_slice slice = grpc_slice_malloc(jet__v1__generate_request__get_packed_size(&request));
    jet__v1__generate_request__pack(&request, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

/* The status batch stays under way for the whole call, so its tag is the stream + 1. */
static void *status_tag(struct stream *stream)
{
    return (char *)stream + 1;
}

static void start_stream(struct client *client, struct stream *stream, int number)
{
    *stream = (struct stream){.phase = PHASE_OPEN, .sent = clock_now()};
    grpc_metadata_array_init(&stream->initial);
    grpc_metadata_array_init(&stream->trailing);
    stream->call =
        grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->queue,
                                 grpc_slice_from_static_string("/jet.v1.Generation/Generate"), NULL,
                                 gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_byte_buffer *request = pack_request(client->load, number);
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                      .data.recv_status_on_client = {.trailing_metadata = &stream->trailing,
                                                     .status = &stream->code,
                                                     .status_details = &stream->details}};
    grpc_call_start_batch(stream->call, &status, 1, status_tag(stream), NULL);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message = {.send_message = request}},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata = {.recv_initial_metadata = &stream->initial}},
    };
    grpc_call_start_batch(stream->call, ops, 4, stream, NULL);
    grpc_byte_buffer_destroy(request);
}

static void read_next(struct stream *stream)
{
    stream->phase = PHASE_READING;
    stream->message = NULL;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE,
                  .data.recv_message = {.recv_message = &stream->message}};
    grpc_call_start_batch(stream->call, &op, 1, stream, NULL);
}

static void take_message(struct stream *stream, struct load_result *result)
{
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer_reader_init(&reader, stream->message);
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(stream->message);
    Jet__V1__GenerateResponse *response = jet__v1__generate_response__unpack(
        NULL, GRPC_SLICE_LENGTH(slice), GRPC_SLICE_START_PTR(slice));
    grpc_slice_unref(slice);
    if (response == NULL)
        return;
    if (response->event_case == JET__V1__GENERATE_RESPONSE__EVENT_DELTA &&
        response->delta->n_token_ids > 0) {
        int64_t now = clock_now();
        double tokens = (double)response->delta->n_token_ids;
        if (stream->last == 0)
            samples_add(&result->first_token, clock_seconds(now - stream->sent));
        else
            samples_add(&result->inter_token, clock_seconds(now - stream->last) / tokens);
        stream->last = now;
        result->tokens += (long)response->delta->n_token_ids;
    }
    jet__v1__generate_response__free_unpacked(response, NULL);
}

static void finish_stream(struct stream *stream, struct load_result *result)
{
    if (stream->code == GRPC_STATUS_OK) {
        result->completed++;
    } else {
        if (result->failed++ == 0) {
            char *text = grpc_slice_to_c_string(stream->details);
            snprintf(result->failure, sizeof result->failure, "status %d: %s", (int)stream->code,
                     text);
            gpr_free(text);
        }
    }
    grpc_slice_unref(stream->details);
    grpc_metadata_array_destroy(&stream->initial);
    grpc_metadata_array_destroy(&stream->trailing);
    grpc_call_unref(stream->call);
    stream->phase = PHASE_IDLE;
}

/* One completion; true when a request came to its end. */
static bool step_stream(struct stream *stream, bool is_status, bool ok, struct load_result *result)
{
    if (is_status) {
        /* The last read may still be out: it completes without a message. */
        if (stream->phase == PHASE_CLOSING) {
            finish_stream(stream, result);
            return true;
        }
        stream->status_in = true;
        return false;
    }
    if (stream->phase == PHASE_OPEN && ok) {
        read_next(stream);
        return false;
    }
    if (stream->phase == PHASE_READING && ok && stream->message != NULL) {
        take_message(stream, result);
        read_next(stream);
        return false;
    }
    if (stream->status_in) {
        finish_stream(stream, result);
        return true;
    }
    stream->phase = PHASE_CLOSING;
    return false;
}

static gpr_timespec deadline_of(int64_t at)
{
    int64_t wait = at == CLOCK_NEVER ? CLOCK_SECOND : at - clock_now();
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos(wait > 0 ? wait : 0, GPR_TIMESPAN));
}

static void run(struct client *client, struct stream *streams, int room)
{
    const struct load *load = client->load;
    int sent = 0, done = 0;
    int64_t start = clock_now(), next = start;
    if (load->rate > 0)
        next = load_arrival(load, 0, start);
    while (done < load->requests) {
        for (int i = 0; i < room && sent < load->requests && clock_now() >= next; i++)
            if (streams[i].phase == PHASE_IDLE) {
                start_stream(client, &streams[i], sent++);
                if (load->rate > 0)
                    next = load_arrival(load, sent, next);
            }
        bool open = load->rate > 0 && sent < load->requests;
        grpc_event event =
            grpc_completion_queue_next(client->queue, deadline_of(open ? next : CLOCK_NEVER), NULL);
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        size_t offset = (size_t)((char *)event.tag - (char *)streams);
        struct stream *stream = &streams[offset / sizeof *stream];
        if (step_stream(stream, offset % sizeof *stream == 1, event.success, client->result))
            done++;
    }
    client->result->seconds = clock_seconds(clock_now() - start);
}

enum status load_grpc(const struct load *load, const char *target, struct load_result *result)
{
    *result = (struct load_result){0};
    int room = load->rate > 0 ? load->requests : load->streams;
    struct stream *streams = calloc((size_t)room, sizeof *streams);
    if (streams == NULL)
        return STATUS_NO_MEMORY;
    grpc_init();
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    struct client client = {
        .load = load,
        .result = result,
        .channel = grpc_channel_create(target, credentials, NULL),
        .queue = grpc_completion_queue_create_for_next(NULL),
    };
    grpc_channel_credentials_release(credentials);
    run(&client, streams, room);
    grpc_completion_queue_shutdown(client.queue);
    while (
        grpc_completion_queue_next(client.queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
        GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(client.queue);
    grpc_channel_destroy(client.channel);
    grpc_shutdown();
    free(streams);
    return STATUS_OK;
}
