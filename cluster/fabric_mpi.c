/* Ranks are processes that mpirun or srun started. MPI's blocking calls spin a core, so nothing
 * between open and close blocks in MPI: requests are tested, with a back-off that first yields and
 * then sleeps. What blocks in open and close has a deadline. */
#include "cluster/fabric_mpi.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/deadline.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

/* MPI starts once in a process and ends with the last fabric. */
static struct {
    pthread_mutex_t lock;
    int open;
    bool ours;
} library = {PTHREAD_MUTEX_INITIALIZER, 0, false};

enum status mpi_check(int code, const char *what)
{
    if (code == MPI_SUCCESS)
        return STATUS_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0, class = MPI_ERR_OTHER;
    MPI_Error_class(code, &class);
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
        length = 0;
    log_error("%s: %.*s", what, length, text);
    return class == MPI_ERR_TRUNCATE ? STATUS_PEER_MISMATCH : STATUS_PEER_LOST;
}

/* ---- transport ----------------------------------------------------------------------------- */

/* How a wait goes on after a look in vain. Within a step a peer is microseconds behind and each
 * sleep would show in the step's time; between steps nothing may come for hours. */
struct patience {
    int64_t since, sleep, sleep_max, spin;
};

static struct patience patience_begin(bool idle)
{
    enum { MICROSECOND = 1000 };
    return (struct patience){
        .since = clock_now(),
        .sleep = 20 * MICROSECOND,
        .sleep_max = (idle ? 1000 : 200) * MICROSECOND,
        .spin = (idle ? 50 : 1000) * MICROSECOND,
    };
}

static void patience_lose(struct patience *patience)
{
    if (clock_now() - patience->since < patience->spin) {
        sched_yield();
        return;
    }
    clock_sleep(patience->sleep);
    patience->sleep += patience->sleep / 2;
    if (patience->sleep > patience->sleep_max)
        patience->sleep = patience->sleep_max;
}

/* Names the failed one where MPI says only that some failed. */
static enum status check_all(struct fabric_mpi *end, int code, int count, const char *what)
{
    for (int i = 0; i < count && code == MPI_ERR_IN_STATUS; i++) {
        int one = end->statuses[i].MPI_ERROR;
        if (one != MPI_SUCCESS && one != MPI_ERR_PENDING)
            code = one;
    }
    return mpi_check(code, what);
}

static enum status wait_all(struct fabric_mpi *end, int count, bool idle)
{
    struct patience patience = patience_begin(idle);
    for (;;) {
        int done = 0;
        int code = MPI_Testall(count, end->requests, &done, end->statuses);
        if (code != MPI_SUCCESS)
            return check_all(end, code, count, "exchange between ranks");
        if (done)
            return STATUS_OK;
        if (atomic_load(end->core.aborted))
            return STATUS_ABORTED;
        patience_lose(&patience);
    }
}

static enum status mismatch(int peer, int tag, int length, size_t wanted)
{
    log_error("rank %d sent %d bytes (tag %d) where %zu were expected", peer, length, tag, wanted);
    return STATUS_PEER_MISMATCH;
}

static enum status mpi_exchange(struct fabric_core *core, int tag, const struct transfer *sends,
                                int send_count, const struct transfer *receives, int receive_count)
{
    struct fabric_mpi *end = (struct fabric_mpi *)core;
    if (atomic_load(core->aborted))
        return STATUS_ABORTED;
    int count = 0, code = MPI_SUCCESS;
    for (int i = 0; i < receive_count && code == MPI_SUCCESS; i++)
        code = MPI_Irecv(receives[i].data, (int)receives[i].bytes, MPI_BYTE, receives[i].peer, tag,
                         end->bytes, &end->requests[count++]);
    for (int i = 0; i < send_count && code == MPI_SUCCESS; i++)
        code = MPI_Isend(sends[i].data, (int)sends[i].bytes, MPI_BYTE, sends[i].peer, tag,
                         end->bytes, &end->requests[count++]);
    if (code != MPI_SUCCESS)
        return mpi_check(code, "exchange between ranks");
    enum status status = wait_all(end, count, false);
    for (int i = 0; i < receive_count && status == STATUS_OK; i++) {
        int length = 0;
        MPI_Get_count(&end->statuses[i], MPI_BYTE, &length);
        if ((size_t)length != receives[i].bytes)
            status = mismatch(receives[i].peer, tag, length, receives[i].bytes);
    }
    return status;
}

