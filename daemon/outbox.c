#include "daemon/outbox.h"

#include "daemon/event.h"

void outbox_open(struct outbox *outbox, request_wake *wake, void *context)
{
    *outbox = (struct outbox){.wake = wake, .wake_context = context};
    pthread_mutex_init(&outbox->mutex, NULL);
}

void outbox_close(struct outbox *outbox)
{
    for (struct event *event = outbox->first, *next; event != NULL; event = next) {
        next = event->next;
        event_free(event);
    }
    pthread_mutex_destroy(&outbox->mutex);
}

static bool last_merge(struct outbox *outbox, struct event *event)
{
    struct event *last = outbox->last;
    struct event *merged = last == NULL ? NULL : event_merge(last, event);
    if (merged == NULL)
        return false;
    outbox->bytes += merged->bytes - last->bytes;
    *outbox->last_link = merged;
    outbox->last = merged;
    event_free(last);
    event_free(event);
    return true;
}

void outbox_push(struct outbox *outbox, struct event *event)
{
    event->next = NULL;
    pthread_mutex_lock(&outbox->mutex);
    bool was_empty = outbox->first == NULL;
    if (!last_merge(outbox, event)) {
        outbox->last_link = was_empty ? &outbox->first : &outbox->last->next;
        *outbox->last_link = event;
        outbox->last = event;
        outbox->bytes += event->bytes;
    }
    pthread_mutex_unlock(&outbox->mutex);
    if (was_empty && outbox->wake != NULL)
        outbox->wake(outbox->wake_context);
}

struct event *outbox_take(struct outbox *outbox)
{
    pthread_mutex_lock(&outbox->mutex);
    struct event *event = outbox->first;
    if (event != NULL) {
        outbox->first = event->next;
        if (outbox->first == NULL)
            outbox->last = NULL;
        else if (outbox->first == outbox->last)
            outbox->last_link = &outbox->first;
        outbox->bytes -= event->bytes;
        event->next = NULL;
    }
    if (outbox->drained != NULL && outbox->bytes <= outbox->mark) {
        outbox->drained(outbox->drained_context);
        outbox->drained = NULL;
    }
    pthread_mutex_unlock(&outbox->mutex);
    return event;
}

size_t outbox_bytes(struct outbox *outbox)
{
    pthread_mutex_lock(&outbox->mutex);
    size_t bytes = outbox->bytes;
    pthread_mutex_unlock(&outbox->mutex);
    return bytes;
}

bool outbox_watch(struct outbox *outbox, size_t mark, outbox_drained *drained, void *context)
{
    pthread_mutex_lock(&outbox->mutex);
    bool above = outbox->bytes > mark;
    outbox->mark = mark;
    outbox->drained = above ? drained : NULL;
    outbox->drained_context = context;
    pthread_mutex_unlock(&outbox->mutex);
    return above;
}

void outbox_unwatch(struct outbox *outbox)
{
    pthread_mutex_lock(&outbox->mutex);
    outbox->drained = NULL;
    pthread_mutex_unlock(&outbox->mutex);
}
