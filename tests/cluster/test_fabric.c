/* The same checks on every fabric. Without arguments: self and threads, many meshes.
 * `test_fabric mpi` under mpirun: all meshes of that many ranks, one after the other;
 * `test_fabric mpi-square`: only tensor 2 x context 1 x pipeline 2;
 * `test_fabric nccl`: all meshes over nccl, each rank with a GPU or all with one, 77 without. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "collectives.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "tests/cluster/nccl_device.h"

struct end {
    pthread_t thread;
    struct fabric *fabric;
    bool right;
    enum status status;
    int sharers;
};

static void *check_end(void *context)
{
    struct end *end = context;
    end->right = collectives_check(end->fabric);
    if (!end->right)
        end->fabric->ops->abort(end->fabric, STATUS_INTERNAL, "a check failed");
    return NULL;
}

static void open_threads(struct mesh mesh, double heartbeat, double step, struct fabric **fabrics)
{
    struct error error = {.status = STATUS_OK};
    struct fabric_options options = {
        .mesh = mesh, .heartbeat_timeout = heartbeat, .step_timeout = step};
    assert_int_equal(fabric_open_threads(&options, fabrics, &error), STATUS_OK);
}

static void run_ends(struct fabric **fabrics, int world, void *(*run)(void *), struct end *ends)
{
    for (int r = 0; r < world; r++) {
        ends[r] = (struct end){.fabric = fabrics[r]};
        assert_int_equal(pthread_create(&ends[r].thread, NULL, run, &ends[r]), 0);
    }
    for (int r = 0; r < world; r++)
        pthread_join(ends[r].thread, NULL);
    for (int r = 0; r < world; r++)
        fabric_close(fabrics[r]);
}

static void meshes_on_threads(void **state)
{
    (void)state;
    const struct mesh meshes[] = {{1, 1, 1}, {2, 1, 1}, {1, 1, 2}, {2, 1, 2},
                                  {4, 1, 1}, {1, 2, 2}, {3, 1, 1}, {2, 2, 2}};
    for (size_t m = 0; m < sizeof meshes / sizeof *meshes; m++) {
        struct fabric *fabrics[8];
        struct end ends[8];
        open_threads(meshes[m], 0, 0, fabrics);
        int world = mesh_size(meshes[m]);
        run_ends(fabrics, world, check_end, ends);
        for (int r = 0; r < world; r++)
            assert_true(ends[r].right);
    }
}

static void self_alone(void **state)
{
    (void)state;
    struct error error = {.status = STATUS_OK};
    struct fabric *fabric;
    struct fabric_options options = {.mesh = {1, 1, 1}};
    assert_int_equal(fabric_open_self(&options, &fabric, &error), STATUS_OK);
    float data[3] = {1, 2, 3}, out[3];
    assert_int_equal(fabric->ops->all_reduce(fabric, AXIS_TENSOR, data, 3, DTYPE_F32), STATUS_OK);
    assert_true(data[0] == 1 && data[2] == 3);
    assert_int_equal(fabric->ops->all_gather(fabric, AXIS_WORLD, data, out, sizeof data),
                     STATUS_OK);
    assert_memory_equal(data, out, sizeof data);
    assert_int_equal(fabric->ops->publish(fabric, data, sizeof data), STATUS_OK);
    assert_int_equal(fabric->ops->barrier(fabric), STATUS_OK);
    unsigned before = log_errors();
    fabric->ops->abort(fabric, STATUS_INTERNAL, "end of the test");
    assert_int_equal(log_errors(), before); /* the caller's to say */
    assert_int_equal(fabric->ops->barrier(fabric), STATUS_ABORTED);
    fabric_close(fabric);
    fabric_close(NULL);
    options.mesh.tensor = 2;
    assert_int_equal(fabric_open_self(&options, &fabric, &error), STATUS_CONFIG);
}

