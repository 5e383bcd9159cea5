#include "daemon/coordinator.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/engine.h"
#include "daemon/executor.h"
#include "daemon/keys.h"
#include "daemon/metrics.h"
#include "daemon/rpc.h"
#include "daemon/signals.h"

/* Under mpirun a SIGTERM becomes a SIGKILL one second later. */
static const double MPIRUN_GRACE = 0.8;

struct coordinator {
    const struct settings *settings;
    struct rank *rank;
    struct executor *executor;
    struct engine *engine;
    struct metrics *metrics;
    struct rpc_server *rpc;
    struct keys keys;
    char folder_name[256];    /* of the model */
    atomic_bool asked;        /* a client called Drain */
    bool terminating;         /* SIGTERM or SIGINT came */
    _Atomic int64_t deadline; /* of the drain; only ever lowered */
    atomic_bool drained, clean;
};

/* ---- warm-up ------------------------------------------------------------------------------ */

/* One small request through every rank, so that SERVING means that a step has worked. */
static enum status warm_up(struct coordinator *self, struct error *error)
{
    struct arena *arena = arena_create(4096);
    int32_t *prompt = arena ? arena_allocate(arena, 1, sizeof *prompt) : NULL;
    struct request_spec spec = {
        .kind = REQUEST_GENERATE,
        .id = "warm-up",
        .prompt = prompt,
        .prompt_tokens = 1,
        .sampling = {.top_p = 1, .repetition = 1},
        .max_new_tokens = self->rank->plan->limits.max_model_len > 2 ? 2 : 1,
        .choices = 1,
        .logprobs = -1,
        .ignore_eos = true,
        .deadline = CLOCK_NEVER,
        .uncounted = true,
    };
    struct request *request = prompt ? request_create(&spec, arena, NULL, NULL) : NULL;
    if (request == NULL) {
        arena_destroy(arena);
        return error_set(error, STATUS_NO_MEMORY, "warm-up: out of memory");
    }
    enum status status = engine_submit(self->engine, request, error);
    for (bool last = false; status == STATUS_OK && !last;) {
        struct event *event = request_next(request);
        if (event == NULL) {
            clock_sleep(CLOCK_SECOND / 1000);
            signals_obey();
            continue;
        }
        last = event->last;
        if (event->kind == EVENT_FINISHED && event->reason == FINISH_ERROR)
            status = error_set(error, STATUS_INTERNAL, "warm-up: %s", event->detail);
        event_free(event);
    }
    request_release(request);
    return status;
}

/* ---- start -------------------------------------------------------------------------------- */

/* Any thread. */
static void deadline_lower(struct coordinator *self, double seconds)
{
    int64_t until = clock_now() + (int64_t)(seconds * (double)CLOCK_SECOND);
    int64_t before = atomic_load(&self->deadline);
    while (until < before && !atomic_compare_exchange_weak(&self->deadline, &before, until))
        ;
}

static void note_drain(void *context, double timeout)
{
    struct coordinator *self = context;
    if (timeout >= 0)
        deadline_lower(self, timeout);
    atomic_store(&self->asked, true);
}

static const char *path_or_null(const char *path)
{
    return path[0] != '\0' ? path : NULL;
}

