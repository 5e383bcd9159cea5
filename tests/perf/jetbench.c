/* jetbench: what jetd reaches, measured on the real engine and the real kernels. Every line states
 * what it is a share of. */
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "tests/perf/bench.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, int own);
    const char *help;
} parts[] = {
    {"serve", bench_serve, "the engine alone, then the same load over gRPC"},
    {"decode", bench_decode, "decode steps of a batch over a given context"},
    {"prefill", bench_prefill, "one prompt, in chunks"},
    {"kernels", bench_kernels, "each operation by itself"},
};

int main(int argc, char **argv)
{
    int own = 1;
    while (own < argc && strcmp(argv[own], "--") != 0)
        own++;
    log_configure(LOG_WARNING, -1, false);
    for (size_t i = 0; argc > 1 && i < sizeof parts / sizeof parts[0]; i++)
        if (strcmp(argv[1], parts[i].name) == 0)
            return parts[i].run(argc - 1, argv + 1, own - 1);
    bool asked = argc > 1 && strcmp(argv[1], "--help") == 0;
    fprintf(asked ? stdout : stderr, "jetbench PART [options] [-- jetd options]; PART --help\n");
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        fprintf(asked ? stdout : stderr, "  %-8s %s\n", parts[i].name, parts[i].help);
    return asked ? 0 : 2;
}
