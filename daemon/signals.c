#include "daemon/signals.h"

#include <signal.h>
#include <time.h>

static sigset_t set_of(const int *numbers, int count)
{
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < count; i++)
        sigaddset(&set, numbers[i]);
    return set;
}

static const int ours[] = {SIGTERM, SIGINT, SIGUSR1};

void signals_block(void)
{
    sigset_t set = set_of(ours, 3);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* One that waits is delivered at once, and does what it does by default. */
void signals_obey(void)
{
    sigset_t set = set_of(ours, 2), before;
    pthread_sigmask(SIG_UNBLOCK, &set, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int signals_next(double seconds)
{
    sigset_t set = set_of(ours, 3);
    struct timespec wait = {.tv_nsec = (long)(seconds * 1e9)};
    int number = sigtimedwait(&set, NULL, &wait);
    return number > 0 ? number : 0;
}