static void mesh_arithmetic(void **state)
{
    (void)state;
    assert_int_equal(mesh_size((struct mesh){0, 1, 1}), 0);
    assert_int_equal(mesh_size((struct mesh){-2, -2, 1}), 0);
    assert_int_equal(mesh_size((struct mesh){4096, 4096, 4096}), 0);
    assert_int_equal(mesh_size((struct mesh){16, 16, 16}), 4096);
    struct mesh mesh = {3, 2, 4};
    for (int rank = 0; rank < 24; rank++) {
        struct coordinates at = mesh_coordinates(mesh, rank);
        assert_int_equal(rank, at.tensor + 3 * (at.context + 2 * at.pipeline));
        assert_int_equal(mesh_rank(mesh, at), rank);
        for (int axis = AXIS_TENSOR; axis <= AXIS_WORLD; axis++) {
            int index = mesh_axis_index(mesh, rank, (enum axis)axis);
            assert_int_equal(mesh_axis_member(mesh, rank, (enum axis)axis, index), rank);
            assert_in_range(index, 0, mesh_axis_size(mesh, (enum axis)axis) - 1);
        }
    }
    /* rank 10 = tensor 1, context 1, pipeline 1 */
    assert_int_equal(mesh_axis_member(mesh, 10, AXIS_TENSOR, 2), 11);
    assert_int_equal(mesh_axis_member(mesh, 10, AXIS_CONTEXT, 0), 7);
    assert_int_equal(mesh_axis_member(mesh, 10, AXIS_PIPELINE, 3), 22);
}

/* Rank 0 aborts while the others wait for it, each in another kind of call. */
static void *wait_for_abort(void *context)
{
    struct end *end = context;
    struct fabric *fabric = end->fabric;
    float data[2] = {0};
    size_t length;
    if (fabric->rank == 0) {
        clock_sleep(CLOCK_SECOND / 20);
        fabric->ops->abort(fabric, STATUS_INTERNAL, "the test aborts");
        end->status = fabric->ops->publish(fabric, data, sizeof data);
    } else if (fabric->rank == 1) {
        end->status = fabric->ops->await(fabric, data, sizeof data, &length);
    } else if (fabric->rank == 2) {
        end->status = fabric->ops->all_reduce(fabric, AXIS_WORLD, data, 2, DTYPE_F32);
    } else {
        end->status = fabric->ops->send_host(fabric, AXIS_WORLD, 0, data, sizeof data);
    }
    if (fabric->ops->barrier(fabric) != STATUS_ABORTED)
        end->status = STATUS_OK;
    return NULL;
}

static void abort_wakes_everyone(void **state)
{
    (void)state;
    struct fabric *fabrics[4];
    struct end ends[4];
    open_threads((struct mesh){4, 1, 1}, 0, 0, fabrics);
    unsigned before = log_errors();
    run_ends(fabrics, 4, wait_for_abort, ends);
    for (int r = 0; r < 4; r++)
        assert_int_equal(ends[r].status, STATUS_ABORTED);
    assert_int_equal(log_errors(), before + 1);
}

/* Rank 1 never comes to the collective of step 7; the watch ends the wait. */
static void *stay_in_step(void *context)
{
    struct end *end = context;
    float data[1] = {0};
    fabric_step_begin(end->fabric, 7);
    if (end->fabric->rank == 1)
        while (end->fabric->ops->publish == NULL || !log_errors())
            clock_sleep(CLOCK_SECOND / 100);
    end->status = end->fabric->ops->all_reduce(end->fabric, AXIS_WORLD, data, 1, DTYPE_F32);
    return NULL;
}

static void long_step_aborts(void **state)
{
    (void)state;
    struct fabric *fabrics[3];
    struct end ends[3];
    open_threads((struct mesh){3, 1, 1}, 0, 0, fabrics);
    fabric_limit_steps(fabrics[0], 0.3);
    run_ends(fabrics, 3, stay_in_step, ends);
    for (int r = 0; r < 3; r++)
        assert_int_equal(ends[r].status, STATUS_ABORTED);
}

/* A device that is its number: 0 has none. */
static enum status number_identity(struct device *device, unsigned char id[16])
{
    memset(id, 0, 16);
    id[7] = *(const unsigned char *)(const void *)device;
    return STATUS_OK;
}

