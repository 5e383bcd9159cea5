#include "daemon/rpc_answer.h"

#include <string.h>

static void send_prompt(struct rpc_call *call, const struct event *event,
                        Jet__V1__GenerateResponse *response)
{
    const char *id = request_spec(call->request)->id;
    Jet__V1__PromptInfo prompt = JET__V1__PROMPT_INFO__INIT;
    prompt.request_id = rpc_text(id, strlen(id));
    prompt.prompt_tokens = (uint32_t)event->prompt_tokens;
    prompt.cached_tokens = (uint32_t)event->cached_tokens;
    prompt.seed = event->seed;
    response->event_case = JET__V1__GENERATE_RESPONSE__EVENT_PROMPT;
    response->prompt = &prompt;
    rpc_call_send(call, &response->base);
}

static void send_progress(struct rpc_call *call, const struct event *event,
                          Jet__V1__GenerateResponse *response)
{
    Jet__V1__Progress progress = JET__V1__PROGRESS__INIT;
    progress.prefilled = (uint32_t)event->prefilled;
    progress.total = (uint32_t)event->prompt_tokens;
    response->event_case = JET__V1__GENERATE_RESPONSE__EVENT_PROGRESS;
    response->progress = &progress;
    rpc_call_send(call, &response->base);
}

struct logprob_room {
    Jet__V1__TokenLogprob **list, *token;
    Jet__V1__TopLogprob **top_list, *top;
};

static bool take_room(struct arena *arena, size_t tokens, size_t tops, struct logprob_room *room)
{
    room->list = arena_allocate(arena, tokens, sizeof *room->list);
    room->token = arena_allocate(arena, tokens, sizeof *room->token);
    room->top_list = arena_allocate(arena, tops + 1, sizeof *room->top_list);
    room->top = arena_allocate(arena, tops + 1, sizeof *room->top);
    return room->list && room->token && room->top_list && room->top;
}

static void fill_logprob(const struct token_logprob *from, struct logprob_room *room, size_t index)
{
    Jet__V1__TokenLogprob *token = &room->token[index];
    jet__v1__token_logprob__init(token);
    token->id = (uint32_t)from->id;
    token->logprob = from->logprob;
    token->is_argmax = from->is_argmax != 0;
    token->n_top = (size_t)from->tops;
    token->top = room->top_list;
    for (int i = 0; i < from->tops; i++) {
        Jet__V1__TopLogprob *top = room->top++;
        jet__v1__top_logprob__init(top);
        top->id = (uint32_t)from->top[i].id;
        top->logprob = from->top[i].value;
        *room->top_list++ = top;
    }
    room->list[index] = token;
}

static bool send_delta(struct rpc_call *call, const struct event *event,
                       Jet__V1__GenerateResponse *response)
{
    Jet__V1__Delta delta = JET__V1__DELTA__INIT;
    delta.index = (uint32_t)event->choice;
    delta.n_token_ids = (size_t)event->id_count;
    delta.token_ids = (uint32_t *)(uintptr_t)event->ids;
    if (event->text_length)
        delta.text = rpc_text(event->text, event->text_length);
    struct arena *arena = NULL;
    if (event->logprob_count) {
        size_t tokens = (size_t)event->logprob_count, tops = 0;
        struct logprob_room room;
        for (size_t i = 0; i < tokens; i++)
            tops += (size_t)event->logprobs[i].tops;
        arena = arena_create(SIZE_MAX / 2);
        if (!arena || !take_room(arena, tokens, tops, &room)) {
            arena_destroy(arena);
            return false;
        }
        for (size_t i = 0; i < tokens; i++)
            fill_logprob(&event->logprobs[i], &room, i);
        delta.n_logprobs = tokens;
        delta.logprobs = room.list;
    }
    response->event_case = JET__V1__GENERATE_RESPONSE__EVENT_DELTA;
    response->delta = &delta;
    rpc_call_send(call, &response->base);
    arena_destroy(arena);
    return true;
}

static Jet__V1__Finished__Reason reason_of(enum finish_reason reason)
{
    switch (reason) {
    case FINISH_STOP:
        return JET__V1__FINISHED__REASON__STOP;
    case FINISH_LENGTH:
        return JET__V1__FINISHED__REASON__LENGTH;
    case FINISH_CANCELLED:
        return JET__V1__FINISHED__REASON__CANCELLED;
    case FINISH_DEADLINE:
        return JET__V1__FINISHED__REASON__DEADLINE;
    case FINISH_ERROR:
        return JET__V1__FINISHED__REASON__ERROR;
    case FINISH_NONE:
        break;
    }
    return JET__V1__FINISHED__REASON__REASON_UNSPECIFIED;
}

static void send_finished(struct rpc_call *call, const struct event *event,
                          Jet__V1__GenerateResponse *response)
{
    Jet__V1__Usage usage = JET__V1__USAGE__INIT;
    usage.prompt_tokens = (uint32_t)request_spec(call->request)->prompt_tokens;
    usage.cached_tokens = (uint32_t)event->cached_tokens;
    usage.completion_tokens = (uint32_t)event->completion_tokens;
    Jet__V1__Timings timings = JET__V1__TIMINGS__INIT;
    timings.queued = event->queued;
    timings.prefill = event->prefill;
    timings.decode = event->decode;
    Jet__V1__Finished finished = JET__V1__FINISHED__INIT;
    finished.index = (uint32_t)event->choice;
    finished.reason = reason_of(event->reason);
    if (event->matched_stop)
        finished.matched_stop = rpc_text(event->matched_stop, event->matched_stop_length);
    if (event->reason == FINISH_STOP && event->matched_id >= 0) {
        finished.matched_stop_id_presence_case =
            JET__V1__FINISHED__MATCHED_STOP_ID_PRESENCE_MATCHED_STOP_ID;
        finished.matched_stop_id = (uint32_t)event->matched_id;
    }
    finished.usage = &usage;
    finished.timings = &timings;
    response->event_case = JET__V1__GENERATE_RESPONSE__EVENT_FINISHED;
    response->finished = &finished;
    rpc_call_send(call, &response->base);
}

bool rpc_send_event(struct rpc_call *call, const struct event *event)
{
    Jet__V1__GenerateResponse response = JET__V1__GENERATE_RESPONSE__INIT;
    switch (event->kind) {
    case EVENT_PROMPT:
        send_prompt(call, event, &response);
        break;
    case EVENT_PROGRESS:
        send_progress(call, event, &response);
        break;
    case EVENT_DELTA:
        return send_delta(call, event, &response);
    case EVENT_FINISHED:
        send_finished(call, event, &response);
        break;
    case EVENT_SCORE:
        break;
    }
    return true;
}
