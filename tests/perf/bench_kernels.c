/* jetbench kernels: every operation at the published shapes, by itself. */
#include <stdbool.h>
#include <stdio.h>

#include "daemon/base/option.h"
#include "tests/perf/bench.h"
#include "tests/perf/kernels_bench.h"

struct bench {
    const char *device, *only, *config;
    int batch, tokens, context;
    bool batch_invariant, json, help;
};

#define AT(field) offsetof(struct bench, field)
/* clang-format off */
static const struct option_entry entries[] = {
    {"device", NULL, OPTION_CHOICE, "cuda", NULL, "where", 0, 0, "cpu|cuda", AT(device)},
    {"only", NULL, OPTION_STRING, "", "TEXT", "lines whose name has this in it", 0, 0, NULL, AT(only)},
    {"batch", NULL, OPTION_INT, "0", "N", "one shape of this many sequences instead of the list", 0, 256, NULL, AT(batch)},
    {"tokens", NULL, OPTION_INT, "1", "N", "with --batch: new tokens of each, 1 to decode", 1, KERNELS_TOKENS_MAX, NULL, AT(tokens)},
    {"context", NULL, OPTION_INT, "65535", "N", "with --batch: tokens before them", 0, 1 << 22, NULL, AT(context)},
    {"config", NULL, OPTION_CHOICE, "jet-nemotron-4b", NULL, "with --batch: whose heads", 0, 0, "jet-nemotron-2b|jet-nemotron-4b", AT(config)},
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
    struct kernels_shape shape = {bench.config, bench.batch, bench.tokens, bench.context};
    struct kernels_bench options = {
        .backend = backend_find(bench.device),
        .shape = bench.batch > 0 ? &shape : NULL,
        .out = stdout,
        .only = bench.only[0] != '\0' ? bench.only : NULL,
        .json = bench.json,
        .batch_invariant = bench.batch_invariant,
    };
    if (bench.help)
        option_help(&table, stdout);
    else if (bench.batch * bench.tokens > KERNELS_TOKENS_MAX)
        status = error_set(&error, STATUS_CONFIG, "--batch x --tokens: %d is more than %d",
                           bench.batch * bench.tokens, KERNELS_TOKENS_MAX);
    else
        status = kernels_bench_run(&options, &error);
    if (status != STATUS_OK)
        fprintf(stderr, "jetbench: %s\n", error.text);
    option_free(store);
    return status == STATUS_OK ? 0 : 1;
}
