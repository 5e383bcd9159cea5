#include "cluster/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"

#define TICK_MAX (CLOCK_SECOND / 5)
#define TICK_CLOSING (CLOCK_SECOND / 500)
#define CLOSE_PATIENCE (CLOCK_SECOND * 30)
#define LAST_WORDS (CLOCK_SECOND / 4) /* for rank 0's verdict to reach the others */

struct peer {
    int rank;
    bool left;     /* its leaving beat came */
    bool told;     /* it took our leaving beat */
    int64_t heard; /* when its last beat came */
    struct beat last;
};

struct watch {
    struct watch_link link;
    int rank, world;
    int64_t silence, slowness; /* limits, nanoseconds */
    struct peer *peers;        /* [peer_count] whom this rank tells, hears and judges */
    int peer_count;
    int64_t ticked;

    /* what the thread that runs steps is doing */
    atomic_ullong step, transfers;
    atomic_llong since; /* start of the step; 0: idle */
    atomic_int waiting;

    int dead; /* rank + 1 seen to die */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool closing; /* under lock */
    int64_t closing_since;
};

void watch_step_begin(struct watch *watch, uint64_t step)
{
    atomic_store(&watch->step, step);
    atomic_store(&watch->since, clock_now());
}

void watch_step_end(struct watch *watch)
{
    atomic_store(&watch->since, 0);
}

void watch_wait_begin(struct watch *watch)
{
    atomic_store_explicit(&watch->waiting, 1, memory_order_relaxed);
}

void watch_wait_end(struct watch *watch)
{
    atomic_fetch_add_explicit(&watch->transfers, 1, memory_order_relaxed);
    atomic_store_explicit(&watch->waiting, 0, memory_order_relaxed);
}

void verdict_text(const struct verdict *verdict, char *text, size_t room)
{
    unsigned long long step = verdict->step;
    switch ((enum verdict_kind)verdict->kind) {
    case VERDICT_SILENT:
        snprintf(text, room, "rank %d stalled in step %llu (no sign of life for %.1f s)",
                 verdict->rank, step, verdict->seconds);
        return;
    case VERDICT_SLOW:
        snprintf(text, room, "rank %d stalled in step %llu (it has been in it for %.1f s)",
                 verdict->rank, step, verdict->seconds);
        return;
    case VERDICT_DEAD:
        snprintf(text, room, "rank %d died in step %llu", verdict->rank, step);
        return;
    case VERDICT_LINGERS:
        snprintf(text, room, "rank %d stalled in step %llu (the others closed %.1f s ago)",
                 verdict->rank, step, verdict->seconds);
        return;
    case VERDICT_NONE:
        break;
    }
    snprintf(text, room, "no verdict");
}

static struct beat own_beat(struct watch *watch)
{
    int64_t since = atomic_load(&watch->since);
    return (struct beat){
        .step = since != 0 ? atomic_load(&watch->step) : 0,
        .seconds = since != 0 ? clock_seconds(clock_now() - since) : 0,
        .transfers = atomic_load_explicit(&watch->transfers, memory_order_relaxed),
        .waiting = atomic_load_explicit(&watch->waiting, memory_order_relaxed),
        .dead = watch->dead,
    };
}

static void hear_all(struct watch *watch, int64_t now, struct verdict *verdict)
{
    for (int i = 0; i < watch->peer_count; i++) {
        struct peer *peer = &watch->peers[i];
        struct beat beat;
        while (!peer->left && watch->link.hear(watch->link.context, peer->rank, &beat)) {
            peer->heard = now;
            peer->left = beat.leaving != 0;
            peer->last = beat;
            if (watch->rank != 0 && beat.verdict.kind != VERDICT_NONE)
                *verdict = beat.verdict;
        }
    }
}

static void tell_all(struct watch *watch, const struct verdict *verdict)
{
    struct beat beat = own_beat(watch);
    if (verdict != NULL)
        beat.verdict = *verdict;
    for (int i = 0; i < watch->peer_count; i++) {
        struct peer *peer = &watch->peers[i];
        if (!peer->told && (!peer->left || verdict != NULL))
            watch->link.tell(watch->link.context, peer->rank, &beat);
    }
}

