/* jetbench-kernels [--json] [--only PART] [--batch-invariant] [--device cuda] */
#include <stdio.h>
#include <string.h>

#include "tests/perf/kernels_bench.h"

int main(int argc, char **argv)
{
    struct kernels_bench options = {.backend = backend_find("cuda"), .out = stdout};
    struct error error = {0};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            options.json = true;
        else if (strcmp(argv[i], "--batch-invariant") == 0)
            options.batch_invariant = true;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            options.only = argv[++i];
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            options.backend = backend_find(argv[++i]);
        else {
            fprintf(stderr, "jetbench-kernels: unknown argument '%s'\n", argv[i]);
            return 2;
        }
    }
    if (options.backend == NULL) {
        fprintf(stderr, "jetbench-kernels: no such device\n");
        return 2;
    }
    if (kernels_bench_run(&options, &error) != STATUS_OK) {
        fprintf(stderr, "jetbench-kernels: %s\n", error.text);
        return 1;
    }
    return 0;
}
