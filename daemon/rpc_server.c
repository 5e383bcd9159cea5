/* The server's life: completion queue, its pollers, the pump, and the way down. */
#include <grpc/support/log.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc_private.h"

enum {
    PING_INTERVAL_MS = 5000, /* clients may ping each 10 s: half of it forgives their jitter */
    KEEPALIVE_MS = 20000,
    KEEPALIVE_TIMEOUT_MS = 10000,
    STREAMS_MAX = 4096,
    HANDSHAKE_MS = 10000,
    LEAVE_SECONDS = 5,  /* for connections to end after they were cut */
    TEXT_SECONDS = 300, /* for cancelled calls to end: when the text that they are in does */
};

static const int64_t TICK = CLOCK_SECOND / 50;    /* how soon a moved deadline is seen */
static const int64_t FLUSH = CLOCK_SECOND / 10;   /* for what the engine finished last */
static const int64_t FAREWELL = CLOCK_SECOND / 2; /* for idle peers to hang up by themselves */

/* Lock held. */
static void sleep_until(pthread_cond_t *news, struct rpc_server *server, int64_t until)
{
    struct timespec at = {.tv_sec = until / CLOCK_SECOND, .tv_nsec = until % CLOCK_SECOND};
    pthread_cond_timedwait(news, &server->lock, &at);
}

/* ---- the pump: from an outbox to the wire ---- */

void rpc_server_pump_locked(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    if (call->queued)
        return;
    rpc_call_retain(call);
    call->queued = true;
    call->next = NULL;
    if (server->pump_last)
        server->pump_last->next = call;
    else
        server->pump_first = call;
    server->pump_last = call;
    pthread_cond_signal(&server->pump_work);
}

/* The waiter keeps its call alive: it holds a reference until rpc_waiter_give. */
void rpc_server_wake(void *context)
{
    struct rpc_waiter *waiter = context;
    struct rpc_server *server = waiter->server;
    pthread_mutex_lock(&server->lock);
    if (waiter->call)
        rpc_server_pump_locked(waiter->call);
    pthread_mutex_unlock(&server->lock);
}

struct rpc_waiter *rpc_waiter_take(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    pthread_mutex_lock(&server->lock);
    struct rpc_waiter *waiter = server->free_waiters;
    if (waiter)
        server->free_waiters = waiter->next;
    else
        waiter = calloc(1, sizeof *waiter);
    if (waiter) {
        waiter->server = server;
        waiter->call = call;
    }
    pthread_mutex_unlock(&server->lock);
    return waiter;
}

void rpc_waiter_give(struct rpc_waiter *waiter)
{
    struct rpc_server *server = waiter->server;
    pthread_mutex_lock(&server->lock);
    waiter->call = NULL;
    waiter->next = server->free_waiters;
    server->free_waiters = waiter;
    pthread_mutex_unlock(&server->lock);
}

/* The oldest in the queue, NULL: the server closes; lock held. */
static struct rpc_call *pump_next(struct rpc_server *server)
{
    for (;;) {
        int64_t until = rpc_unread_cut(server);
        struct rpc_call *call = server->pump_first;
        if (call) {
            server->pump_first = call->next;
            if (!server->pump_first)
                server->pump_last = NULL;
            call->queued = false;
        }
        if (call || server->pump_stop)
            return call;
        sleep_until(&server->pump_work, server, until);
    }
}

static void *pump_run(void *context)
{
    struct rpc_server *server = context;
    struct rpc_call *call;
    pthread_mutex_lock(&server->lock);
    while ((call = pump_next(server))) {
        pthread_mutex_unlock(&server->lock);
        rpc_call_pump(call);
        pthread_mutex_lock(&server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* ---- pollers ---- */

static void *poller_run(void *context)
{
    struct rpc_server *server = context;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        struct rpc_tag *tag = event.tag;
        if (tag->done) {
            tag->done(tag->call, event.success);
            continue;
        }
        pthread_mutex_lock(&server->lock);
        server->shut_down = true;
        pthread_cond_broadcast(&server->changed);
        pthread_mutex_unlock(&server->lock);
    }
}

static void log_core(gpr_log_func_args *args)
{
    enum log_level level = args->severity == GPR_LOG_SEVERITY_ERROR ? LOG_WARNING : LOG_DEBUG;
    log_line(level, "grpc: %s", args->message);
}

/* ---- opening ---- */

static grpc_server *create_server(const struct rpc_options *options)
{
    size_t bytes = rpc_message_bytes(options);
    if (bytes > INT32_MAX)
        bytes = INT32_MAX;
    const struct {
        const char *key;
        int value;
    } settings[] = {
        /* A second daemon on the port must fail, not steal connections. */
        {GRPC_ARG_ALLOW_REUSEPORT, 0},
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)bytes},
        {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1},
        {GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX},
        {GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS},
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, PING_INTERVAL_MS},
        {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_MS},
        /* Inflated before any limit or token is looked at, a message could be of any size. */
        {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
        {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE},
    };
    enum { COUNT = sizeof settings / sizeof *settings };
    grpc_arg list[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        list[i] = (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)settings[i].key};
        list[i].value.integer = settings[i].value;
    }
    const grpc_channel_args args = {.num_args = COUNT, .args = list};
    return grpc_server_create(&args, NULL);
}

