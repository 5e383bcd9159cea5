/* ChatML as the checkpoint's chat template writes it. The text is rendered with marks on the
 * template's own control tokens; everything else, whatever it spells, is encoded as plain text. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/chat_json.h"

#define IM_START "<|im_start|>"
#define IM_END "<|im_end|>"
#define DEFAULT_SYSTEM "You are a helpful assistant."

void chat_text_free(struct chat_text *chat)
{
    text_free(&chat->text);
    free(chat->marks);
    *chat = (struct chat_text){0};
}

static bool plain(struct chat_text *chat, const char *text)
{
    return text_append(&chat->text, text, strlen(text));
}

static bool control(struct chat_text *chat, const char *token)
{
    if (chat->mark_count == chat->mark_room) {
        size_t room = chat->mark_room * 2 + 16;
        struct chat_mark *marks = realloc(chat->marks, room * sizeof *marks);
        if (marks == NULL)
            return false;
        chat->marks = marks;
        chat->mark_room = room;
    }
    chat->marks[chat->mark_count++] =
        (struct chat_mark){.offset = chat->text.length, .length = strlen(token)};
    return plain(chat, token);
}

static enum status done(bool fine, struct error *error)
{
    return fine ? STATUS_OK : error_set(error, STATUS_RESOURCE_EXHAUSTED, "chat: out of memory");
}

static bool role_is(const struct chat_message *message, const char *role)
{
    return message->role_length == strlen(role) &&
           memcmp(message->role, role, message->role_length) == 0;
}

static bool content(struct chat_text *chat, const struct chat_message *message)
{
    return message->content == NULL ||
           text_append(&chat->text, message->content, message->content_length);
}

static enum status array_parse(const char *text, size_t length, json_t **array, struct error *error)
{
    json_error_t where;
    *array = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (*array == NULL)
        return error_set(error, STATUS_INVALID_ARGUMENT, "byte %d: %s", where.position, where.text);
    if (json_is_array(*array))
        return STATUS_OK;
    json_decref(*array);
    return error_set(error, STATUS_INVALID_ARGUMENT, "must be a JSON array");
}

static enum status tools_list(struct chat_text *chat, const json_t *tools, struct error *error)
{
    bool fine = plain(chat, "\n\n# Tools\n\nYou may call one or more functions to assist with the "
                            "user query.\n\nYou are provided with function signatures within "
                            "<tools></tools> XML tags:\n<tools>");
    for (size_t i = 0; fine && i < json_array_size(tools); ++i) {
        fine = plain(chat, "\n");
        enum status status = chat_json_append(json_array_get(tools, i), &chat->text, error);
        if (status != STATUS_OK)
            return error_prefix(error, "tools[%zu]", i);
    }
    fine = fine &&
           plain(chat, "\n</tools>\n\nFor each function call, return a json object with "
                       "function name and arguments within ") &&
           control(chat, "<tool_call>") && control(chat, "</tool_call>") &&
           plain(chat, " XML tags:\n") && control(chat, "<tool_call>") &&
           plain(chat, "\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n") &&
           control(chat, "</tool_call>");
    return done(fine, error);
}

static enum status system_turn(struct chat_text *chat, const struct chat_message *first,
                               const json_t *tools, struct error *error)
{
    bool fine = control(chat, IM_START) && plain(chat, "system\n") &&
                (role_is(first, "system") ? content(chat, first) : plain(chat, DEFAULT_SYSTEM));
    if (fine && json_array_size(tools) > 0) {
        enum status status = tools_list(chat, tools, error);
        if (status != STATUS_OK)
            return status;
    }
    return done(fine && control(chat, IM_END) && plain(chat, "\n"), error);
}

static enum status plain_turn(struct chat_text *chat, const struct chat_message *message,
                              struct error *error)
{
    return done(control(chat, IM_START) &&
                    text_append(&chat->text, message->role, message->role_length) &&
                    plain(chat, "\n") && content(chat, message) && control(chat, IM_END) &&
                    plain(chat, "\n"),
                error);
}

static enum status tool_call(struct chat_text *chat, const json_t *call, struct error *error)
{
    const json_t *function = json_object_get(call, "function");
    if (function != NULL)
        call = function;
    const json_t *name = json_object_get(call, "name");
    const json_t *arguments = json_object_get(call, "arguments");
    if (!json_is_string(name) || arguments == NULL)
        return error_set(error, STATUS_INVALID_ARGUMENT, "must have a name and arguments");
    bool fine = plain(chat, "\n") && control(chat, "<tool_call>") &&
                plain(chat, "\n{\"name\": \"") &&
                text_append(&chat->text, json_string_value(name), json_string_length(name)) &&
                plain(chat, "\", \"arguments\": ");
    if (!fine)
        return done(false, error);
    enum status status = chat_json_append(arguments, &chat->text, error);
    if (status != STATUS_OK)
        return status;
    return done(plain(chat, "}\n") && control(chat, "</tool_call>"), error);
}

static enum status calling_turn(struct chat_text *chat, const struct chat_message *message,
                                const json_t *calls, struct error *error)
{
    bool fine = control(chat, IM_START) && plain(chat, "assistant");
    if (message->content_length > 0)
        fine = fine && plain(chat, "\n") && content(chat, message);
    enum status status = done(fine, error);
    for (size_t i = 0; status == STATUS_OK && i < json_array_size(calls); ++i) {
        status = tool_call(chat, json_array_get(calls, i), error);
        if (status != STATUS_OK)
            return error_prefix(error, "tool_calls[%zu]", i);
    }
    if (status != STATUS_OK)
        return status;
    return done(control(chat, IM_END) && plain(chat, "\n"), error);
}

static enum status assistant_turn(struct chat_text *chat, const struct chat_message *message,
                                  struct error *error)
{
    if (message->tool_calls == NULL)
        return plain_turn(chat, message, error);
    json_t *calls;
    enum status status =
        array_parse(message->tool_calls, message->tool_calls_length, &calls, error);
    if (status != STATUS_OK)
        return error_prefix(error, "tool_calls");
    status = json_array_size(calls) == 0 ? plain_turn(chat, message, error)
                                         : calling_turn(chat, message, calls, error);
    json_decref(calls);
    return status;
}

/* Answers of tools that follow each other share one turn of the user. */
static enum status tool_turn(struct chat_text *chat, const struct chat_message *message, bool opens,
                             bool closes, struct error *error)
{
    bool fine = true;
    if (opens)
        fine = control(chat, IM_START) && plain(chat, "user");
    fine = fine && plain(chat, "\n<tool_response>\n") && content(chat, message) &&
           plain(chat, "\n</tool_response>");
    if (closes)
        fine = fine && control(chat, IM_END) && plain(chat, "\n");
    return done(fine, error);
}

