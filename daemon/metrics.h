/* Prometheus text on an HTTP port of its own (libmicrohttpd); numbers come from engine_load and the
 * engine's histograms. */
#ifndef JETD_DAEMON_METRICS_H
#define JETD_DAEMON_METRICS_H

#include "daemon/engine.h"

struct metrics;

struct metrics_options {
    const char *host; /* an IPv4 or IPv6 address, or "localhost" */
    int port;         /* 0: any free one; the log names it */
    bool insecure;    /* allow an address beyond loopback: there is neither TLS nor a token */
    struct engine *engine;
    const char *model_name; /* label */
};

/* STATUS_CONFIG: not an address, or an unsafe one; STATUS_IO: the port cannot be bound. */
enum status metrics_open(const struct metrics_options *options, struct metrics **metrics,
                         struct error *error);
void metrics_close(struct metrics *metrics); /* NULL is fine */

#endif
