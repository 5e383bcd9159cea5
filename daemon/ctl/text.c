/* score, tokenize, detokenize, abort. */
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl/ctl.h"
#include "daemon/ctl/json_line.h"

/* ---- score ---- */

static void show_score_json(const Jet__V1__ScoreResponse *score, double sum)
{
    json_t *logprobs = json_array(), *best = json_array();
    for (size_t i = 0; i < score->n_logprobs; i++) {
        json_array_append_new(logprobs, json_real((double)score->logprobs[i]));
        json_array_append_new(best, json_boolean(score->is_argmax[i]));
    }
    ctl_print_json(json_pack("{s:o,s:o,s:o,s:f}", "ids", ctl_json_ids(score->ids, score->n_ids),
                             "logprobs", logprobs, "is_argmax", best, "sum", sum));
}

static void show_score(void *context, const ProtobufCMessage *message)
{
    const struct ctl_settings *settings = context;
    const Jet__V1__ScoreResponse *score = (const void *)message;
    double sum = 0;
    for (size_t i = 0; i < score->n_logprobs; i++)
        sum += (double)score->logprobs[i];
    if (settings->json) {
        show_score_json(score, sum);
        return;
    }
    for (size_t i = 0; i < score->n_logprobs && i + 1 < score->n_ids; i++)
        printf("%8u %12.6f%s\n", score->ids[i + 1], (double)score->logprobs[i],
               score->is_argmax[i] ? "  best" : "");
    printf("sum      %12.6f over %zu tokens\n", sum, score->n_logprobs);
}

int ctl_score(const struct ctl_settings *settings, struct ctl_client *client)
{
    struct ctl_prompt prompt;
    if (!ctl_read_prompt(settings, &prompt))
        return CTL_USAGE;
    Jet__V1__ScoreRequest request = JET__V1__SCORE_REQUEST__INIT;
    if (prompt.text) {
        request.prompt_case = JET__V1__SCORE_REQUEST__PROMPT_TEXT;
        request.text = ctl_bytes(prompt.text, prompt.length);
    } else {
        request.prompt_case = JET__V1__SCORE_REQUEST__PROMPT_TOKEN_IDS;
        request.token_ids = &prompt.ids;
    }
    request.request_id = ctl_bytes(settings->request_id, strlen(settings->request_id));
    request.priority = settings->priority;
    request.special_tokens = settings->special_tokens;
    const struct ctl_call call = {.path = "/jet.v1.Generation/Score",
                                  .request = &request.base,
                                  .response = &jet__v1__score_response__descriptor,
                                  .visit = show_score,
                                  .context = (void *)(uintptr_t)settings};
    int code = ctl_run(client, &call);
    ctl_free_prompt(&prompt);
    return code;
}

/* ---- tokenize ---- */

static void show_ids(void *context, const ProtobufCMessage *message)
{
    const struct ctl_settings *settings = context;
    const Jet__V1__TokenizeResponse *response = (const void *)message;
    if (settings->json) {
        ctl_print_json(json_pack("{s:o}", "ids", ctl_json_ids(response->ids, response->n_ids)));
        return;
    }
    for (size_t i = 0; i < response->n_ids; i++)
        printf("%s%u", i ? "," : "", response->ids[i]);
    putchar('\n');
}

int ctl_tokenize(const struct ctl_settings *settings, struct ctl_client *client)
{
    size_t length = 0;
    char *text = ctl_read_text(settings, &length);
    if (!text)
        return CTL_USAGE;
    Jet__V1__Message user = JET__V1__MESSAGE__INIT;
    Jet__V1__Message *messages[1] = {&user};
    Jet__V1__Chat chat = JET__V1__CHAT__INIT;
    Jet__V1__TokenizeRequest request = JET__V1__TOKENIZE_REQUEST__INIT;
    request.special_tokens = settings->special_tokens;
    if (settings->chat) {
        user.role = ctl_bytes("user", strlen("user"));
        user.content = ctl_bytes(text, length);
        chat.n_messages = 1;
        chat.messages = messages;
        request.prompt_case = JET__V1__TOKENIZE_REQUEST__PROMPT_CHAT;
        request.chat = &chat;
    } else {
        request.prompt_case = JET__V1__TOKENIZE_REQUEST__PROMPT_TEXT;
        request.text = ctl_bytes(text, length);
    }
    const struct ctl_call call = {.path = "/jet.v1.Generation/Tokenize",
                                  .request = &request.base,
                                  .response = &jet__v1__tokenize_response__descriptor,
                                  .visit = show_ids,
                                  .context = (void *)(uintptr_t)settings};
    int code = ctl_run(client, &call);
    free(text);
    return code;
}

/* ---- detokenize ---- */

static void show_text(void *context, const ProtobufCMessage *message)
{
    const struct ctl_settings *settings = context;
    const Jet__V1__DetokenizeResponse *response = (const void *)message;
    if (settings->json) {
        ctl_print_json(json_pack("{s:o}", "text", ctl_json_text(response->text)));
        return;
    }
    if (response->text.len)
        fwrite(response->text.data, 1, response->text.len, stdout);
    putchar('\n');
}

int ctl_detokenize(const struct ctl_settings *settings, struct ctl_client *client)
{
    Jet__V1__DetokenizeRequest request = JET__V1__DETOKENIZE_REQUEST__INIT;
    size_t length = 0;
    char *text = *settings->ids ? strdup(settings->ids) : ctl_read_text(settings, &length);
    if (!text)
        return CTL_USAGE;
    request.ids = ctl_read_ids(text, &request.n_ids);
    request.special_tokens = settings->special_tokens;
    const struct ctl_call call = {.path = "/jet.v1.Generation/Detokenize",
                                  .request = &request.base,
                                  .response = &jet__v1__detokenize_response__descriptor,
                                  .visit = show_text,
                                  .context = (void *)(uintptr_t)settings};
    int code = request.ids ? ctl_run(client, &call) : CTL_USAGE;
    free(request.ids);
    free(text);
    return code;
}

/* ---- abort ---- */

static void show_aborted(void *context, const ProtobufCMessage *message)
{
    const struct ctl_settings *settings = context;
    const Jet__V1__AbortResponse *response = (const void *)message;
    if (settings->json)
        ctl_print_json(json_pack("{s:I}", "aborted", (json_int_t)response->aborted));
    else
        printf("%u aborted\n", response->aborted);
}

int ctl_abort(const struct ctl_settings *settings, struct ctl_client *client)
{
    if (!*settings->text) {
        fputs("jetctl: abort: which request?\n", stderr);
        return CTL_USAGE;
    }
    size_t room = strlen(settings->text) / 2 + 1;
    ProtobufCBinaryData *list = calloc(room, sizeof *list);
    Jet__V1__AbortRequest request = JET__V1__ABORT_REQUEST__INIT;
    if (!list) {
        fputs("jetctl: out of memory\n", stderr);
        return CTL_USAGE;
    }
    for (const char *at = settings->text; *at;) {
        size_t length = strcspn(at, ",");
        if (length)
            list[request.n_request_ids++] = ctl_bytes(at, length);
        at += length + (at[length] == ',');
    }
    request.request_ids = list;
    const struct ctl_call call = {.path = "/jet.v1.Generation/Abort",
                                  .request = &request.base,
                                  .response = &jet__v1__abort_response__descriptor,
                                  .visit = show_aborted,
                                  .context = (void *)(uintptr_t)settings};
    int code = ctl_run(client, &call);
    free(list);
    return code;
}