static const struct rpc_method *const method_groups[] = {
    rpc_generation_methods, rpc_text_methods,       rpc_control_methods,
    rpc_health_methods,     rpc_reflection_methods,
};

enum { GROUPS = sizeof method_groups / sizeof *method_groups, METHODS_MAX = 32 };

/* Registration must come before the start, the first arming after it. */
static bool start_methods(struct rpc_server *server)
{
    void *registered[METHODS_MAX];
    size_t count = 0;
    for (size_t g = 0; g < GROUPS; g++)
        for (const struct rpc_method *method = method_groups[g]; method->path; method++)
            registered[count++] = grpc_server_register_method(
                server->grpc, method->path, NULL,
                method->request ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER : GRPC_SRM_PAYLOAD_NONE,
                0);
    grpc_server_start(server->grpc);
    count = 0;
    for (size_t g = 0; g < GROUPS; g++)
        for (const struct rpc_method *method = method_groups[g]; method->path; method++)
            if (!rpc_call_arm(server, method, registered[count++]))
                return false;
    return rpc_call_arm(server, NULL, NULL);
}

static bool start_threads(struct rpc_server *server)
{
    int wanted = server->options.threads > 0 ? server->options.threads : 2;
    const int most = (int)(sizeof server->pollers / sizeof *server->pollers);
    if (wanted > most)
        wanted = most;
    size_t bytes = rpc_message_bytes(&server->options);
    if (!rpc_work_open(&server->work, RPC_LARGEST_WAITING * bytes))
        return false;
    server->pump_running = pthread_create(&server->pump, NULL, pump_run, server) == 0;
    while (server->pump_running && server->poller_count < wanted &&
           pthread_create(&server->pollers[server->poller_count], NULL, poller_run, server) == 0)
        server->poller_count++;
    return server->pump_running && server->poller_count == wanted;
}

static bool copy_tokens(struct rpc_server *server)
{
    const struct rpc_options *options = &server->options;
    server->tokens = calloc((size_t)options->token_count + 1, sizeof *server->tokens);
    if (!server->tokens)
        return false;
    for (int i = 0; i < options->token_count; i++) {
        server->tokens[i] = strdup(options->tokens[i]);
        if (!server->tokens[i])
            return false;
        server->token_count++;
    }
    return true;
}

static struct rpc_server *create(const struct rpc_options *options)
{
    struct rpc_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->options = *options;
    server->opened = clock_now();
    server->shut_down = true; /* until it was started */
    rpc_model_init(&server->model, options->plan, options->tokenizer);
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &monotonic);
    pthread_cond_init(&server->pump_work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    gpr_set_log_function(log_core);
    grpc_init();
    server->queue = grpc_completion_queue_create_for_next(NULL);
    server->grpc = create_server(options);
    if (server->queue && server->grpc)
        grpc_server_register_completion_queue(server->grpc, server->queue, NULL);
    return server;
}

enum status rpc_open(const struct rpc_options *options, struct rpc_server **server, int *port,
                     struct error *error)
{
    struct rpc_server *opened = create(options);
    enum status status = STATUS_OK;
    if (!opened || !opened->queue || !opened->grpc || !copy_tokens(opened)) {
        status = error_set(error, STATUS_NO_MEMORY, "rpc: out of memory");
        goto close;
    }
    status = rpc_bind(options, opened->grpc, port, error);
    if (status != STATUS_OK)
        goto close;
    opened->shut_down = false;
    if (!start_threads(opened) || !start_methods(opened)) {
        status = error_set(error, STATUS_NO_MEMORY, "rpc: threads or memory ran out");
        goto close;
    }
    *server = opened;
    return STATUS_OK;
close:
    rpc_stop(opened);
    rpc_close(opened);
    return status;
}

/* ---- serving and stopping ---- */

void rpc_set_serving(struct rpc_server *server, bool serving)
{
    pthread_mutex_lock(&server->lock);
    server->serving = serving;
    pthread_mutex_unlock(&server->lock);
    rpc_watch_all(server);
}

/* Waits until `done`, or until `*deadline` as it then is; lock held. */
static bool wait_until(struct rpc_server *server, bool (*done)(const struct rpc_server *),
                       const _Atomic int64_t *deadline)
{
    while (!done(server)) {
        int64_t now = clock_now(), until = atomic_load(deadline);
        if (now >= until)
            return false;
        until = until < now + TICK ? until : now + TICK;
        sleep_until(&server->changed, server, until);
    }
    return true;
}

