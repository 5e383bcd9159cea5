/* jetbench: what jetd reaches, measured on the real engine. Each line states what it is a share of.
 *
 *   jetbench serve [options] [-- jetd options]
 *
 * `serve` drives the engine's own door and then the same load over gRPC on loopback, in one run,
 * and prints the share that the gRPC path keeps. With --address it only drives that server. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/executor.h"
#include "daemon/rank.h"
#include "daemon/rpc.h"
#include "tests/perf/bench.h"
#include "tests/perf/load.h"

struct bench {
    const char *address, *prompts;
    int streams, requests, max_new_tokens, repeats;
    double rate, least_share;
    uint64_t seed;
    bool json, help;
};

#define AT(field) offsetof(struct bench, field)
/* clang-format off */
static const struct option_entry entries[] = {
    {"address", NULL, OPTION_STRING, "", "HOST:PORT", "only drive this server", 0, 0, NULL, AT(address)},
    {"prompts", NULL, OPTION_STRING, JETD_BENCH_PROMPTS, "FILE", "one prompt a line", 0, 0, NULL, AT(prompts)},
    {"streams", NULL, OPTION_INT, "64", "N", "closed loop: requests in flight", 1, 65536, NULL, AT(streams)},
    {"requests", NULL, OPTION_INT, "256", "N", "requests in all", 1, 1 << 24, NULL, AT(requests)},
    {"rate", NULL, OPTION_DOUBLE, "0", "PER_SECOND", "open loop: arrivals a second; 0: closed loop", 0, 1e6, NULL, AT(rate)},
    {"max-new-tokens", NULL, OPTION_INT, "64", "N", "of each request", 1, 1 << 20, NULL, AT(max_new_tokens)},
    {"repeats", NULL, OPTION_INT, "3", "N", "runs of each way, taken in turn; the medians are printed", 1, 99, NULL, AT(repeats)},
    {"least-share", NULL, OPTION_DOUBLE, "0", "PERCENT", "fail where gRPC keeps less of the engine's throughput", 0, 1000, NULL, AT(least_share)},
    {"seed", NULL, OPTION_SIZE, "1", "N", "of arrivals", 0, 0, NULL, AT(seed)},
    {"json", NULL, OPTION_FLAG, "false", NULL, "one JSON object a line", 0, 0, NULL, AT(json)},
    {"help", NULL, OPTION_FLAG, "false", NULL, "print this and exit", 0, 0, NULL, AT(help)},
};
/* clang-format on */

static const struct option_table table = {
    .program = "jetbench",
    .environment = NULL,
    .synopsis = "jetbench serve [options] [-- jetd options]\n"
                "Throughput, time to first token and inter-token latency: the engine alone, then\n"
                "the same load over gRPC.",
    .entries = entries,
    .count = sizeof entries / sizeof entries[0],
};

/* ---- prompts ------------------------------------------------------------------------------ */

enum { PROMPTS_MAX = 65536, PROMPT_BYTES_MAX = 1 << 20 };

static enum status read_prompts(const char *path, struct arena *arena, struct load *load,
                                struct error *error)
{
    FILE *file = fopen(path, "r");
    const char **list = arena_allocate(arena, PROMPTS_MAX, sizeof *list);
    char *line = arena_allocate(arena, PROMPT_BYTES_MAX, 1);
    if (file == NULL || list == NULL || line == NULL) {
        if (file != NULL)
            fclose(file);
        return error_set(error, STATUS_IO, "%s: cannot be read", path);
    }
    while (load->prompts < PROMPTS_MAX && fgets(line, PROMPT_BYTES_MAX, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '\0')
            list[load->prompts++] = arena_string(arena, line, strlen(line));
    }
    fclose(file);
    load->prompt = list;
    return load->prompts > 0
               ? STATUS_OK
               : error_set(error, STATUS_CONFIG, "%s: there is no prompt in it", path);
}

/* ---- report ------------------------------------------------------------------------------- */

static double rate_of(const struct load_result *result)
{
    return result->seconds > 0 ? (double)result->tokens / result->seconds : 0;
}

static int by_rate(const void *a, const void *b)
{
    double x = rate_of(a), y = rate_of(b);
    return (x > y) - (x < y);
}

static void print_result(const struct bench *bench, const char *way, struct load_result *result)
{
    double first[3], between[3];
    static const double quantiles[3] = {0.5, 0.9, 0.99};
    for (int i = 0; i < 3; i++) {
        first[i] = 1e3 * samples_quantile(&result->first_token, quantiles[i]);
        between[i] = 1e3 * samples_quantile(&result->inter_token, quantiles[i]);
    }
    const char *format =
        bench->json ? "{\"way\":\"%s\",\"tokens_per_second\":%.1f,\"requests_per_second\":%.2f,"
                      "\"completed\":%d,\"failed\":%d,\"ttft_ms\":[%.2f,%.2f,%.2f],"
                      "\"itl_ms\":[%.3f,%.3f,%.3f]}\n"
                    : "%-6s %9.1f tok/s %7.2f req/s  %d done %d failed  "
                      "ttft p50/p90/p99 %.1f/%.1f/%.1f ms  itl %.2f/%.2f/%.2f ms\n";
    printf(format, way, rate_of(result), result->completed / result->seconds, result->completed,
           result->failed, first[0], first[1], first[2], between[0], between[1], between[2]);
    if (result->failed > 0)
        fprintf(stderr, "jetbench: first failure: %s\n", result->failure);
    fflush(stdout);
}

/* ---- serve -------------------------------------------------------------------------------- */

