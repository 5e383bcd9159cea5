#include "cluster/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "daemon/base/clock.h"

#define TICK_MAX (CLOCK_SECOND / 5)
#define TICK_CLOSING (CLOCK_SECOND / 500)
#define TICK_CONDEMNED (CLOCK_SECOND / 100)

struct watch {
    struct watch_link link;
    int rank, world;
    int64_t silence, tick; /* nanoseconds */
    struct verdict_limits limits;
    _Atomic double step_limit;
    struct peer *peers; /* [peer_count] whom this rank tells, hears and judges */
    int peer_count;
    int64_t ticked, held_up; /* the last tick; when ticks last stood still, 0: never */

    /* what the thread that runs steps is doing */
    atomic_ullong step, transfers;
    atomic_int phase;
    atomic_llong since; /* start of the step, or when loading last made progress */
    atomic_int waiting;

    int dead; /* rank + 1 seen to die */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool closing; /* under lock */
    int64_t closing_since;
};

void watch_limit_steps(struct watch *watch, double seconds)
{
    atomic_store(&watch->step_limit, seconds);
}

int64_t watch_patience(const struct watch *watch)
{
    return watch->silence + 3 * watch->tick;
}

/* `since` first: who sees the new phase sees when it began. */
static void phase_enter(struct watch *watch, enum phase phase)
{
    atomic_store(&watch->since, clock_now());
    atomic_store(&watch->phase, (int)phase);
}

void watch_load_mark(struct watch *watch)
{
    phase_enter(watch, PHASE_LOADING);
}

void watch_load_end(struct watch *watch)
{
    phase_enter(watch, PHASE_IDLE);
}

void watch_step_begin(struct watch *watch, uint64_t step)
{
    atomic_store(&watch->step, step);
    phase_enter(watch, PHASE_STEP);
}

void watch_step_end(struct watch *watch)
{
    phase_enter(watch, PHASE_IDLE);
}

void watch_wait_begin(struct watch *watch)
{
    atomic_store_explicit(&watch->waiting, 1, memory_order_relaxed);
}

void watch_device_wait_end(struct watch *watch)
{
    atomic_store_explicit(&watch->waiting, 0, memory_order_release);
}

void watch_wait_end(struct watch *watch)
{
    atomic_fetch_add_explicit(&watch->transfers, 1, memory_order_relaxed);
    if (atomic_load_explicit(&watch->phase, memory_order_relaxed) == PHASE_LOADING)
        atomic_store(&watch->since, clock_now()); /* what it waited for came: progress */
    watch_device_wait_end(watch);
}

