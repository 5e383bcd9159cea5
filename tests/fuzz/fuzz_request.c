/* Request bytes as they come from a client (the first says to which method): unpacked, their text
 * checked, validated against a model with a tokenizer and one without. What passes must be a
 * request the engine can take, text within its bound, or ids that are C strings. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/rpc_unpack.h"
#include "daemon/rpc_validate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { LENGTH = 128, TEXT_BYTES = 1000 };
enum kind { GENERATE, SCORE, TOKENIZE, DETOKENIZE, ABORT, KINDS };

static struct rpc_model with_text, without_text;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    struct tokenizer *tokenizer = NULL;
    struct error error = {0};
    if (tokenizer_load(JETD_TEST_DATA "/../../ops/demo-model", &tokenizer, &error) != STATUS_OK)
        abort();
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        abort();
    plan->limits.max_model_len = LENGTH;
    plan->model.vocab = tokenizer_size(tokenizer);
    rpc_model_init(&with_text, plan, tokenizer);
    plan->model.vocab = 300;
    rpc_model_init(&without_text, plan, NULL);
    free(plan);
    return 0;
}

static void need(bool condition)
{
    if (!condition)
        abort();
}

static void check_spec(const struct rpc_model *model, const struct request_spec *spec)
{
    need(spec->prompt_tokens >= 1 && spec->choices >= 1 && spec->choices <= REQUEST_CHOICES_MAX);
    for (int i = 0; i < spec->prompt_tokens; i++)
        need(spec->prompt[i] >= 0 && spec->prompt[i] < model->vocab);
    for (int i = 0; i < spec->stop_id_count; i++)
        need(spec->stop_ids[i] >= 0 && spec->stop_ids[i] < model->vocab);
    for (int i = 0; i < spec->sampling.biases; i++)
        need(spec->sampling.bias[i].id >= 0 && spec->sampling.bias[i].id < model->vocab &&
             isfinite(spec->sampling.bias[i].value) &&
             (i == 0 || spec->sampling.bias[i - 1].id < spec->sampling.bias[i].id));
    if (spec->kind == REQUEST_SCORE) {
        need(spec->prompt_tokens <= LENGTH);
        return;
    }
    need(spec->max_new_tokens >= 1 && spec->prompt_tokens + spec->max_new_tokens <= LENGTH);
    need(spec->min_new_tokens >= 0 && spec->min_new_tokens <= spec->max_new_tokens);
    need(spec->logprobs >= -1 && spec->logprobs <= SAMPLE_TOP_MAX);
    need(isfinite(spec->sampling.temperature) && spec->sampling.temperature >= 0);
    need(spec->sampling.top_p > 0 && spec->sampling.top_p <= 1);
    need(spec->sampling.repetition > 0 && isfinite(spec->sampling.repetition));
    need(spec->stop_count == 0 || model->tokenizer);
}

static void check_error(enum status status, const struct error *error)
{
    need(status == error->status && error->text[0]);
    need(status == STATUS_INVALID_ARGUMENT || status == STATUS_FAILED_PRECONDITION ||
         status == STATUS_UNIMPLEMENTED || status == STATUS_RESOURCE_EXHAUSTED);
}

static enum status generate(const struct rpc_model *model, bool score,
                            const ProtobufCMessage *message, struct arena *arena,
                            struct error *error)
{
    struct request_spec spec;
    enum status status =
        score
            ? rpc_validate_score(model, (const void *)message, CLOCK_NEVER, arena, &spec, error)
            : rpc_validate_generate(model, (const void *)message, CLOCK_NEVER, arena, &spec, error);
    if (status == STATUS_OK)
        check_spec(model, &spec);
    return status;
}

static enum status tokenize(const struct rpc_model *model, const ProtobufCMessage *message,
                            struct arena *arena, struct error *error)
{
    int32_t *ids = NULL;
    size_t count = 0;
    enum status status = rpc_tokenize(model, (const void *)message, arena, &ids, &count, error);
    for (size_t i = 0; status == STATUS_OK && i < count; i++)
        need(ids[i] >= 0 && ids[i] < tokenizer_size(model->tokenizer));
    return status;
}

static enum status detokenize(const struct rpc_model *model, const ProtobufCMessage *message,
                              struct arena *arena, struct error *error)
{
    char *text = NULL;
    size_t length = 0;
    enum status status =
        rpc_detokenize(model, (const void *)message, TEXT_BYTES, arena, &text, &length, error);
    if (status == STATUS_OK)
        need(length <= TEXT_BYTES && utf8_invalid(text, length) == length);
    return status;
}

static enum status abort_ids(const ProtobufCMessage *message, struct error *error)
{
    const Jet__V1__AbortRequest *request = (const void *)message;
    enum status status = rpc_check_abort(request, error);
    for (size_t i = 0; status == STATUS_OK && i < request->n_request_ids; i++)
        need(request->request_ids[i].len > 0 && request->request_ids[i].len <= REQUEST_ID_MAX &&
             memchr(request->request_ids[i].data, 0, request->request_ids[i].len) == NULL);
    return status;
}

static void validate(const struct rpc_model *model, enum kind kind, const ProtobufCMessage *message,
                     size_t size)
{
    struct arena *arena = arena_create(rpc_request_room(size));
    struct error error = {0};
    if (!arena)
        return;
    enum status status = kind == TOKENIZE     ? tokenize(model, message, arena, &error)
                         : kind == DETOKENIZE ? detokenize(model, message, arena, &error)
                         : kind == ABORT      ? abort_ids(message, &error)
                                         : generate(model, kind == SCORE, message, arena, &error);
    if (status != STATUS_OK)
        check_error(status, &error);
    arena_destroy(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[KINDS] = {
        [GENERATE] = &jet__v1__generate_request__descriptor,
        [SCORE] = &jet__v1__score_request__descriptor,
        [TOKENIZE] = &jet__v1__tokenize_request__descriptor,
        [DETOKENIZE] = &jet__v1__detokenize_request__descriptor,
        [ABORT] = &jet__v1__abort_request__descriptor,
    };
    if (!size)
        return 0;
    enum kind kind = data[0] % KINDS;
    struct arena *arena = NULL;
    ProtobufCMessage *message = NULL;
    struct error error = {0};
    enum status status = rpc_unpack(types[kind], data + 1, size - 1, &arena, &message, &error);
    if (status != STATUS_OK) {
        check_error(status, &error);
        return 0;
    }
    validate(&with_text, kind, message, size);
    validate(&without_text, kind, message, size);
    arena_destroy(arena);
    return 0;
}
