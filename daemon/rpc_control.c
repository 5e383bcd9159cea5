/* jet.v1.Control: what is served, by whom, how busy; and the drain. */
#include <math.h>
#include <string.h>

#include "daemon/rpc_private.h"

static ProtobufCBinaryData text_of(const char *text)
{
    return text ? rpc_text(text, strlen(text)) : (ProtobufCBinaryData){0};
}

static Jet__V1__SamplingParams describe_sampling(const struct sampling *sampling)
{
    Jet__V1__SamplingParams params = JET__V1__SAMPLING_PARAMS__INIT;
    params.temperature_presence_case = JET__V1__SAMPLING_PARAMS__TEMPERATURE_PRESENCE_TEMPERATURE;
    params.temperature = sampling->temperature;
    params.top_p_presence_case = JET__V1__SAMPLING_PARAMS__TOP_P_PRESENCE_TOP_P;
    params.top_p = sampling->top_p;
    params.top_k_presence_case = JET__V1__SAMPLING_PARAMS__TOP_K_PRESENCE_TOP_K;
    params.top_k = (uint32_t)sampling->top_k;
    params.min_p_presence_case = JET__V1__SAMPLING_PARAMS__MIN_P_PRESENCE_MIN_P;
    params.min_p = sampling->min_p;
    params.repetition_penalty_presence_case =
        JET__V1__SAMPLING_PARAMS__REPETITION_PENALTY_PRESENCE_REPETITION_PENALTY;
    params.repetition_penalty = sampling->repetition;
    return params;
}

static void model_info_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    const struct rpc_server *server = call->server;
    const struct plan *plan = server->options.plan;
    const struct model_config *model = &plan->model;
    uint32_t kinds[3] = {0}, eos[MODEL_EOS_MAX];
    for (int i = 0; i < model->layers; i++)
        kinds[model->layer[i]]++;
    for (int i = 0; i < model->eos_count; i++)
        eos[i] = (uint32_t)model->eos[i];
    Jet__V1__SamplingParams sampling = describe_sampling(&server->model.sampling);
    Jet__V1__GetModelInfoResponse response = JET__V1__GET_MODEL_INFO_RESPONSE__INIT;
    response.name = text_of(server->options.model_name);
    response.model_type = text_of("jet_nemotron");
    response.vocab_size = (uint32_t)model->vocab;
    if (server->options.tokenizer)
        response.tokenizer_size = (uint32_t)tokenizer_size(server->options.tokenizer);
    response.max_model_len = (uint32_t)plan->limits.max_model_len;
    response.n_eos_token_ids = (size_t)model->eos_count;
    response.eos_token_ids = eos;
    response.layers = (uint32_t)model->layers;
    response.jet_layers = kinds[LAYER_JET];
    response.attention_layers = kinds[LAYER_ATTN];
    response.window_layers = kinds[LAYER_SWA];
    response.hidden_size = (uint32_t)model->hidden;
    response.default_sampling = &sampling;
    rpc_call_reply(call, &response.base);
}

static Jet__V1__Limits describe_limits(const struct rpc_options *options)
{
    const struct limits *from = &options->plan->limits;
    Jet__V1__Limits limits = JET__V1__LIMITS__INIT;
    limits.max_model_len = (uint32_t)from->max_model_len;
    limits.max_num_seqs = (uint32_t)from->max_num_seqs;
    limits.max_num_batched_tokens = (uint32_t)from->max_num_batched_tokens;
    limits.block_tokens = (uint32_t)from->block_tokens;
    limits.kv_blocks = from->kv_blocks;
    limits.max_queued = (uint32_t)options->max_queued;
    limits.max_message_bytes = rpc_message_bytes(options);
    limits.max_choices = REQUEST_CHOICES_MAX;
    limits.max_logprobs = RPC_LOGPROBS_MAX;
    limits.max_stop_strings = REQUEST_STOPS_MAX;
    limits.max_stop_token_ids = RPC_STOP_IDS_MAX;
    limits.max_logit_bias = REQUEST_BIASES_MAX;
    return limits;
}

