#include "kernels/cpu/team.h"

#include <pthread.h>
#include <stdlib.h>

struct team {
    int threads; /* the caller's included */
    pthread_t *workers;
    int started;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t begun, done;
    unsigned round; /* grows by one an operation */
    int busy;       /* workers that have not finished this round */
    bool ending;
    team_work *work;
    const void *op;
    int units, grain;
};

struct member {
    struct team *team;
    int index; /* 1 ..; the caller is 0 */
};

/* The index-th of `threads` runs. */
static void work_share(const struct team *team, int index)
{
    int grains = (team->units + team->grain - 1) / team->grain;
    int begin = (int)((long long)grains * index / team->threads) * team->grain;
    int end = (int)((long long)grains * (index + 1) / team->threads) * team->grain;

    if (end > team->units)
        end = team->units;
    if (begin < end)
        team->work(team->op, begin, end);
}

static void *worker_main(void *argument)
{
    struct member member = *(struct member *)argument;
    struct team *team = member.team;
    unsigned seen = 0;

    free(argument);
    pthread_mutex_lock(&team->lock);
    for (;;) {
        while (team->round == seen && !team->ending)
            pthread_cond_wait(&team->begun, &team->lock);
        if (team->ending)
            break;
        seen = team->round;
        pthread_mutex_unlock(&team->lock);
        work_share(team, member.index);
        pthread_mutex_lock(&team->lock);
        if (--team->busy == 0)
            pthread_cond_signal(&team->done);
    }
    pthread_mutex_unlock(&team->lock);
    return NULL;
}

static enum status start_worker(struct team *team, int index)
{
    struct member *member = malloc(sizeof(*member));

    if (member == NULL)
        return STATUS_NO_MEMORY;
    *member = (struct member){team, index};
    if (pthread_create(&team->workers[index - 1], NULL, worker_main, member) != 0) {
        free(member);
        return STATUS_NO_MEMORY;
    }
    team->started = index;
    return STATUS_OK;
}

enum status team_create(int threads, struct team **out, struct error *error)
{
    struct team *team = calloc(1, sizeof(*team));

    if (team == NULL)
        return error_set(error, STATUS_NO_MEMORY, "cpu: no memory for %d threads", threads);
    team->threads = threads;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->begun, NULL);
    pthread_cond_init(&team->done, NULL);
    team->workers = calloc((size_t)threads - 1, sizeof(*team->workers));
    if (team->workers == NULL)
        goto fail;
    for (int i = 1; i < threads; i++)
        if (start_worker(team, i) != STATUS_OK)
            goto fail;
    *out = team;
    return STATUS_OK;
fail:
    team_destroy(team);
    return error_set(error, STATUS_NO_MEMORY, "cpu: cannot start %d threads", threads);
}

void team_destroy(struct team *team)
{
    if (team == NULL)
        return;
    pthread_mutex_lock(&team->lock);
    team->ending = true;
    pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->started; i++)
        pthread_join(team->workers[i], NULL);
    pthread_cond_destroy(&team->done);
    pthread_cond_destroy(&team->begun);
    pthread_mutex_destroy(&team->lock);
    free(team->workers);
    free(team);
}

void team_run(struct team *team, team_work *work, const void *op, int units, int grain)
{
    if (team == NULL || units <= grain) {
        if (units > 0)
            work(op, 0, units);
        return;
    }
    pthread_mutex_lock(&team->lock);
    team->work = work;
    team->op = op;
    team->units = units;
    team->grain = grain;
    team->busy = team->threads - 1;
    team->round++;
    pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    work_share(team, 0);
    pthread_mutex_lock(&team->lock);
    while (team->busy > 0)
        pthread_cond_wait(&team->done, &team->lock);
    pthread_mutex_unlock(&team->lock);
}
