/* A load on a server: prompts, how many at once or how often, and what came of it. Two ways in: the
 * engine's own door (load_engine.c) and gRPC (load_grpc.c), so that one run compares them. */
#ifndef JETD_PERF_LOAD_H
#define JETD_PERF_LOAD_H

#include "daemon/base/status.h"
#include "daemon/engine.h"
#include "tests/perf/samples.h"

struct load {
    const char *const *prompt; /* [prompts] text, taken in turn */
    int prompts;
    int streams;  /* closed loop: requests in flight */
    int requests; /* in all */
    double rate;  /* open loop: arrivals a second (exponential gaps); 0: closed loop */
    int max_new_tokens;
    uint64_t seed; /* of the gaps */
};

struct load_result {
    double seconds;
    long tokens; /* generated */
    int completed, failed;
    struct samples first_token; /* seconds from sending to the first delta */
    struct samples inter_token; /* seconds a token, between deltas */
    char failure[512];          /* the first */
};

void load_result_free(struct load_result *result);

/* When request i of an open loop is sent, in nanoseconds from the start; the same for both ways. */
int64_t load_arrival(const struct load *load, int i, int64_t previous);

enum status load_engine(const struct load *load, struct engine *engine,
                        const struct tokenizer *tokenizer, struct load_result *result);
/* `target` as gRPC takes it: "127.0.0.1:50051". */
enum status load_grpc(const struct load *load, const char *target, struct load_result *result);

#endif
