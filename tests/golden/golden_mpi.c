/* golden_mpi FIXTURE TENSOR PIPELINE [mpi|nccl]: one rank of a mesh under mpirun. With a fabric
 * named the device is cuda; ranks share a GPU where there are too few. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cluster/nccl_device.h"
#include "tests/golden/scenario.h"

/* bf16 activations: these fixtures' narrow layers and wide logits let rounding grow to 5e-2 of a
 * late state and 0.1 of a log-probability, on one GPU as on two. What a mesh adds is in
 * compare_alone(). */
static const double BF16_SLACK = 1000;

static struct fabric *fabric_make(struct mesh mesh)
{
    struct fabric_options options = {.mesh = mesh, .heartbeat_timeout = 60, .step_timeout = 120};
    struct error error = {0};
    struct fabric *fabric;
    if (fabric_open_mpi(&options, &fabric, &error) == STATUS_OK)
        return fabric;
    fprintf(stderr, "%s\n", error.text);
    exit(1);
}

/* 77: there is no GPU. */
static void device_choose(const char *fabric)
{
    bool shared;
    rig_backend = nccl_device(&rig_ordinal, &shared);
    rig_nccl = strcmp(fabric, "nccl") == 0;
    rig_slack = BF16_SLACK;
    if (rig_backend == NULL) {
        fprintf(stderr, "no GPU: skipped\n");
        exit(77);
    }
    if (!rig_nccl)
        rig_backend = backend_find("cuda");
    if (shared)
        fprintf(stderr, "ranks share a GPU\n");
}

static int run(struct fixture *fixture, struct mesh mesh, struct fabric *shared,
               void (*scenario)(struct rig *, void *), void *context)
{
    struct fabric *fabric = rig_nccl ? fabric_make(mesh) : shared;
    return rig_scenario(fixture, mesh, fabric, scenario, context);
}

/* The same draws as one rank alone: nearly, since sums are cut and products chosen anew, and what
 * follows a draw that rounding turned goes its own way. */
static int compare_alone(struct fixture *fixture, struct mesh mesh, struct fabric *shared)
{
    static struct trace alone, meshed;
    bool nccl = rig_nccl;
    if (shared->rank == 0) {
        struct fabric_options options = {.mesh = {1, 1, 1}};
        struct error error = {0};
        struct fabric *self;
        rig_nccl = false;
        if (fabric_open_self(&options, &self, &error) != STATUS_OK)
            return 1;
        rig_scenario(fixture, options.mesh, self, scenario_sampling, &alone);
        fabric_close(self);
        rig_nccl = nccl;
    }
    int failures = run(fixture, mesh, shared, scenario_sampling, &meshed), same = 0;
    if (shared->rank != 0)
        return failures;
    for (int i = 0; i < alone.rows; i++)
        same += alone.token[i] == meshed.token[i];
    fprintf(stderr, "%d of %d draws are those of one rank\n", same, alone.rows);
    return failures + (alone.rows != meshed.rows || 4 * same < alone.rows);
}

/* Steps filled up to their class, on every rank alike: the same bits as unfilled. */
static int run_classes(struct fixture *fixture, struct mesh mesh, struct fabric *shared)
{
    rig_invariant = true;
    int failures = run(fixture, mesh, shared, scenario_classes, NULL);
    rig_invariant = false;
    return failures;
}

int main(int count, char **argument)
{
    if (count != 4 && count != 5) {
        fprintf(stderr, "usage: golden_mpi FIXTURE TENSOR PIPELINE [mpi|nccl]\n");
        return 2;
    }
    if (count == 5)
        device_choose(argument[4]);
    struct mesh mesh = {atoi(argument[2]), 1, atoi(argument[3])};
    struct fabric *fabric = fabric_make(mesh);
    char folder[512];
    snprintf(folder, sizeof folder, JETD_TEST_DATA "/fixtures/%s", argument[1]);
    struct fixture *fixture = fixture_open(folder);
    struct chunks chunks = {{1, 2, 3, 7, 64}};
    int failures = run(fixture, mesh, fabric, scenario_golden, NULL);
    failures += run(fixture, mesh, fabric, scenario_golden, &chunks);
    if (count == 5) {
        failures += compare_alone(fixture, mesh, fabric);
        failures += run_classes(fixture, mesh, fabric);
    }
    fixture_close(fixture);
    fabric_close(fabric);
    return failures == 0 ? 0 : 1;
}
