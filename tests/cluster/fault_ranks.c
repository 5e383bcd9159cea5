/* Ranks that run steps until one of them fails in the way the first argument names.
 *   clean     no fault; all close                   stop R    rank R stops itself (SIGSTOP)
 *   kill R    rank R kills itself                   exit R    rank R exits without closing
 *   slow R    rank R stays in its step              abort R   rank R aborts
 *   between R rank R does not take the next step    linger R  rank R does not close
 *   absent R  rank R does not open                  mesh R    rank R asks for another mesh
 *   load R    rank R does not end loading           creep R   the same, but it makes progress
 *   idle      followers await a step; little CPU is used
 * A third argument `nccl` sums on GPUs, in a recording: what waits for a lost rank is then a kernel
 * of a CUDA graph. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cluster/cluster.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "tests/cluster/nccl_device.h"

enum { FAULT_STEP = 7, CLEAN_STEPS = 20, FOREVER = 60 };

static bool is(const char *fault, const char *name)
{
    return strcmp(fault, name) == 0;
}

static void fail(struct fabric *fabric, const char *fault)
{
    if (is(fault, "stop"))
        raise(SIGSTOP);
    else if (is(fault, "kill"))
        raise(SIGKILL);
    else if (is(fault, "exit"))
        _exit(3);
    else if (is(fault, "slow"))
        clock_sleep(FOREVER * CLOCK_SECOND);
    else if (is(fault, "abort"))
        fabric->ops->abort(fabric, STATUS_INTERNAL, "rank asked for the end");
}

/* Device memory of COUNT numbers, and their sum as decode steps hold it, recorded; all zero:
 * numbers lie on the host. */
static struct {
    struct fabric_memory memory;
    void *data;
    struct recording *sum;
} gpu;

enum { COUNT = 100 };

static enum status sum(struct fabric *fabric)
{
    float data[COUNT] = {0};
    if (gpu.data == NULL)
        return fabric->ops->all_reduce(fabric, AXIS_WORLD, data, COUNT, DTYPE_F32);
    enum status status = gpu.memory.backend->replay(gpu.memory.device, gpu.sum);
    fabric_wait_begin(fabric);
    if (status == STATUS_OK)
        status = gpu.memory.backend->synchronize(gpu.memory.device);
    fabric_wait_end(fabric);
    return status;
}

static enum status sum_record(struct fabric *fabric)
{
    const struct backend *backend = gpu.memory.backend;
    enum status status = fabric->ops->all_reduce(fabric, AXIS_WORLD, gpu.data, COUNT, DTYPE_F32);
    if (status == STATUS_OK)
        status = backend->synchronize(gpu.memory.device);
    if (status == STATUS_OK)
        status = backend->record_begin(gpu.memory.device);
    if (status != STATUS_OK)
        return status;
    status = fabric->ops->all_reduce(fabric, AXIS_WORLD, gpu.data, COUNT, DTYPE_F32);
    enum status ended = backend->record_end(gpu.memory.device, &gpu.sum);
    return status != STATUS_OK ? status : ended;
}

static enum status gpu_open(struct fabric **fabric, struct error *error)
{
    struct device_options options = {.max_tokens = 1, .max_sequences = 1};
    bool shared;
    gpu.memory.backend = nccl_device(&options.ordinal, &shared);
    if (gpu.memory.backend == NULL)
        return error_set(error, STATUS_DEVICE, "no GPU");
    enum status status = gpu.memory.backend->open(&options, &gpu.memory.device, error);
    if (status == STATUS_OK)
        status = gpu.memory.backend->allocate(gpu.memory.device, COUNT * sizeof(float), &gpu.data);
    if (status == STATUS_OK)
        status = fabric_open_nccl(*fabric, &gpu.memory, fabric, error);
    return status == STATUS_OK ? sum_record(*fabric) : status;
}