/* `waiting` first: who sees that a wait ended sees the mark that its end was. */
static struct beat own_beat(struct watch *watch, bool closing)
{
    int waiting = atomic_load_explicit(&watch->waiting, memory_order_acquire);
    int phase = atomic_load(&watch->phase);
    int64_t since = atomic_load(&watch->since);
    return (struct beat){
        .step = atomic_load(&watch->step),
        .seconds = clock_seconds(clock_now() - since),
        .transfers = atomic_load_explicit(&watch->transfers, memory_order_relaxed),
        .phase = phase,
        .waiting = waiting,
        .dead = watch->dead,
        .closing = closing,
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

static void tell_all(struct watch *watch, const struct beat *beat)
{
    for (int i = 0; i < watch->peer_count; i++) {
        struct peer *peer = &watch->peers[i];
        if (!peer->told)
            watch->link.tell(watch->link.context, peer->rank, beat);
    }
}

/* ---- the end by a verdict ------------------------------------------------------------------- */

static bool all_agreed(const struct watch *watch, const struct verdict *verdict)
{
    for (int i = 0; i < watch->peer_count; i++) {
        const struct peer *peer = &watch->peers[i];
        if (!peer->last.agreed && peer->rank != verdict->rank)
            return false;
    }
    return true;
}

/* Until every survivor has logged the verdict, three ticks at most: a launcher that saw a process
 * die ends the others a second later. Rank 0 spreads it; the others answer, or give those who judge
 * rank 0 for themselves the same time. Who left before still waits for rank 0 to leave. */
static void spread(struct watch *watch, const struct verdict *verdict)
{
    int64_t end = clock_now() + 3 * watch->tick;
    struct beat beat = own_beat(watch, false);
    struct verdict ignored;
    beat.agreed = 1;
    for (int i = 0; i < watch->peer_count; i++)
        watch->peers[i].left = watch->peers[i].told = false;
    if (watch->rank == 0)
        beat.verdict = *verdict;
    for (int64_t now = clock_now(); now < end; now = clock_now()) {
        tell_all(watch, &beat);
        hear_all(watch, now, &ignored); /* moves messages along */
        if (watch->rank == 0 && all_agreed(watch, verdict))
            return;
        clock_sleep(TICK_CONDEMNED);
    }
}

static void condemn(struct watch *watch, const struct verdict *verdict)
{
    char text[160];
    verdict_text(verdict, text, sizeof text);
    watch->link.announce(watch->link.context, text);
    if (watch->link.together)
        spread(watch, verdict);
    watch->link.end(watch->link.context);
}

/* ---- ticks ---------------------------------------------------------------------------------- */

/* True once nobody needs this watch any more: the others left and know that we leave. Rank 0 leaves
 * last, so that whoever heard it leave knows that all did. */
static bool leave(struct watch *watch)
{
    struct beat beat = own_beat(watch, true);
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

static bool judge(struct watch *watch, int64_t now, bool closing, struct verdict *verdict)
{
    if (watch->dead == 0 && watch->link.dead != NULL)
        watch->dead = watch->link.dead(watch->link.context) + 1;
    struct evidence evidence = {
        .rank = watch->rank,
        .own = own_beat(watch, closing),
        .peers = watch->peers,
        .peer_count = watch->peer_count,
        .now = now,
        .held_up = watch->held_up != 0 && now - watch->held_up < watch->silence,
        .closing = closing && watch->link.together ? clock_seconds(now - watch->closing_since) : -1,
        .limits = watch->limits,
    };
    evidence.limits.step = atomic_load(&watch->step_limit);
    return verdict_find(&evidence, verdict);
}

/* If this process itself was held up, its peers' beats are waiting unread. */
static void note_hold_up(struct watch *watch, int64_t now)
{
    if (now - watch->ticked > watch->silence / 2) {
        watch->held_up = now;
        for (int i = 0; i < watch->peer_count; i++)
            watch->peers[i].heard = now;
    }
    watch->ticked = now;
}

/* False: over. */
static bool tick(struct watch *watch, bool closing)
{
    struct verdict verdict = {.kind = VERDICT_NONE};
    int64_t now = clock_now();
    note_hold_up(watch, now);
    hear_all(watch, now, &verdict);
    if (verdict.kind != VERDICT_NONE || judge(watch, now, closing, &verdict)) {
        condemn(watch, &verdict);
        return false;
    }
    if (closing && leave(watch))
        return false;
    struct beat beat = own_beat(watch, closing);
    tell_all(watch, &beat);
    return true;
}

/* Sleeps a tick; true once closing. */
static bool sleep_tick(struct watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    int64_t until = clock_now() + (watch->closing ? TICK_CLOSING : watch->tick);
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

static double limit_of(double seconds, double standard)
{
    if (!(seconds > 0))
        return standard;
    return seconds < 1e8 ? seconds : 1e8;
}

static struct verdict_limits limits_of(const struct fabric_options *options)
{
    return (struct verdict_limits){
        .silence = limit_of(options->heartbeat_timeout, 5),
        .step = limit_of(options->step_timeout, 300),
        .load = limit_of(options->load_timeout, 600),
        .close = limit_of(options->close_timeout, 30),
    };
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
    watch->limits = limits_of(options);
    watch->step_limit = watch->limits.step;
    watch->silence = (int64_t)(watch->limits.silence * (double)CLOCK_SECOND);
    watch->tick = watch->silence / 5 < TICK_MAX ? watch->silence / 5 : TICK_MAX;
    watch->peers = peers;
    watch->peer_count = rank == 0 ? world - 1 : 1;
    watch->ticked = clock_now();
    watch->since = watch->ticked;
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
