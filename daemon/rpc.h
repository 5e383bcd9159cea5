/* The gRPC front end: one port that serves jet.v1 (Generation, Control), health and reflection.
 *
 * Requests are checked completely before they reach the engine; protobuf types end in the rpc_*.c
 * files. The server has its own threads: pollers of gRPC's completion queue, two workers that take
 * large requests off them, and a pump that carries events from the engine's outboxes to the wire.
 *
 * Order at the end of a daemon: rpc_drain, rpc_stop, engine_close, rpc_close. */
#ifndef JETD_DAEMON_RPC_H
#define JETD_DAEMON_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/engine.h"

struct rpc_server;

struct rpc_options {
    const char *host; /* "127.0.0.1", "::1", "localhost", "0.0.0.0", or "unix:/path" */
    int port;         /* 0: any free one */
    struct engine *engine;
    const struct tokenizer *tokenizer; /* NULL: token ids only */
    const struct plan *plan;           /* model, limits, mesh; outlives the server */
    const char *model_name;            /* as served */
    const char *version;               /* of the daemon */
    const char *device, *fabric;       /* names, for GetServerInfo */
    int max_queued;                    /* the engine's, for GetServerInfo */
    size_t max_message_bytes;          /* of one received message; 0: 64 MiB */
    int threads;                       /* pollers; 0: 2 */
    double unread_timeout;             /* seconds that a message may wait for its reader; 0: 60 */
    double step_seconds;               /* the longest that a step may take; 0: not known */
    /* Paths of PEM files, NULL: none. A client CA makes client certificates mandatory. */
    const char *tls_cert, *tls_key, *tls_client_ca;
    const char *const *tokens; /* [token_count] accepted bearer tokens; none: no authentication */
    int token_count;
    bool insecure; /* allow a non-loopback host without TLS and tokens */
    /* Told when a client called Drain, each time; must only note it (the caller then ends the
     * daemon with rpc_drain). `timeout` in seconds, negative: the client named none. May be
     * NULL. */
    void (*drain)(void *context, double timeout);
    void *drain_context;
};

/* Binds and serves at once; health says NOT_SERVING until rpc_set_serving. `*port` gets the bound
 * port. Errors: STATUS_CONFIG (names the option), STATUS_IO (bind), STATUS_NO_MEMORY. */
enum status rpc_open(const struct rpc_options *options, struct rpc_server **server, int *port,
                     struct error *error);
void rpc_set_serving(struct rpc_server *server, bool serving);
/* Health says NOT_SERVING, the engine drains (new requests get FAILED_PRECONDITION), live requests
 * run on until `*deadline` (clock_now() time; may be moved meanwhile) and are cancelled then. The
 * listener is closed at return. False: something had to be cancelled. */
bool rpc_drain(struct rpc_server *server, const _Atomic int64_t *deadline);
/* Cancels what is left. False: calls are still there, and may come to the engine. NULL is fine. */
bool rpc_stop(struct rpc_server *server);
/* Frees a stopped server. The engine must be closed or idle. NULL is fine. */
void rpc_close(struct rpc_server *server);

#endif
