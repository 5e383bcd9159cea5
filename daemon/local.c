#include "daemon/local.h"

#include <pthread.h>
#include <stdlib.h>

#include "daemon/base/log.h"
#include "daemon/capacity.h"
#include "daemon/coordinator.h"
#include "daemon/executor.h"
#include "daemon/rank.h"

struct worker {
    const struct settings *settings;
    struct fabric *fabric;
    pthread_t thread;
};

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct rank rank;
    struct error error = {0};
    int number = worker->fabric->rank;
    enum status status = rank_open(worker->settings, worker->fabric, &rank, &error);
    if (status == STATUS_OK) {
        status = executor_serve(rank.stage, rank.fabric, &rank.shape, &error);
        rank_close(&rank);
    }
    /* Aborted: another rank failed first and says why. */
    if (status != STATUS_OK && status != STATUS_ABORTED)
        log_error("rank %d: %s: %s", number, status_name(status), error.text);
    return NULL;
}

static enum status run_first(const struct settings *settings, struct fabric *fabric,
                             struct error *error)
{
    struct rank rank;
    enum status status = rank_open(settings, fabric, &rank, error);
    if (status != STATUS_OK)
        return status;
    status = coordinator_run(settings, &rank, error);
    rank_close(&rank);
    return status;
}

enum status local_run(const struct settings *settings, struct error *error)
{
    struct fabric_options options = rank_fabric_options(settings);
    int tensor = settings->tensor > 0 ? settings->tensor : 1;
    int64_t ranks = (int64_t)tensor * settings->pipeline * settings->context;
    if (ranks > 64)
        return error_set(error, STATUS_CONFIG, "--fabric threads: %lld ranks are more than 64",
                         (long long)ranks);
    enum status status = capacity_mesh(settings, (int)ranks, &options.mesh, error);
    if (status != STATUS_OK)
        return status;
    struct fabric *fabrics[64];
    struct worker workers[64];
    status = fabric_open_threads(&options, fabrics, error);
    if (status != STATUS_OK)
        return status;

    int started = 1;
    for (; started < ranks; started++) {
        workers[started] = (struct worker){.settings = settings, .fabric = fabrics[started]};
        if (pthread_create(&workers[started].thread, NULL, worker_main, &workers[started]) != 0)
            break;
    }
    if (started == ranks) {
        status = run_first(settings, fabrics[0], error);
    } else {
        status = error_set(error, STATUS_NO_MEMORY, "no thread for rank %d", started);
        fabrics[0]->ops->abort(fabrics[0], status, error->text);
        fabric_close(fabrics[0]);
    }
    for (int i = 1; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    for (int i = started; i < ranks; i++)
        fabric_close(fabrics[i]);
    return status;
}