static void judge_silence(struct watch *watch, int64_t now, struct verdict *verdict)
{
    for (int i = 0; i < watch->peer_count; i++) {
        const struct peer *peer = &watch->peers[i];
        if (peer->left || now - peer->heard <= watch->silence)
            continue;
        *verdict = (struct verdict){VERDICT_SILENT, peer->rank, peer->last.step,
                                    clock_seconds(now - peer->heard)};
        return;
    }
}

static struct peer *peer_of(struct watch *watch, int rank)
{
    for (int i = 0; i < watch->peer_count; i++)
        if (watch->peers[i].rank == rank)
            return &watch->peers[i];
    return NULL;
}

/* A process that ended without leaving. Only rank 0 knows everyone's step, so others tell it. */
static void judge_death(struct watch *watch, struct verdict *verdict)
{
    if (watch->dead == 0 && watch->link.dead != NULL)
        watch->dead = watch->link.dead(watch->link.context) + 1;
    int dead = watch->dead;
    for (int i = 0; i < watch->peer_count && dead == 0 && watch->rank == 0; i++)
        dead = watch->peers[i].last.dead;
    const struct peer *peer = dead == 0 ? NULL : peer_of(watch, dead - 1);
    if (peer != NULL && !peer->left)
        *verdict = (struct verdict){VERDICT_DEAD, peer->rank, peer->last.step, 0};
}

/* Whether `a` rather than `b` is what the others wait for; both are in a step. */
static bool holds_up(const struct beat *a, const struct beat *b)
{
    if (a->waiting != b->waiting)
        return a->waiting < b->waiting;
    if (a->step != b->step)
        return a->step < b->step;
    return a->transfers < b->transfers;
}

/* Rank 0 only: ranks that wait for a slow one look as busy as that one; name the one behind. */
static void judge_slowness(struct watch *watch, struct verdict *verdict)
{
    struct beat mine = own_beat(watch);
    const struct beat *behind = mine.seconds > 0 ? &mine : NULL;
    double longest = mine.seconds;
    int rank = 0;
    for (int i = 0; i < watch->peer_count; i++) {
        const struct peer *peer = &watch->peers[i];
        if (peer->left || peer->last.seconds <= 0)
            continue;
        if (peer->last.seconds > longest)
            longest = peer->last.seconds;
        if (behind == NULL || holds_up(&peer->last, behind)) {
            behind = &peer->last;
            rank = peer->rank;
        }
    }
    if (behind != NULL && longest > clock_seconds(watch->slowness))
        *verdict = (struct verdict){VERDICT_SLOW, rank, behind->step, behind->seconds};
}

static void judge_closing(struct watch *watch, int64_t now, struct verdict *verdict)
{
    if (now - watch->closing_since <= CLOSE_PATIENCE)
        return;
    for (int i = 0; i < watch->peer_count; i++) {
        const struct peer *peer = &watch->peers[i];
        if (!peer->left)
            *verdict = (struct verdict){VERDICT_LINGERS, peer->rank, peer->last.step,
                                        clock_seconds(now - watch->closing_since)};
    }
}

static void condemn(struct watch *watch, const struct verdict *verdict)
{
    if (watch->rank == 0 && watch->link.together) {
        int64_t end = clock_now() + LAST_WORDS;
        struct verdict ignored;
        do {
            tell_all(watch, verdict);
            hear_all(watch, clock_now(), &ignored); /* moves messages along */
            clock_sleep(LAST_WORDS / 10);
        } while (clock_now() < end);
    }
    char text[128];
    verdict_text(verdict, text, sizeof text);
    watch->link.condemn(watch->link.context, verdict, text);
}

/* True once nobody needs this watch any more: the others left and know that we leave. Rank 0 leaves
 * last, so that whoever heard it leave knows that all did. */
static bool leave(struct watch *watch)
{
    struct beat beat = own_beat(watch);
    beat.leaving = 1;
    bool all_left = true, all_told = true;
    for (int i = 0; i < watch->peer_count; i++)
        all_left = all_left && watch->peers[i].left;
    if (watch->rank == 0 && watch->link.together && !all_left)
        return false;
    for (int i = 0; i < watch->peer_count; i++) {
        struct peer *peer = &watch->peers[i];
        if (!peer->told)
            peer->told = watch->link.tell(watch->link.context, peer->rank, &beat);
        all_told = all_told && peer->told;
    }
    return all_told && (all_left || !watch->link.together);
}

