/* Making events (request.h): one piece of memory each, lists and text inside. */
#ifndef JETD_DAEMON_EVENT_H
#define JETD_DAEMON_EVENT_H

#include "daemon/request.h"
#include "partition/step.h"

/* Room for the lists; `tops` is for each log-probability. */
struct event_room {
    size_t ids, text, logprobs, tops;
};

/* ids, logprobs and text are empty at first and point at their room. NULL: out of memory. */
struct event *event_create(enum event_kind kind, int choice, struct event_room room);
void event_add_id(struct event *event, int32_t id);
void event_add_ids(struct event *event, const int32_t *ids, int count);
void event_add_text(struct event *event, const char *text, size_t length);
/* `tops`: as many best ids at most, as the event has room for. */
void event_add_logprob(struct event *event, const struct sample_result *result, int tops);
/* Both deltas in one new event; NULL: they do not belong together (or out of memory). */
struct event *event_merge(const struct event *first, const struct event *second);

#endif
