/* A front end for tests: a plan, an engine over the fake executor, and clients that gather what a
 * request's events say. */
#ifndef JETD_TEST_CLIENT_H
#define JETD_TEST_CLIENT_H

#include <pthread.h>

#include "daemon/engine.h"
#include "fake_executor.h"

struct bench {
    struct plan *plan;
    struct fake_options fake;
    struct executor *executor;
    const struct tokenizer
        *tokenizer; /* NULL unless bench_tokenizer() was called before bench_start() */
    struct engine_options options;
    struct engine *engine;
};

/* 8 slots, 208 tokens a step, 64 blocks of 16 tokens, 512 tokens a sequence; change, then start. */
void bench_open(struct bench *bench);
void bench_open_stages(struct bench *bench, int stages); /* of a pipeline */
void bench_tokenizer(struct bench *bench);
void bench_start(struct bench *bench);
/* Waits until all is idle, checks that slots and blocks are back and no step was wrong. */
void bench_settle(struct bench *bench);
void bench_close(struct bench *bench);

enum { CLIENT_CHOICES = 4, CLIENT_IDS = 1024, CLIENT_TEXT = 8192 };

struct heard {
    int ids;
    int32_t id[CLIENT_IDS];
    int logprobs;
    float logprob[CLIENT_IDS];
    int tops[CLIENT_IDS];
    char text[CLIENT_TEXT];
    size_t text_length;
    bool finished;
    enum finish_reason reason;
    enum status status;
    char detail[160], matched_stop[64];
    size_t matched_stop_length;
    bool has_matched_stop;
    int matched_id, completion_tokens;
};

struct client {
    struct request *request;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool woken;
    /* what came */
    int prompts, progresses, scores, events;
    int last_prefilled;
    uint64_t seed;
    int prompt_tokens;
    bool done;
    struct heard heard[CLIENT_CHOICES];
};

/* What most tests ask for; prompt must outlive the request unless it was copied by client_open. */
struct request_spec spec_plain(const char *id, const int32_t *prompt, int prompt_tokens,
                               int max_new_tokens);
/* Copies the spec's prompt, stop ids and biases. */
void client_open(struct client *client, const struct request_spec *spec);
enum status client_submit(struct client *client, struct bench *bench);
/* Takes events until one is the last; fails the test after 30 seconds. */
void client_listen(struct client *client);
/* Takes at most `events`; false: nothing came within `seconds`. */
bool client_take(struct client *client, double seconds);
void client_close(struct client *client);
/* All of it. */
void client_run(struct client *client, struct bench *bench, const struct request_spec *spec);

/* What a choice must give when nothing ends it but stop ids and length: by the fake's arithmetic.
 */
int expect_ids(const struct bench *bench, const struct request_spec *spec, int choice, int32_t *ids,
               enum finish_reason *reason);
void heard_expect(const struct bench *bench, const struct request_spec *spec, int choice,
                  const struct heard *heard);
/* n ids below 90 without the fake's special ones, from a seed. */
void prompt_fill(int32_t *prompt, int n, uint32_t seed);

#endif