/* The last part of the path, which may end in slashes. */
static const char *folder_name(struct coordinator *self)
{
    const char *folder = self->rank->folder;
    size_t end = strlen(folder);
    while (end > 1 && folder[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && folder[begin - 1] != '/')
        begin--;
    snprintf(self->folder_name, sizeof self->folder_name, "%.*s", (int)(end - begin),
             folder + begin);
    return self->folder_name;
}

static const char *served_name(struct coordinator *self)
{
    const struct settings *settings = self->settings;
    if (settings->served_model_name[0] != '\0')
        return settings->served_model_name;
    if (settings->model_config[0] != '\0')
        return settings->model_config;
    return folder_name(self);
}

static enum status open_engine(struct coordinator *self, struct error *error)
{
    struct executor_options executor = {
        .stage = self->rank->stage, .fabric = self->rank->fabric, .shape = &self->rank->shape};
    enum status status = executor_open(&executor, &self->executor, error);
    if (status != STATUS_OK)
        return status;
    struct engine_options engine = {
        .plan = self->rank->plan,
        .executor = self->executor,
        .tokenizer = self->rank->tokenizer,
        .max_queued = self->settings->max_queued_requests,
        .outbox_bytes = (size_t)self->settings->outbox_bytes,
        .outbox_timeout = self->settings->outbox_timeout,
    };
    return engine_open(&engine, &self->engine, error);
}

static enum status open_service(struct coordinator *self, struct error *error)
{
    const struct settings *settings = self->settings;
    enum status status = keys_load(path_or_null(settings->api_key_file), &self->keys, error);
    if (status != STATUS_OK)
        return status;
    struct metrics_options metrics = {
        .host = settings->metrics_host,
        .port = settings->metrics_port,
        .insecure = settings->insecure,
        .engine = self->engine,
        .model_name = served_name(self),
    };
    if (settings->metrics_port >= 0)
        status = metrics_open(&metrics, &self->metrics, error);
    if (status != STATUS_OK)
        return status;
    struct rpc_options rpc = {
        .host = settings->host,
        .port = settings->port,
        .engine = self->engine,
        .tokenizer = self->rank->tokenizer,
        .plan = self->rank->plan,
        .model_name = served_name(self),
        .version = JETD_VERSION,
        .device = self->rank->backend->name,
        .fabric = self->rank->fabric->ops->name,
        .max_queued = settings->max_queued_requests,
        .max_message_bytes = (size_t)settings->max_message_bytes,
        .step_seconds = self->rank->step_seconds,
        .unread_timeout = settings->outbox_timeout,
        .tls_cert = path_or_null(settings->ssl_certfile),
        .tls_key = path_or_null(settings->ssl_keyfile),
        .tls_client_ca = path_or_null(settings->ssl_ca_certs),
        .tokens = self->keys.key,
        .token_count = self->keys.count,
        .insecure = settings->insecure,
        .drain = note_drain,
        .drain_context = self,
    };
    int port;
    status = rpc_open(&rpc, &self->rpc, &port, error);
    if (status != STATUS_OK)
        return status;
    rpc_set_serving(self->rpc, true);
    if (strncmp(settings->host, "unix:", 5) == 0)
        log_info("serving on %s", settings->host);
    else
        log_info(strchr(settings->host, ':') ? "serving on [%s]:%d" : "serving on %s:%d",
                 settings->host, port);
    return STATUS_OK;
}

/* ---- run and drain ------------------------------------------------------------------------ */

/* Seconds between the first SIGTERM and the end. */
static double termination_grace(const struct coordinator *self)
{
    double grace = self->settings->drain_timeout;
    return getenv("OMPI_COMM_WORLD_SIZE") != NULL && grace > MPIRUN_GRACE ? MPIRUN_GRACE : grace;
}

/* Waits for a reason to end. STATUS_OK: to drain, until the deadline. */
static enum status serve(struct coordinator *self, struct error *error)
{
    for (;;) {
        int number = signals_next(0.1);
        bool terminate = number == SIGTERM || number == SIGINT;
        enum status status = engine_health(self->engine, error);
        if (status != STATUS_OK)
            return status;
        if (atomic_load(&self->asked))
            log_info("draining: a client asked for it");
        else if (terminate || number == SIGUSR1)
            log_info("draining: %s", strsignal(number));
        else
            continue;
        self->terminating = terminate; /* also where a client asked in the same moment */
        deadline_lower(self, terminate ? termination_grace(self) : self->settings->drain_timeout);
        return STATUS_OK;
    }
}

static void *drain_main(void *argument)
{
    struct coordinator *self = argument;
    bool clean = rpc_drain(self->rpc, &self->deadline);
    atomic_store(&self->clean, clean);
    atomic_store(&self->drained, true);
    return NULL;
}

/* A first SIGTERM or SIGINT after SIGUSR1 or Drain bounds what is left of the drain, as a further
 * Drain does; a second ends the process at once. */
static void drain_hear(struct coordinator *self, int number)
{
    if (number != SIGTERM && number != SIGINT)
        return;
    if (self->terminating) {
        log_error("ended by a second %s while draining", strsignal(number));
        self->rank->fabric->ops->abort(self->rank->fabric, STATUS_CANCELLED,
                                       "ended while draining");
        _exit(1);
    }
    self->terminating = true;
    deadline_lower(self, termination_grace(self));
    log_info("%s while draining", strsignal(number));
}

static enum status drain(struct coordinator *self, struct error *error)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, drain_main, self) != 0)
        return error_set(error, STATUS_NO_MEMORY, "no thread to drain with");
    while (!atomic_load(&self->drained))
        drain_hear(self, signals_next(0.02));
    pthread_join(thread, NULL);
    enum status status = engine_health(self->engine, error);
    if (status != STATUS_OK)
        return status;
    if (atomic_load(&self->clean))
        log_info("drained: every request finished");
    else
        log_warning("drained: requests that did not finish in time were cancelled");
    return STATUS_OK;
}

enum status coordinator_run(const struct settings *settings, struct rank *rank, struct error *error)
{
    struct coordinator self = {.settings = settings, .rank = rank, .deadline = CLOCK_NEVER};
    enum status status = open_engine(&self, error);
    if (status == STATUS_OK)
        status = warm_up(&self, error);
    if (status == STATUS_OK)
        status = open_service(&self, error);
    if (status == STATUS_OK)
        status = serve(&self, error);
    if (status == STATUS_OK)
        status = drain(&self, error);
    /* Without this the other ranks would wait for a step that never comes. */
    if (status != STATUS_OK && mesh_size(rank->fabric->mesh) > 1)
        rank->fabric->ops->abort(rank->fabric, status, error->text);
    metrics_close(self.metrics);
    if (!rpc_stop(self.rpc)) { /* its calls would come to an engine that is gone */
        rank->fabric->ops->abort(rank->fabric, STATUS_INTERNAL, "calls did not end");
        _exit(1);
    }
    engine_close(self.engine);
    rpc_close(self.rpc);
    executor_close(self.executor);
    keys_free(&self.keys);
    return status;
}
