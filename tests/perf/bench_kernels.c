/* jetbench kernels: every operation at the published shapes, by itself. */
#include <stdbool.h>
#include <stdio.h>

#include "daemon/base/option.h"
#include "tests/perf/bench.h"
#include "tests/perf/kernels_bench.h"

struct bench {
    const char *device, *only;
    bool batch_invariant, json, help;
};

#define AT(field) offsetof(struct bench, field)
/* clang-format off */
static const struct option_entry entries[] = {
    {"device", NULL, OPTION_CHOICE, "cuda", NULL, "where", 0, 0, "cpu|cuda", AT(device)},
    {"only", NULL, OPTION_STRING, "", "TEXT", "lines whose name has this in it", 0, 0, NULL, AT(only)},
    {"batch-invariant", NULL, OPTION_FLAG, "false", NULL, "the forms that give the same bits in any batch", 0, 0, NULL, AT(batch_invariant)},
    {"json", NULL, OPTION_FLAG, "false", NULL, "one JSON object a line", 0, 0, NULL, AT(json)},
    {"help", NULL, OPTION_FLAG, "false", NULL, "print this and exit", 0, 0, NULL, AT(help)},
};
/* clang-format on */

static const struct option_table table = {
    .program = "jetbench",
    .synopsis = "jetbench kernels [options]: each operation at the 2B's and 4B's shapes.",
    .entries = entries,
    .count = sizeof entries / sizeof entries[0],
};

int bench_kernels(int argc, char **argv, int own)
{
    (void)argc;
    struct bench bench;
    struct option_store *store;
    struct error error = {0};
    if (option_load(&table, own, argv, &bench, &store, &error) != STATUS_OK) {
        fprintf(stderr, "jetbench: %s\n", error.text);
        return 2;
    }
    enum status status = STATUS_OK;
    struct kernels_bench options = {
        .backend = backend_find(bench.device),
        .out = stdout,
        .only = bench.only[0] != '\0' ? bench.only : NULL,
        .json = bench.json,
        .batch_invariant = bench.batch_invariant,
    };
    if (bench.help)
        option_help(&table, stdout);
    else
        status = kernels_bench_run(&options, &error);
    if (status != STATUS_OK)
        fprintf(stderr, "jetbench: %s\n", error.text);
    option_free(store);
    return status == STATUS_OK ? 0 : 1;
}
