/* The executor over the threads fabric, with a stage and a step format of the test's own: eight
 * bytes of number, four of rows, four of what to do. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/executor.h"

enum { WORLD = 3, MAX_ROWS = 5, BYTES_MAX = 64, DEPTH = 3 };
enum { ALARM_SECONDS = 60 };
enum { DO_RUN, DO_FAIL_ON_1, DO_FAIL_ON_0, DO_BAD_BYTES, DO_STALL_ON_1 };

struct stage {
    struct fabric *fabric;
    uint64_t steps; /* run so far; numbers must come in order */
    atomic_int *running;
    struct sample_result results[DEPTH][MAX_ROWS]; /* of the steps under way */
    int rows[DEPTH], first, pending;
    bool stalled; /* rank 0: what its device does waits for another rank */
};

static atomic_bool released; /* whoever stalls fails now */

struct flat {
    uint64_t number;
    int32_t rows, what;
};

size_t step_bytes_max(const struct step_shape *shape)
{
    (void)shape;
    return BYTES_MAX;
}

enum status step_decode(const struct step_shape *shape, const void *bytes, size_t length,
                        struct step *step, struct error *error)
{
    struct flat flat;
    if (length != sizeof flat || (uintptr_t)bytes % 8 != 0)
        return error_set(error, STATUS_PEER_MISMATCH, "length");
    memcpy(&flat, bytes, sizeof flat);
    if (flat.what == DO_BAD_BYTES || flat.rows > shape->max_rows)
        return error_set(error, STATUS_PEER_MISMATCH, "step field 'what' is wrong");
    *step = (struct step){.number = flat.number, .rows = flat.rows, .tokens = flat.what};
    return STATUS_OK;
}

/* Row r's token is the sum over ranks of number * 100 + r * (rank + 1). */
enum status stage_submit(struct stage *stage, const struct step *step, struct error *error)
{
    int rank = stage->fabric->rank;
    if (stage->pending == DEPTH)
        return error_set(error, STATUS_INTERNAL, "too many steps under way");
    int lane = (stage->first + stage->pending) % DEPTH;
    struct sample_result *results = stage->results[lane];
    if (step->number != ++stage->steps)
        return error_set(error, STATUS_INTERNAL, "steps out of order");
    if (rank == 0)
        atomic_fetch_add(stage->running, 1);
    while (step->tokens == DO_STALL_ON_1 && rank == 1) {
        if (atomic_load(&released))
            return STATUS_ABORTED;
        clock_sleep(CLOCK_SECOND / 1000);
    }
    stage->stalled = step->tokens == DO_STALL_ON_1 && rank == 0;
    if ((step->tokens == DO_FAIL_ON_1 && rank == 1) || (step->tokens == DO_FAIL_ON_0 && rank == 0))
        return error_set(error, STATUS_DEVICE, "rank %d's device failed", rank);
    for (int row = 0; row < step->rows; row++) {
        float value = (float)(step->number * 100 + (uint64_t)(row * (rank + 1)));
        enum status status =
            stage->fabric->ops->all_reduce(stage->fabric, AXIS_WORLD, &value, 1, DTYPE_F32);
        if (status != STATUS_OK)
            return status;
        results[row].token = (int32_t)value;
    }
    stage->rows[lane] = step->rows;
    stage->pending++;
    return STATUS_OK;
}

enum status stage_collect(struct stage *stage, struct sample_result *results, int *rows,
                          struct error *error)
{
    if (stage->pending == 0)
        return error_set(error, STATUS_INTERNAL, "no step is under way");
    while (stage->stalled) {
        if (atomic_load(&released))
            return error_set(error, STATUS_ABORTED, "aborted");
        clock_sleep(CLOCK_SECOND / 1000);
    }
    *rows = stage->rows[stage->first];
    if (results != NULL)
        memcpy(results, stage->results[stage->first], (size_t)*rows * sizeof *results);
    stage->first = (stage->first + 1) % DEPTH;
    stage->pending--;
    return STATUS_OK;
}

bool stage_ready(const struct stage *stage)
{
    return stage->pending > 0 && (!stage->stalled || atomic_load(&released));
}

int stage_pending(const struct stage *stage)
{
    return stage->pending;
}

static struct step_shape shape = {.max_rows = MAX_ROWS, .depth = DEPTH};

struct cluster {
    struct fabric *fabrics[WORLD];
    struct stage stages[WORLD];
    pthread_t threads[WORLD];
    enum status served[WORLD];
    struct error errors[WORLD];
    struct executor *executor;
    int following;
    atomic_int running;
};

struct follower {
    struct cluster *cluster;
    int rank;
};

static void *follow(void *context)
{
    struct follower *me = context;
    struct cluster *cluster = me->cluster;
    int rank = me->rank;
    free(me);
    cluster->served[rank] = executor_serve(&cluster->stages[rank], cluster->fabrics[rank], &shape,
                                           &cluster->errors[rank]);
    return NULL;
}