struct server {
    struct settings settings;
    struct option_store *store;
    struct rank rank;
    struct executor *executor;
    struct engine *engine;
    struct rpc_server *rpc;
    char address[64];
};

static void server_close(struct server *server)
{
    rpc_stop(server->rpc);
    engine_close(server->engine);
    rpc_close(server->rpc);
    executor_close(server->executor);
    rank_close(&server->rank);
    option_free(server->store);
}

static enum status server_open(int argc, char **argv, struct server *server, struct error *error)
{
    enum status status =
        option_load(&settings_table, argc, argv, &server->settings, &server->store, error);
    if (status == STATUS_OK)
        status = rank_open(&server->settings, NULL, &server->rank, error);
    if (status != STATUS_OK)
        return status;
    struct rank *rank = &server->rank;
    if (rank->tokenizer == NULL)
        return error_set(error, STATUS_CONFIG, "jetbench serve needs a model with a tokenizer");
    struct executor_options executor = {rank->stage, rank->fabric, &rank->shape};
    status = executor_open(&executor, &server->executor, error);
    if (status != STATUS_OK)
        return status;
    struct engine_options engine = {
        .plan = rank->plan,
        .executor = server->executor,
        .tokenizer = rank->tokenizer,
        .max_queued = server->settings.max_queued_requests,
        .outbox_bytes = (size_t)server->settings.outbox_bytes,
        .outbox_timeout = server->settings.outbox_timeout,
    };
    status = engine_open(&engine, &server->engine, error);
    if (status != STATUS_OK)
        return status;
    struct rpc_options rpc = {
        .host = "127.0.0.1",
        .engine = server->engine,
        .tokenizer = rank->tokenizer,
        .plan = rank->plan,
        .model_name = "bench",
        .version = JETD_VERSION,
        .device = rank->backend->name,
        .fabric = rank->fabric->ops->name,
        .max_queued = server->settings.max_queued_requests,
    };
    int port = 0;
    status = rpc_open(&rpc, &server->rpc, &port, error);
    snprintf(server->address, sizeof server->address, "127.0.0.1:%d", port);
    return status;
}

/* Both ways in turn, `repeats` times; prints the run of median throughput of each. */
static enum status compare(const struct bench *bench, const struct load *load,
                           struct server *server, struct error *error)
{
    struct load_result engine[99], grpc[99];
    struct load warm = *load;
    warm.requests = load->streams;
    warm.rate = 0;
    enum status status = load_grpc(&warm, server->address, &grpc[0]);
    load_result_free(&grpc[0]);
    int runs = 0;
    for (; status == STATUS_OK && runs < bench->repeats; runs++) {
        status = load_engine(load, server->engine, server->rank.tokenizer, &engine[runs]);
        if (status == STATUS_OK)
            status = load_grpc(load, server->address, &grpc[runs]);
    }
    if (status == STATUS_OK) {
        qsort(engine, (size_t)runs, sizeof engine[0], by_rate);
        qsort(grpc, (size_t)runs, sizeof grpc[0], by_rate);
        print_result(bench, "engine", &engine[runs / 2]);
        print_result(bench, "grpc", &grpc[runs / 2]);
        double share = 100 * rate_of(&grpc[runs / 2]) / rate_of(&engine[runs / 2]);
        printf(bench->json ? "{\"grpc_share_percent\":%.1f}\n"
                           : "the gRPC path keeps %.1f %% of the engine's throughput\n",
               share);
        if (share < bench->least_share)
            status = error_set(error, STATUS_INTERNAL, "gRPC keeps %.1f %%, less than %.1f %%",
                               share, bench->least_share);
    }
    for (int i = 0; i < runs; i++) {
        if (engine[i].failed + grpc[i].failed > 0)
            status = STATUS_INTERNAL; /* print_result has said why */
        load_result_free(&engine[i]);
        load_result_free(&grpc[i]);
    }
    return status;
}

static enum status serve(const struct bench *bench, int argc, char **argv, struct error *error)
{
    struct arena *arena = arena_create((size_t)256 << 20);
    struct load load = {.streams = bench->streams,
                        .requests = bench->requests,
                        .rate = bench->rate,
                        .max_new_tokens = bench->max_new_tokens,
                        .seed = bench->seed};
    enum status status = read_prompts(bench->prompts, arena, &load, error);
    if (status == STATUS_OK && bench->address[0] != '\0') {
        struct load_result result;
        status = load_grpc(&load, bench->address, &result);
        if (status == STATUS_OK)
            print_result(bench, "grpc", &result);
        load_result_free(&result);
    } else if (status == STATUS_OK) {
        struct server server = {0};
        status = server_open(argc, argv, &server, error);
        if (status == STATUS_OK)
            status = compare(bench, &load, &server, error);
        server_close(&server);
    }
    arena_destroy(arena);
    return status;
}

int bench_serve(int argc, char **argv, int own)
{
    struct bench bench;
    struct option_store *store;
    struct error error = {0};
    enum status status = option_load(&table, own, argv, &bench, &store, &error);
    if (status != STATUS_OK) {
        fprintf(stderr, "jetbench: %s\n", error.text);
        return 2;
    }
    if (bench.help)
        option_help(&table, stdout);
    else
        /* jetd's options follow "--", which stands for the program's name. */
        status = serve(&bench, own < argc ? argc - own : 1, argv + (own < argc ? own : 0), &error);
    if (status != STATUS_OK)
        fprintf(stderr, "jetbench: %s: %s\n", status_name(status), error.text);
    option_free(store);
    return status == STATUS_OK ? 0 : 1;
}
