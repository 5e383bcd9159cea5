/* The watch's beats over MPI, and the processes of this host over pidfds. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cluster/fabric_mpi.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

enum { BEAT_TAG = 0 };

static bool mpi_tell(void *context, int peer, const struct beat *beat)
{
    struct fabric_mpi *end = context;
    struct mpi_line *line = &end->lines[peer];
    int done = 1;
    if (line->sending != MPI_REQUEST_NULL)
        MPI_Test(&line->sending, &done, MPI_STATUS_IGNORE);
    if (!done)
        return false;
    line->out = *beat;
    return MPI_Isend(&line->out, sizeof line->out, MPI_BYTE, peer, BEAT_TAG, end->beats,
                     &line->sending) == MPI_SUCCESS;
}

static bool mpi_hear(void *context, int peer, struct beat *beat)
{
    struct fabric_mpi *end = context;
    struct mpi_line *line = &end->lines[peer];
    MPI_Status status;
    int done = 0, length = 0;
    if (line->hearing == MPI_REQUEST_NULL)
        MPI_Irecv(&line->in, sizeof line->in, MPI_BYTE, peer, BEAT_TAG, end->beats, &line->hearing);
    if (MPI_Test(&line->hearing, &done, &status) != MPI_SUCCESS || !done)
        return false;
    MPI_Get_count(&status, MPI_BYTE, &length);
    if (length != (int)sizeof line->in)
        return false;
    *beat = line->in;
    return true;
}

static int mpi_dead(void *context)
{
    struct fabric_mpi *end = context;
    for (int rank = 0; rank < end->core.world; rank++) {
        struct pollfd fd = {.fd = end->pidfds[rank], .events = POLLIN};
        if (fd.fd >= 0 && poll(&fd, 1, 0) == 1 && (fd.revents & POLLIN))
            return rank;
    }
    return -1;
}

static void watch_announce(void *context, const char *why)
{
    struct fabric_mpi *end = context;
    end->condemned = mpi_announce(end, why);
}

static void watch_end(void *context)
{
    struct fabric_mpi *end = context;
    if (end->condemned)
        mpi_end_all(status_exit_code(STATUS_PEER_LOST));
    mpi_await_end();
}

/* Two ranks whose `host` is equal see each other's process by its id. */
struct whereabouts {
    char host[64];      /* which boot of which kernel */
    uint64_t processes; /* which process namespace */
    int64_t pid;
};

static struct whereabouts whereabouts_own(void)
{
    struct whereabouts here = {.pid = getpid()};
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file != NULL) {
        if (fgets(here.host, sizeof here.host, file) == NULL)
            here.host[0] = '\0';
        fclose(file);
    }
    struct stat namespace;
    if (stat("/proc/self/ns/pid", &namespace) == 0)
        here.processes = namespace.st_ino;
    return here;
}

/* Where pidfds are not to be had, only silence tells of a death. */
static enum status find_neighbours(struct fabric_mpi *end, struct error *error)
{
    int world = end->core.world;
    struct whereabouts here = whereabouts_own();
    struct whereabouts *all = calloc((size_t)world, sizeof *all);
    if (all == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for the watch");
    enum status status = mpi_check(
        MPI_Allgather(&here, sizeof here, MPI_BYTE, all, sizeof here, MPI_BYTE, end->beats),
        "meeting the other ranks");
    if (status != STATUS_OK)
        error_set(error, status, "the ranks cannot connect to each other");
    for (int rank = 0; rank < world && status == STATUS_OK; rank++) {
        bool near = here.host[0] != '\0' && here.processes != 0 &&
                    memcmp(all[rank].host, here.host, sizeof here.host) == 0 &&
                    all[rank].processes == here.processes;
        if (near && rank != end->core.door.rank && all[rank].pid > 0)
            end->pidfds[rank] = (int)syscall(SYS_pidfd_open, (pid_t)all[rank].pid, 0);
    }
    free(all);
    return status;
}

enum status mpi_watch_open(struct fabric_mpi *end, const struct fabric_options *options,
                           struct error *error)
{
    enum status status = find_neighbours(end, error);
    if (status != STATUS_OK)
        return status;
    struct watch_link link = {
        .context = end,
        .tell = mpi_tell,
        .hear = mpi_hear,
        .dead = mpi_dead,
        .announce = watch_announce,
        .end = watch_end,
        .together = true,
    };
    return watch_open(options, end->core.door.rank, end->core.world, &link, &end->core.watch,
                      error);
}

/* Every message was heard: each peer's last one is its leaving beat. */
static void finish_lines(struct fabric_mpi *end)
{
    int64_t until = clock_now() + CLOCK_SECOND;
    for (int rank = 0; rank < end->core.world; rank++) {
        struct mpi_line *line = &end->lines[rank];
        int done = line->sending == MPI_REQUEST_NULL;
        while (!done && clock_now() < until) {
            MPI_Test(&line->sending, &done, MPI_STATUS_IGNORE);
            if (!done)
                clock_sleep(CLOCK_SECOND / 10000);
        }
        if (line->hearing != MPI_REQUEST_NULL) {
            MPI_Cancel(&line->hearing);
            MPI_Request_free(&line->hearing);
        }
    }
}

void mpi_watch_close(struct fabric_mpi *end)
{
    if (atomic_load(end->core.aborted))
        mpi_await_end();
    watch_close(end->core.watch);
    finish_lines(end);
    for (int rank = 0; rank < end->core.world; rank++)
        if (end->pidfds[rank] >= 0)
            close(end->pidfds[rank]);
}
