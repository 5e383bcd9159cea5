/* The engine: owns all mutable serving state in one thread. Requests go in through a bounded
 * queue; each turn the scheduler composes a step, the executor runs it on every rank, and the
 * engine commits its results: tokens to streams, slots and blocks back to pools. Step n + 1 is
 * composed while those before it run: their tokens are not known then, so a sequence that ends by a
 * stop runs as many steps too many as were under way (plan_depth), whose results are dropped. */
#ifndef JETD_DAEMON_ENGINE_H
#define JETD_DAEMON_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/histogram.h"
#include "daemon/request.h"
#include "daemon/tokenizer.h"
#include "partition/partition.h"

struct engine;
struct executor; /* the door to the ranks: executor.h */

struct engine_options {
    const struct plan *plan;
    struct executor *executor;         /* owned by the caller, closed after the engine */
    const struct tokenizer *tokenizer; /* NULL: token ids only */
    int max_queued;                    /* requests in no step yet; past it RESOURCE_EXHAUSTED */
    size_t outbox_bytes;               /* of one request; past it its sequences pause */
    double outbox_timeout;             /* seconds paused before the request ends */
};

struct engine_load {
    int running, waiting; /* sequences in slots; choices waiting */
    int slots, slots_used;
    uint64_t blocks, blocks_used;
    uint64_t steps;
    uint64_t requests, finished, cancelled, failed;
    uint64_t prompt_tokens, generated_tokens;
    bool draining;
};

/* Seconds, of sequences that generate. */
struct engine_times {
    struct histogram first_token, between_tokens;    /* from arrival; between two tokens */
    struct histogram whole, queued, prefill, decode; /* of sequences that ran to their end */
};

enum status engine_open(const struct engine_options *options, struct engine **engine,
                        struct error *error);
/* Cancels what still runs, then stops the thread. */
void engine_close(struct engine *engine);

/* What engine_submit would refuse now whatever the request is: so that a front end need not read a
 * text first. Any thread. */
enum status engine_admits(struct engine *engine, struct error *error);
/* Queues a request; the engine holds its own reference. Errors, at once and with nothing queued:
 * RESOURCE_EXHAUSTED (queue full, memory), FAILED_PRECONDITION (draining),
 * INVALID_ARGUMENT (duplicate id among live requests). Any thread. */
enum status engine_submit(struct engine *engine, struct request *request, struct error *error);
/* Ends a request: marked dead now, slots and blocks given back when the last step that mentions it
 * was collected; its FINISHED events (CANCELLED) follow. Idempotent. Any thread. */
void engine_cancel(struct engine *engine, struct request *request);
/* The same by id; false: no live request has it. Any thread. */
bool engine_abort(struct engine *engine, const char *id);
/* Refuses new requests from now on; live ones run on. Any thread. */
void engine_drain(struct engine *engine);
/* True once draining and nothing is live; waits until then or `deadline` (clock_now() time). */
bool engine_wait_idle(struct engine *engine, int64_t deadline);
void engine_load(struct engine *engine, struct engine_load *load);
/* Written by the engine's thread, to be printed by any. */
const struct engine_times *engine_times(const struct engine *engine);
/* Not STATUS_OK once a step failed on any rank: the process must end. */
enum status engine_health(struct engine *engine, struct error *error);

#endif
