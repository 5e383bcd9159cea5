/* generate and chat: the output as it comes. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/ctl/ctl.h"
#include "daemon/ctl/json_line.h"

enum { CHOICES_MAX = 128 };

/* Output that is printed at the end. */
struct kept {
    FILE *stream; /* NULL: there is none */
    char *bytes;
    size_t length;
};

struct output {
    const struct ctl_settings *settings;
    struct kept text[CHOICES_MAX]; /* with n > 1 */
    struct kept ids[CHOICES_MAX];  /* in case that there is no text: a model without tokenizer */
    bool wrote_text, progress;
};

static const char *reason_name(Jet__V1__Finished__Reason reason)
{
    const ProtobufCEnumValue *value =
        protobuf_c_enum_descriptor_get_value(&jet__v1__finished__reason__descriptor, (int)reason);
    return value ? value->name : "UNKNOWN";
}

static json_t *json_logprobs(const Jet__V1__Delta *delta)
{
    json_t *list = json_array();
    for (size_t i = 0; i < delta->n_logprobs; i++) {
        const Jet__V1__TokenLogprob *token = delta->logprobs[i];
        json_t *top = json_array();
        for (size_t j = 0; j < token->n_top; j++)
            json_array_append_new(top, json_pack("{s:I,s:f}", "id", (json_int_t)token->top[j]->id,
                                                 "logprob", (double)token->top[j]->logprob));
        json_array_append_new(list, json_pack("{s:I,s:f,s:b,s:o}", "id", (json_int_t)token->id,
                                              "logprob", (double)token->logprob, "is_argmax",
                                              token->is_argmax, "top", top));
    }
    return list;
}

static json_t *json_finished(const Jet__V1__Finished *finished)
{
    json_t *object = json_pack("{s:s,s:i,s:s,s:o}", "event", "finished", "index",
                               (int)finished->index, "reason", reason_name(finished->reason),
                               "matched_stop", ctl_json_text(finished->matched_stop));
    if (finished->matched_stop_id_presence_case ==
        JET__V1__FINISHED__MATCHED_STOP_ID_PRESENCE_MATCHED_STOP_ID)
        json_object_set_new(object, "matched_stop_id", json_integer(finished->matched_stop_id));
    if (finished->usage)
        json_object_set_new(
            object, "usage",
            json_pack("{s:I,s:I,s:I}", "prompt_tokens", (json_int_t)finished->usage->prompt_tokens,
                      "cached_tokens", (json_int_t)finished->usage->cached_tokens,
                      "completion_tokens", (json_int_t)finished->usage->completion_tokens));
    if (finished->timings)
        json_object_set_new(object, "timings",
                            json_pack("{s:f,s:f,s:f}", "queued", finished->timings->queued,
                                      "prefill", finished->timings->prefill, "decode",
                                      finished->timings->decode));
    return object;
}

static void show_json(const Jet__V1__GenerateResponse *message)
{
    switch (message->event_case) {
    case JET__V1__GENERATE_RESPONSE__EVENT_PROMPT:
        ctl_print_json(json_pack("{s:s,s:o,s:I,s:I,s:o}", "event", "prompt", "request_id",
                                 ctl_json_text(message->prompt->request_id), "prompt_tokens",
                                 (json_int_t)message->prompt->prompt_tokens, "cached_tokens",
                                 (json_int_t)message->prompt->cached_tokens, "seed",
                                 /* as text: JSON readers lose the low bits of large numbers */
                                 json_sprintf("%llu", (unsigned long long)message->prompt->seed)));
        break;
    case JET__V1__GENERATE_RESPONSE__EVENT_PROGRESS:
        ctl_print_json(json_pack("{s:s,s:I,s:I}", "event", "progress", "prefilled",
                                 (json_int_t)message->progress->prefilled, "total",
                                 (json_int_t)message->progress->total));
        break;
    case JET__V1__GENERATE_RESPONSE__EVENT_DELTA:
        ctl_print_json(json_pack(
            "{s:s,s:i,s:o,s:o,s:o}", "event", "delta", "index", (int)message->delta->index,
            "token_ids", ctl_json_ids(message->delta->token_ids, message->delta->n_token_ids),
            "text", ctl_json_text(message->delta->text), "logprobs",
            json_logprobs(message->delta)));
        break;
    case JET__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        ctl_print_json(json_finished(message->finished));
        break;
    default:
        break;
    }
}

static void show_progress(struct output *output, const Jet__V1__Progress *progress)
{
    if (!isatty(STDERR_FILENO))
        return;
    output->progress = true;
    fprintf(stderr, "\rreading the prompt: %u of %u tokens", progress->prefilled, progress->total);
}