/* As long as a large step: rank 0's send ends when every rank takes it. */
static enum status take_step(struct fabric *fabric, uint64_t step)
{
    static uint64_t bytes[1 << 17];
    size_t length = sizeof bytes;
    enum status status = STATUS_OK;
    if (fabric->rank != 0)
        status = fabric->ops->await(fabric, bytes, length, &length);
    fabric_step_begin(fabric, step);
    if (fabric->rank != 0)
        return status != STATUS_OK || bytes[0] == step ? status : STATUS_PEER_MISMATCH;
    bytes[0] = step;
    return fabric->ops->publish(fabric, bytes, length);
}

static enum status run_steps(struct fabric *fabric, const char *fault, int culprit)
{
    enum status status = STATUS_OK;
    for (uint64_t step = 1; step <= CLEAN_STEPS && status == STATUS_OK; step++) {
        if (step == FAULT_STEP && fabric->rank == culprit && is(fault, "between"))
            clock_sleep(FOREVER * CLOCK_SECOND);
        status = take_step(fabric, step);
        if (status != STATUS_OK)
            return status;
        if (step == FAULT_STEP) /* so that every rank's beat has told of this step */
            clock_sleep(CLOCK_SECOND / 2);
        if (step == FAULT_STEP && fabric->rank == culprit)
            fail(fabric, fault);
        status = sum(fabric);
        fabric_step_end(fabric);
    }
    return status;
}

/* All load and meet; one takes longer than load_timeout, with progress or without. */
static enum status run_load(struct fabric *fabric, const char *fault, int culprit)
{
    fabric_load_mark(fabric);
    int turns = fabric->rank != culprit ? 0 : is(fault, "creep") ? 16 : 4 * FOREVER;
    for (int turn = 0; turn < turns; turn++) {
        clock_sleep(CLOCK_SECOND / 4);
        if (is(fault, "creep"))
            fabric_load_mark(fabric);
    }
    enum status status = fabric->ops->barrier(fabric);
    fabric_load_end(fabric);
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

static enum status run(struct fabric *fabric, const char *fault, int culprit)
{
    if (is(fault, "idle"))
        return run_idle(fabric);
    if (is(fault, "load") || is(fault, "creep"))
        return run_load(fabric, fault, culprit);
    return run_steps(fabric, fault, culprit);
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : "clean";
    int culprit = argc > 2 ? atoi(argv[2]) : -1, size, rank, local;
    launcher_world(&size, &rank, &local);
    log_configure(LOG_INFO, rank, false);
    struct fabric_options options = {
        .mesh = {size, 1, 1},
        .heartbeat_timeout = 2,
        .step_timeout = 3,
        .load_timeout = 2,
        .close_timeout = 3,
        .open_timeout = is(fault, "absent") ? 2 : 30,
    };
    if (rank == culprit && is(fault, "absent"))
        clock_sleep(FOREVER * CLOCK_SECOND);
    if (rank == culprit && is(fault, "mesh"))
        options.mesh.pipeline = 2;
    struct fabric *fabric;
    struct error error = {.status = STATUS_OK};
    enum status status = fabric_open_mpi(&options, &fabric, &error);
    if (status == STATUS_OK && argc > 3 && is(argv[3], "nccl"))
        status = gpu_open(&fabric, &error);
    if (status != STATUS_OK) {
        log_error("%s", error.text);
        return status_exit_code(status);
    }
    char host[64] = "?";
    gethostname(host, sizeof host);
    fprintf(stderr, "rank %d of %d on %s\n", rank, size, host);
    status = run(fabric, fault, culprit);
    if (status != STATUS_OK)
        fabric->ops->abort(fabric, status, status_name(status));
    if (rank == culprit && is(fault, "linger"))
        clock_sleep(FOREVER * CLOCK_SECOND);
    if (gpu.sum != NULL)
        gpu.memory.backend->recording_free(gpu.memory.device, gpu.sum);
    fabric_close(fabric);
    return 0;
}
