/* Both fixtures through one rank on a GPU, against float64: log-probabilities, greedy tokens,
 * states after the prompt; then the same bits however a prompt is cut and whatever runs beside it,
 * on a batch-invariant device. Exit code 77: no GPU. */
#include <stdio.h>

#include "tests/golden/scenario.h"

/* bf16 activations: these fixtures' narrow layers and wide logits let rounding grow to 5e-2 of a
 * late state and 0.2 of a log-probability; a greedy token may differ where the float64 margin is
 * small beside that. */
static const double BF16_SLACK = 1500;

/* `data`: the folder of fixtures. */
static int fixture_run(const char *data, const char *name)
{
    char folder[512];
    struct chunks chunks = {{1, 2, 3, 7, 64}};
    const struct mesh alone = {1, 1, 1};
    snprintf(folder, sizeof folder, "%s/fixtures/%s", data, name);
    struct fixture *fixture = fixture_open(folder);
    rig_invariant = false;
    int whole = rig_threads(fixture, alone, scenario_golden, NULL);
    int cut = rig_threads(fixture, alone, scenario_golden, &chunks);
    rig_invariant = true;
    int invariant = rig_threads(fixture, alone, scenario_golden, &chunks);
    int same = rig_threads(fixture, alone, scenario_invariance, NULL) +
               rig_threads(fixture, alone, scenario_classes, NULL) +
               rig_threads(fixture, alone, scenario_shapes, NULL);
    printf("golden %s: %d whole, %d in chunks, %d batch-invariant, %d bits\n", name, whole, cut,
           invariant, same);
    fixture_close(fixture);
    return whole + cut + invariant + same;
}

int main(int count, char **argument)
{
    const char *data = count > 1 ? argument[1] : JETD_TEST_DATA;
    rig_backend = backend_find("cuda");
    rig_slack = BF16_SLACK;
    if (rig_backend->devices == NULL || rig_backend->devices() == 0) {
        fprintf(stderr, "golden_cuda: no GPU: skipped\n");
        return 77;
    }
    int failures = fixture_run(data, "tiny-f32");
    failures += fixture_run(data, "tiny-bf16-sharded");
    return failures == 0 ? 0 : 1;
}
