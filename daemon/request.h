/* A request: what a client asked for, checked and in plain data, and the outbox its answers leave
 * through. Made by a front end (rpc_*.c, jetbench, tests), owned by the engine from engine_submit
 * until its last choice finished, then by the front end again.
 *
 *   made -> queued -> running -> finished -> released
 *              \________\___________^  cancel, abort, deadline, drain: two-phase, see engine.h */
#ifndef JETD_DAEMON_REQUEST_H
#define JETD_DAEMON_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/arena.h"
#include "daemon/base/status.h"
#include "kernels/kernels.h"

enum {
    REQUEST_ID_MAX = 128,      /* bytes */
    REQUEST_CHOICES_MAX = 128, /* n */
    REQUEST_STOPS_MAX = 16,    /* stop strings */
    REQUEST_STOP_BYTES_MAX = 1024,
    REQUEST_STOP_IDS_MAX = 64,
    REQUEST_BIASES_MAX = 1024,
};

enum request_kind { REQUEST_GENERATE, REQUEST_SCORE };

struct sampling {
    float temperature; /* 0: greedy */
    float top_p, min_p;
    int32_t top_k; /* 0: off */
    float repetition, presence, frequency;
    uint64_t seed;
    const struct logit_bias *bias; /* [biases] distinct ids */
    int biases;
};

struct stop_string {
    const char *text;
    size_t length;
};

struct request_spec {
    enum request_kind kind;
    char id[REQUEST_ID_MAX + 1];
    const int32_t *prompt; /* [prompt_tokens] >= 1 */
    int prompt_tokens;
    struct sampling sampling;
    int max_new_tokens; /* >= 1 for GENERATE; prompt + new <= max_model_len */
    int min_new_tokens; /* no eos or stop id among them, and no stop string ends with them */
    int choices;        /* n; choice i draws with seed + i */
    int priority;       /* higher runs first */
    int logprobs;       /* -1: none; 0: the chosen; k: also the k best */
    bool echo;          /* the prompt's tokens (and log-probabilities) come first */
    bool ignore_eos, include_stop;
    const struct stop_string *stops; /* [stop_count] */
    int stop_count;
    const int32_t *stop_ids; /* [stop_id_count], client's; eos ids come from the engine */
    int stop_id_count;
    int64_t deadline; /* clock_now() time, CLOCK_NEVER: none */
    int64_t arrival;  /* of the client's message, clock_now() time; 0: engine_submit's */
    bool text;        /* deltas carry text (a tokenizer is loaded) */
    bool uncounted;   /* the daemon's own: in no counter and no histogram */
};

enum finish_reason {
    FINISH_NONE,
    FINISH_STOP,
    FINISH_LENGTH,
    FINISH_CANCELLED,
    FINISH_DEADLINE,
    FINISH_ERROR,
};

struct token_logprob {
    int32_t id;
    float logprob;
    int32_t is_argmax;
    int32_t tops;
    const struct logit_candidate *top; /* [tops] */
};

enum event_kind { EVENT_PROMPT, EVENT_PROGRESS, EVENT_DELTA, EVENT_SCORE, EVENT_FINISHED };

/* One message to the client. Lists live in the event's own memory (event_free). */
struct event {
    enum event_kind kind;
    struct event *next;
    int choice;
    /* DELTA: ids, text (whole UTF-8 characters, may be "" or end mid-word) and, where asked,
     * log-probabilities [id_count] (0 and no tops for the prompt's first token, echoed). A stop id
     * is counted in completion_tokens, but an id here only with include_stop. SCORE: ids of the
     * prompt, logprobs [id_count - 1]. */
    const int32_t *ids;
    int id_count;
    const char *text;
    size_t text_length;
    const struct token_logprob *logprobs;
    int logprob_count;
    /* PROMPT, PROGRESS */
    int prompt_tokens, cached_tokens, prefilled;
    uint64_t seed;
    /* FINISHED, one a choice */
    enum finish_reason reason;
    enum status status;       /* FINISH_ERROR, CANCELLED, DEADLINE: why */
    char detail[160];         /* and in words; "" when ok */
    const char *matched_stop; /* the stop string; NULL none */
    size_t matched_stop_length;
    int32_t matched_id; /* stop id, -1 none */
    int completion_tokens;
    double queued, prefill, decode; /* seconds */
    bool last;                      /* no further event of this request will come */
    size_t bytes;                   /* of this event in memory: what the outbox is bounded by */
};

void event_free(struct event *event); /* NULL is fine */

struct request;

/* Told, from the engine's thread, that the outbox went from empty to not empty. Must not block. It
 * may still be running when the last event was taken already: `context` must outlive the engine, or
 * be such that a late call does no harm. NULL: the front end looks by itself. */
typedef void request_wake(void *context);

/* Takes over `arena`, where all of the spec's lists live. NULL: out of memory (arena is kept by the
 * caller then). One reference is the caller's. */
struct request *request_create(const struct request_spec *spec, struct arena *arena,
                               request_wake *wake, void *context);
const struct request_spec *request_spec(const struct request *request);
void request_retain(struct request *request);
void request_release(struct request *request);

/* Takes the oldest event out, NULL when there is none. Single consumer. */
struct event *request_next(struct request *request);

#endif