/* Ranks from `following` on do not serve. */
static struct cluster *cluster_open_part(int following, double step_timeout)
{
    struct cluster *cluster = calloc(1, sizeof *cluster);
    struct fabric_options options = {.mesh = {WORLD, 1, 1}, .step_timeout = step_timeout};
    struct error error = {.status = STATUS_OK};
    assert_int_equal(fabric_open_threads(&options, cluster->fabrics, &error), STATUS_OK);
    for (int rank = 0; rank < WORLD; rank++)
        cluster->stages[rank] =
            (struct stage){.fabric = cluster->fabrics[rank], .running = &cluster->running};
    cluster->following = following;
    for (int rank = 1; rank < following; rank++) {
        struct follower *follower = malloc(sizeof *follower);
        *follower = (struct follower){cluster, rank};
        assert_int_equal(pthread_create(&cluster->threads[rank], NULL, follow, follower), 0);
    }
    struct executor_options executor = {&cluster->stages[0], cluster->fabrics[0], &shape};
    assert_int_equal(executor_open(&executor, &cluster->executor, &error), STATUS_OK);
    return cluster;
}

static struct cluster *cluster_open(void)
{
    return cluster_open_part(WORLD, 0);
}

static void cluster_close(struct cluster *cluster)
{
    executor_close(cluster->executor);
    for (int rank = 1; rank < cluster->following; rank++)
        pthread_join(cluster->threads[rank], NULL);
    for (int rank = 0; rank < WORLD; rank++)
        fabric_close(cluster->fabrics[rank]);
}

static enum status submit(struct cluster *cluster, uint64_t number, int rows, int what)
{
    struct flat flat = {number, rows, what};
    return executor_submit(cluster->executor, &flat, sizeof flat);
}

static void collect_right(struct cluster *cluster, uint64_t number, int expected_rows)
{
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK};
    int rows = -1;
    assert_int_equal(executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error),
                     STATUS_OK);
    assert_int_equal(rows, expected_rows);
    for (int row = 0; row < rows; row++)
        assert_int_equal(results[row].token, 3 * number * 100 + (uint64_t)row * (1 + 2 + 3));
}

static void steps_in_order(void **state)
{
    (void)state;
    struct cluster *cluster = cluster_open();
    for (uint64_t number = 1; number <= 201; number++) {
        assert_int_equal(submit(cluster, number, (int)number % (MAX_ROWS + 1), DO_RUN), STATUS_OK);
        if (number >= DEPTH)
            collect_right(cluster, number - DEPTH + 1, (int)(number - DEPTH + 1) % (MAX_ROWS + 1));
    }
    for (uint64_t number = 201 - DEPTH + 2; number <= 201; number++)
        collect_right(cluster, number, (int)number % (MAX_ROWS + 1));
    cluster_close(cluster);
    for (int rank = 1; rank < WORLD; rank++) {
        assert_int_equal(cluster->served[rank], STATUS_OK);
        assert_int_equal(cluster->stages[rank].steps, 201);
    }
    free(cluster);
}

static void depth_is_bounded(void **state)
{
    (void)state;
    struct cluster *cluster = cluster_open();
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK};
    int rows;
    assert_int_equal(executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error),
                     STATUS_INTERNAL);
    for (uint64_t number = 1; number <= DEPTH; number++)
        assert_int_equal(submit(cluster, number, 1, DO_RUN), STATUS_OK);
    assert_int_equal(submit(cluster, DEPTH + 1, 1, DO_RUN), STATUS_INTERNAL);
    collect_right(cluster, 1, 1);
    assert_int_equal(submit(cluster, DEPTH + 1, 2, DO_RUN), STATUS_OK);
    unsigned char huge[BYTES_MAX + 1] = {0};
    assert_int_equal(executor_submit(cluster->executor, huge, sizeof huge), STATUS_INTERNAL);
    assert_int_equal(executor_submit(cluster->executor, huge, 0), STATUS_INTERNAL);
    for (uint64_t number = 2; number <= DEPTH; number++)
        collect_right(cluster, number, 1);
    collect_right(cluster, DEPTH + 1, 2);
    cluster_close(cluster);
    free(cluster);
}

/* Without a collect before the close: submitted steps still run, nothing hangs. */
static void close_with_steps_under_way(void **state)
{
    (void)state;
    struct cluster *cluster = cluster_open();
    assert_int_equal(submit(cluster, 1, 3, DO_RUN), STATUS_OK);
    assert_int_equal(submit(cluster, 2, 3, DO_RUN), STATUS_OK);
    cluster_close(cluster);
    assert_int_equal(cluster->stages[2].steps, 2);
    free(cluster);
}