static void server_info_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    const struct rpc_options *options = &call->server->options;
    Jet__V1__Mesh mesh = JET__V1__MESH__INIT;
    mesh.tensor = (uint32_t)options->plan->mesh.tensor;
    mesh.pipeline = (uint32_t)options->plan->mesh.pipeline;
    mesh.context = (uint32_t)options->plan->mesh.context;
    Jet__V1__Limits limits = describe_limits(options);
    Jet__V1__GetServerInfoResponse response = JET__V1__GET_SERVER_INFO_RESPONSE__INIT;
    response.version = text_of(options->version);
    response.grpc_version = text_of(grpc_version_string());
    response.mesh = &mesh;
    response.limits = &limits;
    response.device = text_of(options->device);
    response.fabric = text_of(options->fabric);
    response.uptime = clock_seconds(clock_now() - call->server->opened);
    rpc_call_reply(call, &response.base);
}

static void load_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    struct engine_load load;
    engine_load(call->server->options.engine, &load);
    Jet__V1__GetLoadResponse response = JET__V1__GET_LOAD_RESPONSE__INIT;
    response.running = (uint32_t)load.running;
    response.waiting = (uint32_t)load.waiting;
    response.slots = (uint32_t)load.slots;
    response.slots_used = (uint32_t)load.slots_used;
    response.blocks = load.blocks;
    response.blocks_used = load.blocks_used;
    response.steps = load.steps;
    response.requests = load.requests;
    response.finished = load.finished;
    response.cancelled = load.cancelled;
    response.failed = load.failed;
    response.prompt_tokens = load.prompt_tokens;
    response.generated_tokens = load.generated_tokens;
    response.draining = load.draining;
    rpc_call_reply(call, &response.base);
}

static void drain_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Jet__V1__DrainRequest *request = (const void *)message;
    const struct rpc_options *options = &call->server->options;
    double timeout = -1;
    if (request->timeout_presence_case) {
        timeout = request->timeout;
        if (!isfinite(timeout) || timeout < 0 || timeout > 1e6) {
            rpc_call_end(call, STATUS_INVALID_ARGUMENT, "timeout: must be 0 to 1000000 seconds");
            return;
        }
    }
    engine_drain(options->engine);
    rpc_set_serving(call->server, false);
    struct engine_load load;
    engine_load(options->engine, &load);
    Jet__V1__DrainResponse response = JET__V1__DRAIN_RESPONSE__INIT;
    response.running = (uint32_t)load.running;
    response.waiting = (uint32_t)load.waiting;
    rpc_call_reply(call, &response.base);
    if (options->drain)
        options->drain(options->drain_context, timeout);
}

static void sessions_start(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    rpc_call_end(call, STATUS_UNIMPLEMENTED,
                 "session: saved sequences are not supported by this version");
}

const struct rpc_method rpc_control_methods[] = {
    {.path = "/jet.v1.Control/GetModelInfo",
     .request = &jet__v1__get_model_info_request__descriptor,
     .start = model_info_start},
    {.path = "/jet.v1.Control/GetServerInfo",
     .request = &jet__v1__get_server_info_request__descriptor,
     .start = server_info_start},
    {.path = "/jet.v1.Control/GetLoad",
     .request = &jet__v1__get_load_request__descriptor,
     .start = load_start},
    {.path = "/jet.v1.Control/Drain",
     .request = &jet__v1__drain_request__descriptor,
     .start = drain_start},
    {.path = "/jet.v1.Control/ListSessions",
     .request = &jet__v1__list_sessions_request__descriptor,
     .start = sessions_start},
    {.path = "/jet.v1.Control/DeleteSession",
     .request = &jet__v1__delete_session_request__descriptor,
     .start = sessions_start},
    {.path = "/jet.v1.Control/ForkSession",
     .request = &jet__v1__fork_session_request__descriptor,
     .start = sessions_start},
    {.path = NULL},
};