static enum status message_check(const struct chat_message *message, struct error *error)
{
    if (!role_is(message, "system") && !role_is(message, "user") &&
        !role_is(message, "assistant") && !role_is(message, "tool"))
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "role: must be system, user, assistant or tool");
    size_t invalid =
        message->content == NULL ? 0 : utf8_invalid(message->content, message->content_length);
    if (message->content != NULL && invalid < message->content_length)
        return error_set(error, STATUS_INVALID_ARGUMENT, "content: invalid UTF-8 at byte %zu",
                         invalid);
    return STATUS_OK;
}

static enum status turn(struct chat_text *chat, const struct chat_message *messages, size_t count,
                        size_t index, struct error *error)
{
    const struct chat_message *message = &messages[index];
    if (role_is(message, "system") && index == 0)
        return STATUS_OK; /* the first turn has it already */
    if (role_is(message, "assistant"))
        return assistant_turn(chat, message, error);
    if (role_is(message, "tool"))
        return tool_turn(chat, message, index == 0 || !role_is(message - 1, "tool"),
                         index + 1 == count || !role_is(message + 1, "tool"), error);
    return plain_turn(chat, message, error);
}

enum status chat_render(const struct chat_message *messages, size_t count, const char *tools_text,
                        size_t tools_length, bool generation_prompt, struct chat_text *chat,
                        struct error *error)
{
    if (count == 0)
        return error_set(error, STATUS_INVALID_ARGUMENT, "messages: must not be empty");
    for (size_t i = 0; i < count; ++i)
        if (message_check(&messages[i], error) != STATUS_OK)
            return error_prefix(error, "messages[%zu]", i);
    json_t *tools = NULL;
    if (tools_text != NULL && array_parse(tools_text, tools_length, &tools, error) != STATUS_OK)
        return error_prefix(error, "tools");
    enum status status = system_turn(chat, &messages[0], tools, error);
    json_decref(tools);
    for (size_t i = 0; status == STATUS_OK && i < count; ++i)
        if ((status = turn(chat, messages, count, i, error)) != STATUS_OK)
            return error_prefix(error, "messages[%zu]", i);
    if (status == STATUS_OK && generation_prompt)
        status = done(control(chat, IM_START) && plain(chat, "assistant\n"), error);
    return status;
}
