/* golden_mpi FIXTURE TENSOR PIPELINE: one rank of a mesh under mpirun. */
#include <stdlib.h>

#include "tests/golden/scenario.h"

int main(int count, char **argument)
{
    if (count != 4) {
        fprintf(stderr, "usage: golden_mpi FIXTURE TENSOR PIPELINE\n");
        return 2;
    }
    struct fabric_options options = {.mesh = {atoi(argument[2]), 1, atoi(argument[3])},
                                     .heartbeat_timeout = 60,
                                     .step_timeout = 120};
    struct error error = {0};
    struct fabric *fabric;
    if (fabric_open_mpi(&options, &fabric, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    char folder[512];
    snprintf(folder, sizeof folder, JETD_TEST_DATA "/fixtures/%s", argument[1]);
    struct fixture *fixture = fixture_open(folder);
    struct chunks chunks = {{1, 2, 3, 7, 64}};
    int failures = rig_scenario(fixture, options.mesh, fabric, scenario_golden, NULL);
    failures += rig_scenario(fixture, options.mesh, fabric, scenario_golden, &chunks);
    fixture_close(fixture);
    fabric_close(fabric);
    return failures == 0 ? 0 : 1;
}