static enum status wait_message(struct fabric_mpi *end, int tag, int peer, MPI_Message *message,
                                int *length)
{
    struct patience patience = patience_begin(true);
    for (;;) {
        int found = 0;
        MPI_Status status;
        int code = MPI_Improbe(peer, tag, end->bytes, &found, message, &status);
        if (code != MPI_SUCCESS)
            return mpi_check(code, "waiting for a step");
        if (found)
            return mpi_check(MPI_Get_count(&status, MPI_BYTE, length), "waiting for a step");
        if (atomic_load(end->core.aborted))
            return STATUS_ABORTED;
        patience_lose(&patience);
    }
}

static enum status mpi_take(struct fabric_core *core, int tag, int peer, void *bytes, size_t room,
                            size_t *result)
{
    struct fabric_mpi *end = (struct fabric_mpi *)core;
    MPI_Message message;
    int length = 0;
    enum status status = wait_message(end, tag, peer, &message, &length);
    if (status != STATUS_OK)
        return status;
    if (length < 0 || (size_t)length > room)
        return mismatch(peer, tag, length, room);
    status = mpi_check(MPI_Imrecv(bytes, length, MPI_BYTE, &message, &end->requests[0]),
                       "receiving a step");
    if (status == STATUS_OK)
        status = wait_all(end, 1, false);
    if (status == STATUS_OK)
        *result = (size_t)length;
    return status;
}

static const struct transport mpi_transport = {mpi_exchange, mpi_take};

/* ---- the end ------------------------------------------------------------------------------- */

enum { END_SECONDS = 5 };

bool mpi_announce(struct fabric_mpi *end, const char *why)
{
    bool first = !atomic_exchange(end->core.aborted, true);
    if (first)
        log_error("%s", why);
    return first;
}

_Noreturn void mpi_end_all(int exit_code)
{
    alarm(END_SECONDS); /* ends this process where MPI_Abort hangs */
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

_Noreturn void mpi_await_end(void)
{
    clock_sleep(END_SECONDS * CLOCK_SECOND);
    _exit(1);
}

static void mpi_abort(struct fabric *fabric, enum status status, const char *why)
{
    if (mpi_announce((struct fabric_mpi *)fabric, why))
        mpi_end_all(status_exit_code(status));
    mpi_await_end();
}

static enum status library_start(struct error *error)
{
    enum status status = STATUS_OK;
    int started = 0, provided = MPI_THREAD_SINGLE;
    pthread_mutex_lock(&library.lock);
    MPI_Initialized(&started);
    if (!started) {
        /* Containers forbid reading another process's memory, and MPI would notice too late. */
        setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
        status =
            mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "starting MPI");
        library.ours = status == STATUS_OK;
    } else {
        MPI_Query_thread(&provided);
    }
    if (status != STATUS_OK)
        error_set(error, status, "MPI does not start");
    else if (provided < MPI_THREAD_MULTIPLE)
        status = error_set(error, STATUS_CONFIG, "this MPI does not allow several threads");
    library.open++;
    pthread_mutex_unlock(&library.lock);
    return status;
}

static void library_stop(void)
{
    pthread_mutex_lock(&library.lock);
    if (--library.open == 0 && library.ours)
        MPI_Finalize();
    pthread_mutex_unlock(&library.lock);
}

static enum status memory_take(struct fabric_mpi *end, struct error *error)
{
    size_t world = (size_t)end->core.world;
    end->requests = calloc(2 * world, sizeof *end->requests);
    end->statuses = calloc(2 * world, sizeof *end->statuses);
    end->lines = calloc(world, sizeof *end->lines);
    end->pidfds = calloc(world, sizeof *end->pidfds);
    if (end->requests == NULL || end->statuses == NULL || end->lines == NULL || end->pidfds == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric of %d ranks",
                         end->core.world);
    for (size_t i = 0; i < world; i++) {
        end->lines[i].sending = end->lines[i].hearing = MPI_REQUEST_NULL;
        end->pidfds[i] = -1;
    }
    return STATUS_OK;
}