static void failure_ends_all(int what, enum status at_0, const char *text_at_0, enum status at_1)
{
    struct cluster *cluster = cluster_open();
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK}, again = {.status = STATUS_OK};
    int rows = -1;
    unsigned logged = log_errors();
    assert_int_equal(submit(cluster, 1, 2, DO_RUN), STATUS_OK);
    collect_right(cluster, 1, 2);
    assert_int_equal(submit(cluster, 2, 2, what), STATUS_OK);
    assert_int_equal(submit(cluster, 3, 2, DO_RUN), STATUS_OK);
    assert_int_equal(executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error), at_0);
    assert_non_null(strstr(error.text, text_at_0));
    assert_int_equal(executor_collect(cluster->executor, results, MAX_ROWS, &rows, &again), at_0);
    assert_int_equal(rows, -1);
    cluster_close(cluster);
    assert_int_equal(cluster->served[1], at_1);
    assert_int_not_equal(cluster->served[2], STATUS_OK);
    /* step 2 at most: a follower may have aborted before rank 0 came to it */
    assert_in_range(atomic_load(&cluster->running), what == DO_FAIL_ON_0 ? 2 : 1, 2);
    assert_int_equal(log_errors(), logged + 1);
    free(cluster);
}

static void follower_fails(void **state)
{
    (void)state;
    failure_ends_all(DO_FAIL_ON_1, STATUS_ABORTED, "abort", STATUS_DEVICE);
}

static void rank_0_fails(void **state)
{
    (void)state;
    failure_ends_all(DO_FAIL_ON_0, STATUS_DEVICE, "rank 0's device failed", STATUS_ABORTED);
}

/* Whoever refuses the step first aborts; the others end with the same or with the abort. */
static void bad_bytes_end_all(void **state)
{
    (void)state;
    struct cluster *cluster = cluster_open();
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK};
    int rows = -1;
    assert_int_equal(submit(cluster, 1, 2, DO_BAD_BYTES), STATUS_OK);
    enum status status = executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error);
    assert_true(status >= STATUS_PEER_LOST);
    cluster_close(cluster);
    for (int rank = 1; rank < WORLD; rank++)
        assert_true(cluster->served[rank] >= STATUS_PEER_LOST);
    assert_int_equal(atomic_load(&cluster->running), 0);
    free(cluster);
}

/* Followers that are stuck between steps never take the next: the watch ends the job. */
static void step_not_taken(void **state)
{
    (void)state;
    struct cluster *cluster = cluster_open_part(1, 0.3);
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK};
    int rows = -1;
    unsigned logged = log_errors();
    alarm(ALARM_SECONDS); /* without a verdict the publish has no end */
    assert_int_equal(submit(cluster, 1, 2, DO_RUN), STATUS_OK);
    assert_int_equal(executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error),
                     STATUS_ABORTED);
    cluster_close(cluster);
    alarm(0);
    assert_int_equal(log_errors(), logged + 1);
    free(cluster);
}

static FILE *said; /* what goes to stderr meanwhile */
static int stderr_before = -1;

static void stderr_catch(void)
{
    said = tmpfile();
    stderr_before = dup(STDERR_FILENO);
    assert_true(said != NULL && stderr_before >= 0);
    assert_true(dup2(fileno(said), STDERR_FILENO) >= 0);
}

static int stderr_return(void **state)
{
    (void)state;
    if (stderr_before >= 0) {
        dup2(stderr_before, STDERR_FILENO);
        close(stderr_before);
    }
    stderr_before = -1;
    return 0;
}

/* Rank 0's device waits for a collective that rank 1, stuck in the same step, does not start: the
 * watch names rank 1. */
static void check_named(int depth)
{
    char text[1024] = "";
    struct sample_result results[MAX_ROWS];
    struct error error = {.status = STATUS_OK};
    int rows = -1;
    unsigned logged = log_errors();
    const int64_t until = clock_now() + ALARM_SECONDS * CLOCK_SECOND;
    shape.depth = depth;
    atomic_store(&released, false);
    stderr_catch();
    struct cluster *cluster = cluster_open_part(WORLD, 1.0);
    enum status status = submit(cluster, 1, 0, DO_STALL_ON_1);
    while (log_errors() == logged && clock_now() < until)
        clock_sleep(CLOCK_SECOND / 1000);
    atomic_store(&released, true);
    enum status collected = executor_collect(cluster->executor, results, MAX_ROWS, &rows, &error);
    cluster_close(cluster);
    free(cluster);
    stderr_return(NULL);
    shape.depth = DEPTH;
    rewind(said);
    (void)!fread(text, 1, sizeof text - 1, said);
    fclose(said);
    assert_int_equal(status, STATUS_OK);
    assert_int_equal(collected, STATUS_ABORTED);
    if (strstr(text, "rank 1 stalled in step 1 (it has been in it for") == NULL)
        fail_msg("%s", text);
}

/* With room for another step, and without. */
static void who_does_not_wait_is_named(void **state)
{
    (void)state;
    check_named(DEPTH);
    check_named(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_in_order),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(close_with_steps_under_way),
        cmocka_unit_test(follower_fails),
        cmocka_unit_test(rank_0_fails),
        cmocka_unit_test(bad_bytes_end_all),
        cmocka_unit_test(step_not_taken),
        cmocka_unit_test_teardown(who_does_not_wait_is_named, stderr_return),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
