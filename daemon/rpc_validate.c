#include "daemon/rpc_validate.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/base/clock.h"

void rpc_model_init(struct rpc_model *model, const struct plan *plan,
                    const struct tokenizer *tokenizer)
{
    const struct model_config *config = &plan->model;
    *model = (struct rpc_model){
        .tokenizer = tokenizer,
        .vocab = config->vocab,
        .max_model_len = plan->limits.max_model_len,
        .sampling = {.temperature = 1, .top_p = 1, .repetition = 1},
        .turn_end = tokenizer ? tokenizer_special(tokenizer, "<|im_end|>") : -1,
    };
    if (config->has_generation) {
        model->sampling.temperature = config->temperature;
        model->sampling.top_p = config->top_p;
        model->sampling.min_p = config->min_p;
        model->sampling.top_k = config->top_k;
        model->sampling.repetition = config->repetition_penalty;
    }
    if (model->turn_end >= model->vocab)
        model->turn_end = -1;
}

size_t rpc_request_room(size_t bytes)
{
    return ((size_t)1 << 20) + bytes * 64;
}

static enum status invalid(struct error *error, const char *field, uint64_t value,
                           const char *limit, int64_t most)
{
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s: %" PRIu64 " is above %s %" PRId64, field,
                     value, limit, most);
}

/* The client's id, or a random one. */
static enum status take_id(ProtobufCBinaryData id, struct request_spec *spec, struct error *error)
{
    if (id.len > REQUEST_ID_MAX)
        return invalid(error, "request_id: length", id.len, "the limit", REQUEST_ID_MAX);
    if (id.len && memchr(id.data, 0, id.len))
        return error_set(error, STATUS_INVALID_ARGUMENT, "request_id: holds U+0000");
    if (id.len) {
        memcpy(spec->id, id.data, id.len);
        spec->id[id.len] = 0;
        return STATUS_OK;
    }
    uint64_t bits[2];
    if (getrandom(bits, sizeof bits, 0) != sizeof bits)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "request_id: no randomness");
    snprintf(spec->id, sizeof spec->id, "jet-%016" PRIx64 "%016" PRIx64, bits[0], bits[1]);
    return STATUS_OK;
}

static enum status take_ids(const struct rpc_model *model, const Jet__V1__TokenIds *from,
                            struct arena *arena, int32_t **ids, size_t *count, struct error *error)
{
    *count = from->n_ids;
    enum status status =
        rpc_check_prompt(model, "token_ids", from->n_ids, 0, error); /* before the copy */
    if (status != STATUS_OK)
        return status;
    return rpc_copy_ids(model, "token_ids.ids", from->ids, from->n_ids, arena, ids, error);
}

static enum status take_prompt(const struct rpc_model *model,
                               const Jet__V1__GenerateRequest *message, struct arena *arena,
                               struct request_spec *spec, struct error *error)
{
    int32_t *ids = NULL;
    size_t count = 0;
    const char *field = "text";
    enum status status;
    switch (message->prompt_case) {
    case JET__V1__GENERATE_REQUEST__PROMPT_TEXT:
        status = rpc_encode_text(model, message->text, message->special_tokens, arena, &ids, &count,
                                 error);
        break;
    case JET__V1__GENERATE_REQUEST__PROMPT_CHAT:
        field = "chat";
        status = rpc_encode_chat(model, message->chat, true, arena, &ids, &count, error);
        break;
    case JET__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS:
        field = "token_ids";
        status = take_ids(model, message->token_ids, arena, &ids, &count, error);
        break;
    default:
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "prompt: one of text, token_ids and chat must be set");
    }
    if (status == STATUS_OK)
        status = rpc_check_prompt(model, field, count, 1, error);
    if (status != STATUS_OK)
        return status;
    spec->prompt = ids;
    spec->prompt_tokens = (int)count;
    return STATUS_OK;
}

static enum status take_lengths(const struct rpc_model *model,
                                const Jet__V1__GenerateRequest *message, struct request_spec *spec,
                                struct error *error)
{
    int room = model->max_model_len - spec->prompt_tokens;
    if (message->max_new_tokens > (uint32_t)room)
        return invalid(error, "max_new_tokens", message->max_new_tokens,
                       "what max_model_len leaves after the prompt:", room);
    spec->max_new_tokens = message->max_new_tokens ? (int)message->max_new_tokens : room;
    if (message->min_new_tokens > (uint32_t)spec->max_new_tokens)
        return invalid(error, "min_new_tokens", message->min_new_tokens, "max_new_tokens",
                       spec->max_new_tokens);
    spec->min_new_tokens = (int)message->min_new_tokens;
    return STATUS_OK;
}

static enum status take_stops(const struct rpc_model *model,
                              const Jet__V1__GenerateRequest *message, struct arena *arena,
                              struct request_spec *spec, struct error *error)
{
    size_t n = message->n_stop;
    if (!n)
        return STATUS_OK;
    if (n > REQUEST_STOPS_MAX)
        return invalid(error, "stop: count", n, "the limit", REQUEST_STOPS_MAX);
    if (!model->tokenizer)
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "stop: the checkpoint has no tokenizer.json; use stop_token_ids");
    struct stop_string *stops = arena_allocate(arena, n, sizeof *stops);
    if (!stops)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "stop: out of memory");
    for (size_t i = 0; i < n; i++) {
        ProtobufCBinaryData from = message->stop[i];
        if (!from.len || from.len > REQUEST_STOP_BYTES_MAX)
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "stop[%zu]: %zu bytes, must be 1 to %d", i, from.len,
                             REQUEST_STOP_BYTES_MAX);
        char *text = arena_string(arena, (const char *)from.data, from.len);
        if (!text)
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "stop: out of memory");
        stops[i] = (struct stop_string){.text = text, .length = from.len};
    }
    spec->stops = stops;
    spec->stop_count = (int)n;
    return STATUS_OK;
}

