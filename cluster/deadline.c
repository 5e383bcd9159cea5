#include "cluster/deadline.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"

struct deadline {
    double seconds;
    const char *what;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t over;
    bool met; /* under lock */
};

static void *deadline_main(void *context)
{
    struct deadline *deadline = context;
    int64_t until = clock_now() + (int64_t)(deadline->seconds * (double)CLOCK_SECOND);
    struct timespec at = {until / CLOCK_SECOND, until % CLOCK_SECOND};
    int timed_out = 0;
    pthread_mutex_lock(&deadline->lock);
    while (timed_out == 0 && !deadline->met)
        timed_out = pthread_cond_timedwait(&deadline->over, &deadline->lock, &at);
    if (!deadline->met) {
        log_error("the ranks did not %s within %.1f s", deadline->what, deadline->seconds);
        _exit(1); /* the launcher ends the others */
    }
    pthread_mutex_unlock(&deadline->lock);
    return NULL;
}

static void deadline_free(struct deadline *deadline)
{
    pthread_mutex_destroy(&deadline->lock);
    pthread_cond_destroy(&deadline->over);
    free(deadline);
}

struct deadline *deadline_begin(double seconds, const char *what)
{
    struct deadline *deadline = calloc(1, sizeof *deadline);
    if (deadline == NULL)
        return NULL;
    deadline->seconds = seconds;
    deadline->what = what;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&deadline->over, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&deadline->lock, NULL);
    if (pthread_create(&deadline->thread, NULL, deadline_main, deadline) == 0)
        return deadline;
    deadline_free(deadline);
    return NULL;
}

void deadline_end(struct deadline *deadline)
{
    if (deadline == NULL)
        return;
    pthread_mutex_lock(&deadline->lock);
    deadline->met = true;
    pthread_cond_signal(&deadline->over);
    pthread_mutex_unlock(&deadline->lock);
    pthread_join(deadline->thread, NULL);
    deadline_free(deadline);
}