static bool wait_for(struct rpc_server *server, bool (*done)(const struct rpc_server *),
                     int64_t duration)
{
    _Atomic int64_t deadline = clock_now() + duration;
    pthread_mutex_lock(&server->lock);
    bool is_done = wait_until(server, done, &deadline);
    pthread_mutex_unlock(&server->lock);
    return is_done;
}

static bool no_calls(const struct rpc_server *server)
{
    return server->calls == 0;
}

static bool is_shut_down(const struct rpc_server *server)
{
    return server->shut_down && server->calls == 0;
}

/* What a call can be in that does not hear of its cancel: a step or a text. */
static int64_t longest_hold(const struct rpc_server *server)
{
    double seconds = server->options.step_seconds;
    return (int64_t)((seconds > TEXT_SECONDS ? seconds : TEXT_SECONDS) * (double)CLOCK_SECOND);
}

/* Listener closed, calls given until `*deadline`, then cancelled, and every connection cut: a peer
 * that has sent half a call, or nothing, or no longer answers must not hold the end. */
static bool stop(struct rpc_server *server, const _Atomic int64_t *deadline)
{
    pthread_mutex_lock(&server->lock);
    bool stopped_before = server->stopping || server->shut_down;
    server->stopping = true;
    pthread_mutex_unlock(&server->lock);
    if (stopped_before)
        return true;
    server->shutdown_tag = (struct rpc_tag){NULL, NULL};
    grpc_server_shutdown_and_notify(server->grpc, server->queue, &server->shutdown_tag);
    rpc_watch_all(server);
    pthread_mutex_lock(&server->lock);
    bool clean = wait_until(server, no_calls, deadline);
    pthread_mutex_unlock(&server->lock);
    if (clean && wait_for(server, is_shut_down, FAREWELL))
        return true;
    grpc_server_cancel_all_calls(server->grpc);
    if (!wait_for(server, no_calls, LEAVE_SECONDS * CLOCK_SECOND))
        log_info("cancelled calls wait for the step or the text that they are in");
    wait_for(server, no_calls, longest_hold(server));
    wait_for(server, is_shut_down, LEAVE_SECONDS * CLOCK_SECOND);
    return clean;
}

bool rpc_drain(struct rpc_server *server, const _Atomic int64_t *deadline)
{
    struct engine *engine = server->options.engine;
    engine_drain(engine); /* first: whoever hears the news is refused already */
    rpc_set_serving(server, false);
    bool idle = false;
    while (!idle && clock_now() < atomic_load(deadline))
        idle = engine_wait_idle(engine, clock_now() + TICK);
    if (idle)
        wait_for(server, no_calls, FLUSH);
    return stop(server, deadline);
}

bool rpc_stop(struct rpc_server *server)
{
    if (server == NULL)
        return true;
    _Atomic int64_t now = clock_now();
    stop(server, &now);
    pthread_mutex_lock(&server->lock);
    int left = server->calls;
    pthread_mutex_unlock(&server->lock);
    if (left > 0)
        log_error("rpc: %d calls did not end after they were cancelled", left);
    return left == 0;
}

static void join_threads(struct rpc_server *server)
{
    if (server->queue)
        grpc_completion_queue_shutdown(server->queue);
    if (!server->poller_count && server->queue)
        while (grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL)
                   .type != GRPC_QUEUE_SHUTDOWN)
            ;
    for (int i = 0; i < server->poller_count; i++)
        pthread_join(server->pollers[i], NULL);
    pthread_mutex_lock(&server->lock);
    server->pump_stop = true;
    pthread_cond_signal(&server->pump_work);
    pthread_mutex_unlock(&server->lock);
    if (server->pump_running)
        pthread_join(server->pump, NULL);
}

void rpc_close(struct rpc_server *server)
{
    if (!server)
        return;
    rpc_work_close(&server->work);
    pthread_mutex_lock(&server->lock);
    bool held = server->grpc && server->poller_count > 0 && !is_shut_down(server);
    pthread_mutex_unlock(&server->lock);
    if (held) { /* gRPC would abort; what is left ends with the process */
        log_warning("rpc: a connection could not be closed");
        return;
    }
    if (server->grpc && server->poller_count == 0) {
        grpc_server_shutdown_and_notify(server->grpc, server->queue, &server->shutdown_tag);
        grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    }
    if (server->grpc)
        grpc_server_destroy(server->grpc);
    join_threads(server);
    if (server->queue)
        grpc_completion_queue_destroy(server->queue);
    grpc_shutdown();
    for (struct rpc_waiter *waiter = server->free_waiters, *next; waiter; waiter = next) {
        next = waiter->next;
        free(waiter);
    }
    for (int i = 0; i < server->token_count; i++)
        free(server->tokens[i]);
    free(server->tokens);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->pump_work);
    pthread_cond_destroy(&server->changed);
    free(server);
}
