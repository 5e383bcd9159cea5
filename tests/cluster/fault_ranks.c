/* Ranks that run steps until one of them fails in the way the first argument names.
 *   clean   no fault; all close                     stop R   rank R stops itself (SIGSTOP)
 *   kill R  rank R kills itself                     exit R   rank R exits without closing
 *   slow R  rank R stays in its step                abort R  rank R aborts
 *   idle    followers await a step; little CPU is used
 * A third argument `nccl` sums on GPUs, one a rank: what waits for a lost rank is then a kernel. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cluster/cluster.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

enum { FAULT_STEP = 7, CLEAN_STEPS = 20 };

static void fail(struct fabric *fabric, const char *fault)
{
    if (strcmp(fault, "stop") == 0)
        raise(SIGSTOP);
    else if (strcmp(fault, "kill") == 0)
        raise(SIGKILL);
    else if (strcmp(fault, "exit") == 0)
        _exit(3);
    else if (strcmp(fault, "slow") == 0)
        clock_sleep(60 * CLOCK_SECOND);
    else if (strcmp(fault, "abort") == 0)
        fabric->ops->abort(fabric, "rank asked for the end");
}

/* Device memory of COUNT numbers; all zero: numbers lie on the host. */
static struct {
    struct fabric_memory memory;
    void *data;
} gpu;

enum { COUNT = 100 };

static enum status sum(struct fabric *fabric)
{
    float data[COUNT] = {0};
    if (gpu.data == NULL)
        return fabric->ops->all_reduce(fabric, AXIS_WORLD, data, COUNT, DTYPE_F32);
    enum status status = fabric->ops->all_reduce(fabric, AXIS_WORLD, gpu.data, COUNT, DTYPE_F32);
    return status == STATUS_OK ? gpu.memory.backend->synchronize(gpu.memory.device) : status;
}

static enum status gpu_open(int local, struct fabric **fabric, struct error *error)
{
    struct device_options options = {.ordinal = local, .max_tokens = 1, .max_sequences = 1};
    gpu.memory.backend = backend_find("cuda");
    enum status status = gpu.memory.backend->open(&options, &gpu.memory.device, error);
    if (status == STATUS_OK)
        status = gpu.memory.backend->allocate(gpu.memory.device, COUNT * sizeof(float), &gpu.data);
    return status == STATUS_OK ? fabric_open_nccl(*fabric, &gpu.memory, fabric, error) : status;
}

static enum status run_steps(struct fabric *fabric, const char *fault, int culprit)
{
    enum status status = STATUS_OK;
    for (uint64_t step = 1; step <= CLEAN_STEPS && status == STATUS_OK; step++) {
        uint64_t number = step;
        size_t length = sizeof number;
        status = fabric->rank == 0 ? fabric->ops->publish(fabric, &number, length)
                                   : fabric->ops->await(fabric, &number, length, &length);
        if (status != STATUS_OK || number != step)
            return STATUS_PEER_MISMATCH;
        fabric_step_begin(fabric, step);
        if (step == FAULT_STEP) /* so that every rank's beat has told of this step */
            clock_sleep(CLOCK_SECOND / 2);
        if (step == FAULT_STEP && fabric->rank == culprit)
            fail(fabric, fault);
        status = sum(fabric);
        fabric_step_end(fabric);
    }
    return status;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* The share of a core that a rank takes while it waits for a step. */
static enum status run_idle(struct fabric *fabric)
{
    char byte = 0;
    size_t length;
    double before = cpu_seconds();
    int64_t start = clock_now();
    enum status status;
    if (fabric->rank == 0) {
        clock_sleep(2 * CLOCK_SECOND);
        status = fabric->ops->publish(fabric, &byte, 1);
    } else {
        status = fabric->ops->await(fabric, &byte, 1, &length);
    }
    double share = (cpu_seconds() - before) / clock_seconds(clock_now() - start);
    fprintf(stderr, "rank %d idle: %.1f %% of a core\n", fabric->rank, share * 100);
    return share < 0.2 ? status : STATUS_INTERNAL;
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : "clean";
    int culprit = argc > 2 ? atoi(argv[2]) : -1, size, rank, local;
    launcher_world(&size, &rank, &local);
    log_configure(LOG_INFO, rank, false);
    struct fabric_options options = {
        .mesh = {size, 1, 1}, .heartbeat_timeout = 1, .step_timeout = 3};
    struct fabric *fabric;
    struct error error = {.status = STATUS_OK};
    enum status status = fabric_open_mpi(&options, &fabric, &error);
    if (status == STATUS_OK && argc > 3 && strcmp(argv[3], "nccl") == 0)
        status = gpu_open(local, &fabric, &error);
    if (status != STATUS_OK) {
        log_error("%s", error.text);
        return 1;
    }
    char host[64] = "?";
    gethostname(host, sizeof host);
    fprintf(stderr, "rank %d of %d on %s\n", rank, size, host);
    status = strcmp(fault, "idle") == 0 ? run_idle(fabric) : run_steps(fabric, fault, culprit);
    if (status != STATUS_OK)
        fabric->ops->abort(fabric, status_name(status));
    fabric_close(fabric);
    return 0;
}