static void memory_give(struct fabric_mpi *end)
{
    free(end->pidfds);
    free(end->lines);
    free(end->statuses);
    free(end->requests);
    fabric_core_close(&end->core);
    free(end);
}

static enum status communicators_open(struct fabric_mpi *end, struct error *error)
{
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    enum status status = mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &end->bytes), "MPI_Comm_dup");
    if (status == STATUS_OK)
        status = mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &end->beats), "MPI_Comm_dup");
    if (status != STATUS_OK)
        error_set(error, status, "the ranks cannot connect to each other");
    return status;
}

static void communicators_close(struct fabric_mpi *end)
{
    if (end->beats != MPI_COMM_NULL)
        MPI_Comm_free(&end->beats);
    if (end->bytes != MPI_COMM_NULL)
        MPI_Comm_free(&end->bytes);
}

static void mpi_close(struct fabric *fabric)
{
    struct fabric_mpi *end = (struct fabric_mpi *)fabric;
    mpi_watch_close(end); /* all ranks come here, or the watch ends all */
    struct deadline *deadline = deadline_begin(end->close_timeout, "part");
    communicators_close(end);
    memory_give(end);
    library_stop();
    deadline_end(deadline);
}

static const struct fabric_ops mpi_ops = {
    .name = "mpi",
    .close = mpi_close,
    COLLECTIVE_OPS,
    .abort = mpi_abort,
};

static enum status world_check(const struct fabric_options *options, int *rank, struct error *error)
{
    int size = 0, wanted = mesh_size(options->mesh);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, rank);
    if (size == wanted || wanted == 0)
        return STATUS_OK;
    struct mesh mesh = options->mesh;
    return error_set(error, STATUS_CONFIG,
                     "the launcher started %d rank%s, but tensor %d x context %d x pipeline %d "
                     "needs %d",
                     size, size == 1 ? "" : "s", mesh.tensor, mesh.context, mesh.pipeline, wanted);
}

static enum status end_open(struct fabric_mpi *end, const struct fabric_options *options,
                            struct error *error)
{
    int rank = 0;
    end->bytes = end->beats = MPI_COMM_NULL;
    end->close_timeout = options->close_timeout > 0 ? options->close_timeout : 30;
    enum status status = library_start(error);
    if (status == STATUS_OK)
        status = world_check(options, &rank, error);
    if (status == STATUS_OK)
        status = fabric_core_open(&end->core, options, rank, &mpi_ops, &mpi_transport, error);
    if (status == STATUS_OK)
        status = memory_take(end, error);
    if (status == STATUS_OK)
        status = communicators_open(end, error);
    if (status == STATUS_OK)
        status = mpi_watch_open(end, options, error);
    return status;
}

/* The other ranks are, or soon will be, in a collective that this one does not come to. */
static void end_others(enum status status, const struct error *error)
{
    int started = 0, size = 1;
    MPI_Initialized(&started);
    if (started)
        MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size == 1)
        return;
    log_error("%s", error->text);
    mpi_end_all(status_exit_code(status));
}

enum status fabric_open_mpi(const struct fabric_options *options, struct fabric **fabric,
                            struct error *error)
{
    double seconds = options->open_timeout > 0 ? options->open_timeout : 120;
    struct deadline *deadline = deadline_begin(seconds, "meet");
    struct fabric_mpi *end = calloc(1, sizeof *end);
    if (deadline == NULL || end == NULL) {
        deadline_end(deadline);
        free(end);
        return error_set(error, STATUS_NO_MEMORY, "no memory for a fabric");
    }
    enum status status = end_open(end, options, error);
    deadline_end(deadline);
    if (status == STATUS_OK) {
        *fabric = &end->core.door;
        return STATUS_OK;
    }
    end_others(status, error);
    communicators_close(end);
    memory_give(end);
    library_stop();
    return status;
}