static void end_progress(struct output *output)
{
    if (output->progress)
        fputs("\r\033[K", stderr);
    output->progress = false;
}

static FILE *keep(struct kept *kept)
{
    if (!kept->stream)
        kept->stream = open_memstream(&kept->bytes, &kept->length);
    return kept->stream;
}

static void show_delta(struct output *output, const Jet__V1__Delta *delta)
{
    end_progress(output);
    if (delta->index >= CHOICES_MAX)
        return;
    FILE *text = output->settings->n > 1 ? keep(&output->text[delta->index]) : stdout;
    FILE *ids = keep(&output->ids[delta->index]);
    if (delta->text.len && text) {
        fwrite(delta->text.data, 1, delta->text.len, text);
        output->wrote_text = true;
    }
    for (size_t i = 0; i < delta->n_token_ids && ids; i++)
        fprintf(ids, "%u ", delta->token_ids[i]);
    fflush(stdout);
}

static void visit(void *context, const ProtobufCMessage *base)
{
    struct output *output = context;
    const Jet__V1__GenerateResponse *message = (const void *)base;
    if (output->settings->json)
        show_json(message);
    else if (message->event_case == JET__V1__GENERATE_RESPONSE__EVENT_PROGRESS)
        show_progress(output, message->progress);
    else if (message->event_case == JET__V1__GENERATE_RESPONSE__EVENT_DELTA)
        show_delta(output, message->delta);
}

static void print_kept(const struct kept *kept)
{
    fwrite(kept->bytes, 1, kept->length, stdout);
}

static void close_kept(struct kept *kept)
{
    if (kept->stream)
        fclose(kept->stream);
}

/* What show_delta did not print as it came. */
static void finish_output(struct output *output, bool well)
{
    const struct kept *kept = output->wrote_text ? output->text : output->ids;
    bool one = output->settings->n <= 1;
    end_progress(output);
    for (int i = 0; i < CHOICES_MAX; i++) {
        close_kept(&output->text[i]);
        close_kept(&output->ids[i]);
        if (!kept[i].stream)
            continue;
        if (!one)
            printf("--- %d\n", i);
        print_kept(&kept[i]);
        if (!one)
            putchar('\n');
    }
    if (one && !output->settings->json && (well || output->wrote_text))
        putchar('\n');
    for (int i = 0; i < CHOICES_MAX; i++) {
        free(output->text[i].bytes);
        free(output->ids[i].bytes);
    }
}

static bool fill_floats(const struct ctl_settings *settings, Jet__V1__SamplingParams *sampling)
{
    const struct {
        const char *option, *text;
        uint32_t number; /* of the field, which is what its case is set to */
        int *presence;
        float *value;
    } fields[] = {
        {"temperature", settings->temperature,
         JET__V1__SAMPLING_PARAMS__TEMPERATURE_PRESENCE_TEMPERATURE,
         (int *)&sampling->temperature_presence_case, &sampling->temperature},
        {"top-p", settings->top_p, JET__V1__SAMPLING_PARAMS__TOP_P_PRESENCE_TOP_P,
         (int *)&sampling->top_p_presence_case, &sampling->top_p},
        {"min-p", settings->min_p, JET__V1__SAMPLING_PARAMS__MIN_P_PRESENCE_MIN_P,
         (int *)&sampling->min_p_presence_case, &sampling->min_p},
        {"repetition-penalty", settings->repetition_penalty,
         JET__V1__SAMPLING_PARAMS__REPETITION_PENALTY_PRESENCE_REPETITION_PENALTY,
         (int *)&sampling->repetition_penalty_presence_case, &sampling->repetition_penalty},
        {"presence-penalty", settings->presence_penalty,
         JET__V1__SAMPLING_PARAMS__PRESENCE_PENALTY_PRESENCE_PRESENCE_PENALTY,
         (int *)&sampling->presence_penalty_presence_case, &sampling->presence_penalty},
        {"frequency-penalty", settings->frequency_penalty,
         JET__V1__SAMPLING_PARAMS__FREQUENCY_PENALTY_PRESENCE_FREQUENCY_PENALTY,
         (int *)&sampling->frequency_penalty_presence_case, &sampling->frequency_penalty},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        bool set;
        if (!ctl_float(fields[i].option, fields[i].text, &set, fields[i].value))
            return false;
        if (set)
            *fields[i].presence = (int)fields[i].number;
    }
    return true;
}