static unsigned char sharing_numbers[4]; /* by rank */

static void *count_sharers(void *context)
{
    static const struct backend numbers = {.name = "numbers", .identity = number_identity};
    struct end *end = context;
    void *number = &sharing_numbers[end->fabric->rank];
    struct fabric_memory memory = {.backend = &numbers, .device = number};
    bool distinct = false;
    end->status = fabric_device_sharers(end->fabric, &memory, &end->sharers);
    if (end->status == STATUS_OK)
        end->status = fabric_devices_distinct(end->fabric, &memory, &distinct);
    end->right = distinct;
    return NULL;
}

static void ranks_of_one_device_are_counted(void **state)
{
    static const struct {
        unsigned char number[4];
        int sharers[4];
        bool distinct;
    } cases[] = {
        {{1, 2, 3, 4}, {1, 1, 1, 1}, true},
        {{5, 5, 6, 5}, {3, 3, 1, 3}, false},
        {{0, 0, 7, 8}, {1, 1, 1, 1}, false}, /* two without a device share none */
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fabric *fabrics[4];
        struct end ends[4];
        memcpy(sharing_numbers, cases[i].number, sizeof sharing_numbers);
        open_threads((struct mesh){2, 1, 2}, 0, 0, fabrics);
        run_ends(fabrics, 4, count_sharers, ends);
        for (int r = 0; r < 4; r++) {
            assert_int_equal(ends[r].status, STATUS_OK);
            assert_int_equal(ends[r].sharers, cases[i].sharers[r]);
            assert_int_equal(ends[r].right, cases[i].distinct);
        }
    }
}

static void nccl_says_so(void **state)
{
    (void)state;
    struct error error = {.status = STATUS_OK};
    struct fabric *fabric;
    assert_int_equal(fabric_open_nccl(NULL, NULL, &fabric, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "NCCL"));
}

static void launcher_reads_environment(void **state)
{
    (void)state;
    int size, rank, local;
    launcher_world(&size, &rank, &local);
    assert_true(size == 1 && rank == 0 && local == 0);
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1);
    launcher_world(&size, &rank, &local);
    assert_true(size == 4 && rank == 3 && local == 1);
    setenv("OMPI_COMM_WORLD_SIZE", "x", 1);
    launcher_world(&size, &rank, &local);
    assert_true(size == 1 && rank == 0 && local == 0);
}

/* ---- under mpirun --------------------------------------------------------------------------- */

