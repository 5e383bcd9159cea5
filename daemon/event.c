#include "daemon/event.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/checked.h"

enum { MERGED_BYTES_MAX = 4096 }; /* merging copies: larger events are left alone */

/* Adds count x size to *bytes, aligned for anything we keep, and returns where it begins. */
static bool room_add(uint64_t *bytes, size_t count, size_t size, uint64_t *at)
{
    uint64_t more;
    *at = *bytes;
    return checked_multiply(count, size, &more) && checked_add(*bytes, more + 15, bytes) &&
           (*bytes &= ~UINT64_C(15), true);
}

struct event *event_create(enum event_kind kind, int choice, struct event_room room)
{
    uint64_t bytes = round_up(sizeof(struct event), 16), ids, text, logprobs, tops, top_count;
    if (!checked_multiply(room.logprobs, room.tops, &top_count) ||
        !room_add(&bytes, room.logprobs, sizeof(struct token_logprob), &logprobs) ||
        !room_add(&bytes, top_count, sizeof(struct logit_candidate), &tops) ||
        !room_add(&bytes, room.ids, sizeof(int32_t), &ids) ||
        !room_add(&bytes, room.text + 1, 1, &text))
        return NULL;
    char *memory = malloc(bytes);
    if (memory == NULL)
        return NULL;
    struct event *event = (struct event *)(void *)memory;
    *event = (struct event){.kind = kind,
                            .choice = choice,
                            .ids = (const int32_t *)(void *)(memory + ids),
                            .text = memory + text,
                            .logprobs = (const struct token_logprob *)(void *)(memory + logprobs),
                            .matched_id = -1,
                            .bytes = bytes};
    memory[text] = '\0';
    struct token_logprob *entry = (struct token_logprob *)(void *)(memory + logprobs);
    const struct logit_candidate *top = (const struct logit_candidate *)(void *)(memory + tops);
    for (size_t i = 0; i < room.logprobs; i++)
        entry[i] = (struct token_logprob){.top = top + i * room.tops};
    return event;
}

void event_free(struct event *event)
{
    free(event);
}

void event_add_ids(struct event *event, const int32_t *ids, int count)
{
    if (count > 0)
        memcpy((int32_t *)event->ids + event->id_count, ids, (size_t)count * sizeof *ids);
    event->id_count += count;
}

void event_add_id(struct event *event, int32_t id)
{
    event_add_ids(event, &id, 1);
}

void event_add_text(struct event *event, const char *text, size_t length)
{
    char *to = (char *)event->text + event->text_length;
    if (length > 0)
        memcpy(to, text, length);
    to[length] = '\0';
    event->text_length += length;
}

void event_add_logprob(struct event *event, const struct sample_result *result, int tops)
{
    struct token_logprob *entry = (struct token_logprob *)event->logprobs + event->logprob_count++;
    entry->id = result->token;
    entry->logprob = result->logprob;
    entry->is_argmax = result->is_argmax;
    entry->tops = result->tops < tops ? result->tops : tops;
    if (entry->tops > 0)
        memcpy((struct logit_candidate *)entry->top, result->top,
               (size_t)entry->tops * sizeof *result->top);
}

struct event *event_merge(const struct event *first, const struct event *second)
{
    if (first->kind != EVENT_DELTA || second->kind != EVENT_DELTA ||
        first->choice != second->choice || first->logprob_count + second->logprob_count > 0 ||
        first->bytes + second->bytes > MERGED_BYTES_MAX)
        return NULL;
    struct event_room room = {.ids = (size_t)(first->id_count + second->id_count),
                              .text = first->text_length + second->text_length};
    struct event *merged = event_create(EVENT_DELTA, first->choice, room);
    if (merged == NULL)
        return NULL;
    event_add_ids(merged, first->ids, first->id_count);
    event_add_ids(merged, second->ids, second->id_count);
    event_add_text(merged, first->text, first->text_length);
    event_add_text(merged, second->text, second->text_length);
    return merged;
}