static enum status take_stop_ids(const struct rpc_model *model,
                                 const Jet__V1__GenerateRequest *message, struct arena *arena,
                                 struct request_spec *spec, struct error *error)
{
    size_t n = message->n_stop_token_ids;
    if (n > RPC_STOP_IDS_MAX)
        return invalid(error, "stop_token_ids: count", n, "the limit", RPC_STOP_IDS_MAX);
    int32_t *ids = NULL;
    enum status status =
        rpc_copy_ids(model, "stop_token_ids", message->stop_token_ids, n, arena, &ids, error);
    if (status != STATUS_OK)
        return status;
    /* A chat's turn ends with the template's own token, which base models do not list as eos. */
    if (message->prompt_case == JET__V1__GENERATE_REQUEST__PROMPT_CHAT && !message->ignore_eos &&
        model->turn_end >= 0) {
        int32_t *longer = arena_allocate(arena, n + 1, sizeof *longer);
        if (!longer)
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "stop_token_ids: out of memory");
        if (n)
            memcpy(longer, ids, n * sizeof *ids);
        longer[n++] = model->turn_end;
        ids = longer;
    }
    spec->stop_ids = ids;
    spec->stop_id_count = (int)n;
    return STATUS_OK;
}

static enum status take_rest(const struct rpc_model *model, const Jet__V1__GenerateRequest *message,
                             struct request_spec *spec, struct error *error)
{
    if (message->session.len || message->save_session.len)
        return error_set(error, STATUS_UNIMPLEMENTED,
                         "%s: saved sequences are not supported by this version",
                         message->session.len ? "session" : "save_session");
    if (message->n > REQUEST_CHOICES_MAX)
        return invalid(error, "n", message->n, "the limit", REQUEST_CHOICES_MAX);
    if (message->cache_salt.len > RPC_SALT_MAX)
        return invalid(error, "cache_salt: length", message->cache_salt.len, "the limit",
                       RPC_SALT_MAX);
    spec->logprobs = -1;
    if (message->logprobs_presence_case) {
        if (message->logprobs > RPC_LOGPROBS_MAX)
            return invalid(error, "logprobs", message->logprobs, "the limit", RPC_LOGPROBS_MAX);
        spec->logprobs = (int)message->logprobs;
    }
    if (spec->logprobs > model->vocab)
        return invalid(error, "logprobs", message->logprobs, "the vocabulary size", model->vocab);
    spec->choices = message->n ? (int)message->n : 1;
    spec->priority = message->priority;
    spec->echo = message->echo;
    spec->ignore_eos = message->ignore_eos;
    spec->include_stop = message->include_stop;
    spec->text = model->tokenizer != NULL;
    return STATUS_OK;
}

/* Cheap checks first: a refused request should not cost a tokenizer run. */
enum status rpc_validate_generate(const struct rpc_model *model,
                                  const Jet__V1__GenerateRequest *message, int64_t deadline,
                                  struct arena *arena, struct request_spec *spec,
                                  struct error *error)
{
    *spec = (struct request_spec){.kind = REQUEST_GENERATE, .deadline = deadline};
    enum status status = take_id(message->request_id, spec, error);
    if (status == STATUS_OK)
        status = take_rest(model, message, spec, error);
    if (status == STATUS_OK)
        status = rpc_validate_sampling(model, message->sampling, arena, &spec->sampling, error);
    if (status == STATUS_OK)
        status = take_stops(model, message, arena, spec, error);
    if (status == STATUS_OK)
        status = take_stop_ids(model, message, arena, spec, error);
    if (status == STATUS_OK)
        status = take_prompt(model, message, arena, spec, error);
    if (status == STATUS_OK)
        status = take_lengths(model, message, spec, error);
    return status;
}

enum status rpc_validate_score(const struct rpc_model *model, const Jet__V1__ScoreRequest *message,
                               int64_t deadline, struct arena *arena, struct request_spec *spec,
                               struct error *error)
{
    *spec = (struct request_spec){
        .kind = REQUEST_SCORE,
        .sampling = {.top_p = 1, .repetition = 1},
        .choices = 1,
        .priority = message->priority,
        .deadline = deadline,
    };
    enum status status = take_id(message->request_id, spec, error);
    if (status != STATUS_OK)
        return status;
    int32_t *ids = NULL;
    size_t count = 0;
    const char *field = "text";
    switch (message->prompt_case) {
    case JET__V1__SCORE_REQUEST__PROMPT_TEXT:
        status = rpc_encode_text(model, message->text, message->special_tokens, arena, &ids, &count,
                                 error);
        break;
    case JET__V1__SCORE_REQUEST__PROMPT_TOKEN_IDS:
        field = "token_ids";
        status = take_ids(model, message->token_ids, arena, &ids, &count, error);
        break;
    default:
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "prompt: one of text and token_ids must be set");
    }
    if (status == STATUS_OK)
        status = rpc_check_prompt(model, field, count, 0, error);
    if (status != STATUS_OK)
        return status;
    spec->prompt = ids;
    spec->prompt_tokens = (int)count;
    return STATUS_OK;
}