/* False: over. */
static bool tick(struct watch *watch, bool closing)
{
    struct verdict verdict = {.kind = VERDICT_NONE};
    int64_t now = clock_now();
    /* If this process itself was held up, its peers' beats are waiting unread. */
    if (now - watch->ticked > watch->silence / 2)
        for (int i = 0; i < watch->peer_count; i++)
            watch->peers[i].heard = now;
    watch->ticked = now;
    hear_all(watch, now, &verdict);
    if (verdict.kind == VERDICT_NONE)
        judge_death(watch, &verdict);
    if (verdict.kind == VERDICT_NONE)
        judge_silence(watch, now, &verdict);
    if (verdict.kind == VERDICT_NONE && watch->rank == 0)
        judge_slowness(watch, &verdict);
    if (verdict.kind == VERDICT_NONE && closing && watch->link.together)
        judge_closing(watch, now, &verdict);
    if (verdict.kind != VERDICT_NONE) {
        condemn(watch, &verdict);
        return false;
    }
    if (closing && leave(watch))
        return false;
    tell_all(watch, NULL);
    return true;
}

/* Sleeps a tick; true once closing. */
static bool sleep_tick(struct watch *watch)
{
    int64_t length = watch->silence / 5 < TICK_MAX ? watch->silence / 5 : TICK_MAX;
    pthread_mutex_lock(&watch->lock);
    int64_t until = clock_now() + (watch->closing ? TICK_CLOSING : length);
    struct timespec at = {until / CLOCK_SECOND, until % CLOCK_SECOND};
    bool was_closing = watch->closing;
    int timed_out = 0;
    while (timed_out == 0 && watch->closing == was_closing)
        timed_out = pthread_cond_timedwait(&watch->wake, &watch->lock, &at);
    bool closing = watch->closing;
    pthread_mutex_unlock(&watch->lock);
    return closing;
}

static void *watch_main(void *context)
{
    struct watch *watch = context;
    while (tick(watch, sleep_tick(watch)))
        ;
    return NULL;
}

static int64_t limit_of(double seconds, double standard)
{
    if (!(seconds > 0))
        seconds = standard;
    return (int64_t)((seconds < 1e8 ? seconds : 1e8) * (double)CLOCK_SECOND);
}

static enum status start_thread(struct watch *watch, struct error *error)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&watch->lock, NULL);
    int failure = pthread_create(&watch->thread, NULL, watch_main, watch);
    if (failure == 0)
        return STATUS_OK;
    pthread_mutex_destroy(&watch->lock);
    pthread_cond_destroy(&watch->wake);
    return error_set(error, STATUS_IO, "no thread for the watch of rank %d (error %d)", watch->rank,
                     failure);
}

enum status watch_open(const struct fabric_options *options, int rank, int world,
                       const struct watch_link *link, struct watch **result, struct error *error)
{
    struct watch *watch = calloc(1, sizeof *watch);
    struct peer *peers = calloc((size_t)world, sizeof *peers);
    enum status status = STATUS_NO_MEMORY;
    if (watch == NULL || peers == NULL) {
        error_set(error, status, "no memory for the watch of %d ranks", world);
        goto free_memory;
    }
    watch->link = *link;
    watch->rank = rank;
    watch->world = world;
    watch->silence = limit_of(options->heartbeat_timeout, 5);
    watch->slowness = limit_of(options->step_timeout, 300);
    watch->peers = peers;
    watch->peer_count = rank == 0 ? world - 1 : 1;
    watch->ticked = clock_now();
    for (int i = 0; i < watch->peer_count; i++)
        peers[i] = (struct peer){.rank = rank == 0 ? i + 1 : 0, .heard = watch->ticked};
    status = start_thread(watch, error);
    if (status != STATUS_OK)
        goto free_memory;
    *result = watch;
    return STATUS_OK;
free_memory:
    free(peers);
    free(watch);
    return status;
}

void watch_close(struct watch *watch)
{
    if (watch == NULL)
        return;
    pthread_mutex_lock(&watch->lock);
    watch->closing = true;
    watch->closing_since = clock_now();
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->lock);
    pthread_join(watch->thread, NULL);
    pthread_mutex_destroy(&watch->lock);
    pthread_cond_destroy(&watch->wake);
    free(watch->peers);
    free(watch);
}
