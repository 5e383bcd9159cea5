/* Monotonic time in nanoseconds: deadlines, heartbeats and durations. The wall clock is for log
 * lines only. */
#ifndef JETD_BASE_CLOCK_H
#define JETD_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define CLOCK_SECOND INT64_C(1000000000)
#define CLOCK_NEVER INT64_MAX

static inline int64_t clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * CLOCK_SECOND + now.tv_nsec;
}

static inline double clock_seconds(int64_t nanoseconds)
{
    return (double)nanoseconds * 1e-9;
}

static inline void clock_sleep(int64_t nanoseconds)
{
    struct timespec wait = {.tv_sec = nanoseconds / CLOCK_SECOND,
                            .tv_nsec = nanoseconds % CLOCK_SECOND};
    nanosleep(&wait, NULL);
}

#endif