static bool mpi_mesh(struct mesh mesh)
{
    struct error error = {.status = STATUS_OK};
    struct fabric_options options = {.mesh = mesh};
    struct fabric *fabric;
    if (fabric_open_mpi(&options, &fabric, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    bool right = collectives_check(fabric);
    if (!right)
        fabric->ops->abort(fabric, STATUS_INTERNAL, "a check failed");
    fabric_close(fabric);
    return right;
}

/* ---- on GPUs, under mpirun ------------------------------------------------------------------ */

static bool nccl_mesh(struct mesh mesh, const struct fabric_memory *memory)
{
    struct error error = {.status = STATUS_OK};
    struct fabric_options options = {.mesh = mesh, .heartbeat_timeout = 60, .step_timeout = 120};
    struct fabric *host, *fabric;
    if (fabric_open_mpi(&options, &host, &error) != STATUS_OK ||
        fabric_open_nccl(host, memory, &fabric, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    bool right = fabric->streamed && collectives_check(fabric);
    if (!right)
        fabric->ops->abort(fabric, STATUS_INTERNAL, "a check failed");
    fabric_close(fabric);
    return right;
}

/* Two ranks on one GPU are told so. */
static bool nccl_refuses(int size, struct fabric_memory memory)
{
    struct error error = {.status = STATUS_OK};
    struct device_options options = {.max_tokens = 1, .max_sequences = 1};
    struct fabric *host, *fabric;
    if (size == 1)
        return true;
    memory.backend = backend_find("cuda");
    if (memory.backend->open(&options, &memory.device, &error) != STATUS_OK ||
        fabric_open_mpi(&(struct fabric_options){.mesh = {size, 1, 1}}, &host, &error) != STATUS_OK)
        return false;
    bool right = fabric_open_nccl(host, &memory, &fabric, &error) == STATUS_CONFIG &&
                 strstr(error.text, "share one") != NULL;
    fabric_close(host);
    memory.backend->close(memory.device);
    return right;
}

static int nccl_main(void)
{
    enum { ROOM = 4 << 20 };
    int size, rank, local;
    launcher_world(&size, &rank, &local);
    struct device_options options = {.max_tokens = 1, .max_sequences = 1};
    bool shared;
    const struct backend *backend = nccl_device(&options.ordinal, &shared);
    if (backend == NULL) {
        fprintf(stderr, "no GPU: skipped\n");
        return 77;
    }
    fprintf(stderr, "%d ranks%s\n", size, shared ? " on one GPU" : "");
    struct error error = {.status = STATUS_OK};
    struct collectives_device device = {.memory.backend = backend, .room = ROOM};
    struct fabric *base; /* keeps MPI up from mesh to mesh */
    if (fabric_open_mpi(&(struct fabric_options){.mesh = {size, 1, 1}}, &base, &error) != STATUS_OK)
        return 1;
    bool right = nccl_refuses(size, device.memory) &&
                 backend->open(&options, &device.memory.device, &error) == STATUS_OK &&
                 backend->allocate(device.memory.device, ROOM, &device.data) == STATUS_OK;
    collectives_device = &device;
    for (int tensor = 1; tensor <= size && right; tensor++)
        if (size % tensor == 0)
            right = nccl_mesh((struct mesh){tensor, 1, size / tensor}, &device.memory);
    if (!right) {
        fprintf(stderr, "rank %d: %s\n", rank, error.text);
        base->ops->abort(base, STATUS_INTERNAL, "a check failed");
    }
    backend->release(device.memory.device, device.data);
    backend->close(device.memory.device);
    fabric_close(base);
    return right ? 0 : 1;
}

static int mpi_main(void)
{
    int size, rank, local;
    launcher_world(&size, &rank, &local);
    struct error error = {.status = STATUS_OK};
    struct fabric *base; /* keeps MPI up from mesh to mesh */
    struct fabric_options options = {.mesh = {size, 1, 1}};
    if (fabric_open_mpi(&options, &base, &error) != STATUS_OK || base->rank != rank)
        return 1;
    struct fabric *none; /* with several ranks this ends the job: test_faults.sh */
    options.mesh.tensor = 2;
    if (size == 1 && fabric_open_mpi(&options, &none, &error) != STATUS_CONFIG) {
        fprintf(stderr, "a mesh that is too large was accepted\n");
        return 1;
    }
    bool right = true;
    for (int tensor = 1; tensor <= size; tensor++)
        for (int context = 1; context <= size / tensor; context++)
            if (size % (tensor * context) == 0)
                right = right && mpi_mesh((struct mesh){tensor, context, size / tensor / context});
    fabric_close(base);
    return right ? 0 : 1;
}

int main(int argc, char **argv)
{
    log_configure(LOG_INFO, -1, false);
    if (argc > 1 && strcmp(argv[1], "mpi-square") == 0)
        return mpi_mesh((struct mesh){2, 1, 2}) ? 0 : 1;
    if (argc > 1 && strcmp(argv[1], "mpi") == 0)
        return mpi_main();
    if (argc > 1 && strcmp(argv[1], "nccl") == 0)
        return nccl_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_step_aborts),     cmocka_unit_test(mesh_arithmetic),
        cmocka_unit_test(self_alone),           cmocka_unit_test(meshes_on_threads),
        cmocka_unit_test(abort_wakes_everyone), cmocka_unit_test(ranks_of_one_device_are_counted),
        cmocka_unit_test(nccl_says_so),         cmocka_unit_test(launcher_reads_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