static bool fill_sampling(const struct ctl_settings *settings, Jet__V1__SamplingParams *sampling)
{
    bool set;
    uint64_t value;
    if (!fill_floats(settings, sampling) ||
        !ctl_unsigned("top-k", settings->top_k, UINT32_MAX, &set, &value))
        return false;
    if (set) {
        sampling->top_k_presence_case = JET__V1__SAMPLING_PARAMS__TOP_K_PRESENCE_TOP_K;
        sampling->top_k = (uint32_t)value;
    }
    if (!ctl_unsigned("seed", settings->seed, UINT64_MAX, &set, &value))
        return false;
    if (set) {
        sampling->seed_presence_case = JET__V1__SAMPLING_PARAMS__SEED_PRESENCE_SEED;
        sampling->seed = value;
    }
    return true;
}

static bool fill_request(const struct ctl_settings *settings, ProtobufCBinaryData *stop,
                         Jet__V1__GenerateRequest *request)
{
    bool set;
    uint64_t value;
    if (!ctl_unsigned("logprobs", settings->logprobs, UINT32_MAX, &set, &value))
        return false;
    if (set) {
        request->logprobs_presence_case = JET__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
        request->logprobs = (uint32_t)value;
    }
    for (int i = 0; i < settings->stop.count; i++)
        stop[i] = ctl_bytes(settings->stop.text[i], strlen(settings->stop.text[i]));
    request->n_stop = (size_t)settings->stop.count;
    request->stop = stop;
    request->request_id = ctl_bytes(settings->request_id, strlen(settings->request_id));
    request->max_new_tokens = (uint32_t)settings->max_new_tokens;
    request->min_new_tokens = (uint32_t)settings->min_new_tokens;
    request->include_stop = settings->include_stop;
    request->ignore_eos = settings->ignore_eos;
    request->n = (uint32_t)settings->n;
    request->priority = settings->priority;
    request->echo = settings->echo;
    request->special_tokens = settings->special_tokens;
    return true;
}

static int run(const struct ctl_settings *settings, struct ctl_client *client,
               Jet__V1__GenerateRequest *request)
{
    Jet__V1__SamplingParams sampling = JET__V1__SAMPLING_PARAMS__INIT;
    ProtobufCBinaryData stop[OPTION_LIST_MAX];
    if (!fill_sampling(settings, &sampling) || !fill_request(settings, stop, request))
        return CTL_USAGE;
    request->sampling = &sampling;
    struct output output = {.settings = settings};
    const struct ctl_call call = {.path = "/jet.v1.Generation/Generate",
                                  .request = &request->base,
                                  .response = &jet__v1__generate_response__descriptor,
                                  .visit = visit,
                                  .context = &output};
    int code = ctl_run(client, &call);
    finish_output(&output, code == CTL_OK);
    return code;
}

int ctl_generate(const struct ctl_settings *settings, struct ctl_client *client)
{
    struct ctl_prompt prompt;
    if (!ctl_read_prompt(settings, &prompt))
        return CTL_USAGE;
    Jet__V1__GenerateRequest request = JET__V1__GENERATE_REQUEST__INIT;
    if (prompt.text) {
        request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TEXT;
        request.text = ctl_bytes(prompt.text, prompt.length);
    } else {
        request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
        request.token_ids = &prompt.ids;
    }
    int code = run(settings, client, &request);
    ctl_free_prompt(&prompt);
    return code;
}

int ctl_chat(const struct ctl_settings *settings, struct ctl_client *client)
{
    size_t length = 0;
    char *text = ctl_read_text(settings, &length);
    if (!text)
        return CTL_USAGE;
    Jet__V1__Message system = JET__V1__MESSAGE__INIT, user = JET__V1__MESSAGE__INIT;
    Jet__V1__Message *messages[2] = {&system, &user};
    bool with_system = *settings->system;
    system.role = ctl_bytes("system", strlen("system"));
    system.content = ctl_bytes(settings->system, strlen(settings->system));
    user.role = ctl_bytes("user", strlen("user"));
    user.content = ctl_bytes(text, length);
    Jet__V1__Chat chat = JET__V1__CHAT__INIT;
    chat.n_messages = with_system ? 2 : 1;
    chat.messages = with_system ? messages : messages + 1;
    Jet__V1__GenerateRequest request = JET__V1__GENERATE_REQUEST__INIT;
    request.prompt_case = JET__V1__GENERATE_REQUEST__PROMPT_CHAT;
    request.chat = &chat;
    int code = run(settings, client, &request);
    free(text);
    return code;
}
