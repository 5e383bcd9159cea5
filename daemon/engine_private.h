/* Inside the engine. Who may touch what:
 *   inbox      any thread, under its mutex: what other threads want, what they may know
 *   the rest   the engine's thread alone
 * Never call into an outbox while the inbox is locked: the outbox calls into the inbox.
 *
 *   engine.c   open, close, the door        inbox.c   requests and cancels from other threads
 *   job.c      a request's running form     turn.c    the thread: deadlines, compose, collect
 *   steps.c    batch -> step bytes          commit.c  results -> tokens -> events
 *   pause.c    outbox bounds, deadlines      ending.c  the two phases of an end */
#ifndef JETD_DAEMON_ENGINE_PRIVATE_H
#define JETD_DAEMON_ENGINE_PRIVATE_H

#include <pthread.h>

#include "daemon/base/clock.h"
#include "daemon/engine.h"
#include "daemon/event.h"
#include "daemon/executor.h"
#include "daemon/request_private.h"
#include "daemon/scheduler.h"

enum { INBOX_BUCKETS = 1024 };

/* One choice of a request: a sequence in the scheduler and a stream to the client. */
struct sequence {
    struct entry entry; /* first: the scheduler hands it back */
    struct job *job;
    int index;
    uint64_t seed;
    struct stream *stream;      /* NULL: neither text nor stop strings are asked for */
    struct stream *echo_stream; /* for the prompt's text: has no stops; may be `stream` */
    struct event *finished;     /* made ahead, so that ending cannot fail */
    int flights;                /* steps under way that mention it */
    int scored, sampled;        /* rows committed */
    bool ended;                 /* its last event is out; results are dropped */
    bool reaped;                /* slot and blocks are back */
    int64_t started, first;     /* clock_now() of the first step and the first token, 0: not yet */
    int64_t newest;             /* of the newest token */
};

/* A live request. Its memory is taken in engine_submit; the engine's thread takes events' alone. */
struct job {
    struct request *request; /* one reference */
    const struct request_spec *spec;
    struct job *previous, *next; /* of the engine's live ones */
    int choices;
    struct sequence *sequence; /* [choices] */
    int ended, reaped;         /* choices */
    bool counted;              /* penalties need token counts */
    bool started;              /* a step mentioned it */
    bool paused;
    int64_t arrival, paused_at;
    struct stops *stops; /* stop strings, for every choice's stream; NULL: none */
    int32_t *stop_id;    /* [stop_ids] the client's and the model's */
    int stop_ids;
    struct event *prompt, *score; /* made ahead; score NULL for GENERATE */
};

struct inbox {
    pthread_mutex_t mutex;
    pthread_cond_t wake;                        /* the engine's thread sleeps here */
    pthread_cond_t idle;                        /* engine_wait_idle */
    struct request *submitted, **submitted_end; /* oldest first */
    struct request *cancelled;
    struct request *bucket[INBOX_BUCKETS]; /* live requests by id */
    int queued;                            /* requests submitted and in no step yet */
    int live;                              /* requests submitted and not reaped */
    bool poked, draining, stopping;
    struct error failure; /* STATUS_OK: none */
    struct engine_load load;
};

struct engine {
    struct engine_options options;
    struct step_shape shape;
    struct inbox inbox;
    pthread_t thread;

    struct scheduler *scheduler;
    struct step_builder *builder;
    struct sample_result *result;      /* [max_rows] */
    struct batch *flight[STAGE_DEPTH]; /* steps under way, a ring */
    int first_flight, flights;
    uint64_t steps, arrivals;
    struct job *jobs;      /* live, newest first */
    int64_t next_deadline; /* not after the nearest one */
    int paused;            /* jobs */
    bool failed;
    struct engine_load load; /* the counters, published each turn */
    struct engine_times times;
};

/* ---- inbox.c ---- */
enum status inbox_open(struct inbox *inbox);
void inbox_close(struct inbox *inbox);
enum status inbox_submit(struct engine *engine, struct request *request, struct job *job,
                         struct error *error);
void inbox_cancel(struct inbox *inbox, struct request *request);
/* Makes the engine's thread take a turn. Any thread; an outbox_drained. */
void inbox_poke(void *inbox);
/* Both lists, taken out. */
struct inbox_news {
    struct request *submitted, *cancelled;
    bool stopping;
};
struct inbox_news inbox_take(struct inbox *inbox);
/* Sleeps until there is news or `until`. */
void inbox_sleep(struct inbox *inbox, int64_t until);
/* The request is not live any more: its id is free, cancels pass it by. */
void inbox_forget(struct inbox *inbox, struct request *request, bool queued);
void inbox_started(struct inbox *inbox);
void inbox_reaped(struct inbox *inbox);
void inbox_publish(struct inbox *inbox, const struct engine_load *load);
void inbox_fail(struct inbox *inbox, const struct error *error);

/* ---- times.c ---- */
void times_init(struct engine_times *times);
/* A token came: time to first token, or since the one before. */
void times_token(struct engine_times *times, struct sequence *sequence, int64_t now);
/* Fills the seconds of a FINISHED event, and counts them when the sequence ran to its end. */
void times_finish(struct engine_times *times, const struct sequence *sequence, struct event *event,
                  int64_t now);

/* ---- job.c ---- */
enum status job_create(const struct engine *engine, struct request *request, struct job **job,
                       struct error *error);
void job_destroy(struct job *job); /* NULL is fine; releases the request's events made ahead */
bool job_stops_at(const struct job *job, int32_t id);

/* ---- echo.c ---- */
/* Prompt tokens begin .. end - 1 as a delta, in order; results: of all but the prompt's first
 * token, NULL: no log-probabilities. NULL: out of memory. */
struct event *echo_create(const struct sequence *sequence, int begin, int end,
                          const struct sample_result *results);

/* ---- ending.c ---- */
struct ending {
    enum finish_reason reason;
    enum status status;
    const char *detail;                     /* NULL: none */
    const struct stop_string *matched_stop; /* NULL: none */
    int32_t matched_id;                     /* -1: none */
};
extern const struct ending ending_no_memory;
/* Phase one: what the streams hold back, the FINISHED event, no further step. */
void sequence_end(struct engine *engine, struct sequence *sequence, const struct ending *ending);
/* Phase two, where it has ended and no step mentions it: slot and blocks go back, and with the last
 * choice the job. */
void sequence_reap(struct engine *engine, struct sequence *sequence);
/* Both phases for every choice, as far as they can go now. */
void job_end(struct engine *engine, struct job *job, const struct ending *ending);

/* ---- steps.c ---- */
enum status batch_build(struct engine *engine, const struct batch *batch, const void **bytes,
                        size_t *length);

/* ---- commit.c ---- */
void batch_commit(struct engine *engine, const struct batch *batch,
                  const struct sample_result *results, int64_t now);

/* ---- pause.c ---- */
/* Sends a made event; an outbox over its bound pauses the job. NULL is fine. */
void job_send(struct engine *engine, struct job *job, struct event *event);
void job_resume(struct engine *engine, struct job *job);
/* Resumes or ends paused jobs, ends those whose time is over. */
void jobs_expire(struct engine *engine, int64_t now);

/* ---- turn.c ---- */
void *engine_run(void *engine);
void engine_publish(struct engine *engine);

#endif
