#include "daemon/metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/histogram.h"

struct metrics {
    struct engine *engine;
    struct MHD_Daemon *server;
    char labels[320]; /* model_name="..." */
};

/* ---- text --------------------------------------------------------------------------------- */

static void print_number(FILE *out, const struct metrics *metrics, const char *type,
                         const char *name, const char *help, double value)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n%s{%s} %.17g\n", name, help, name, type, name,
            metrics->labels, value);
}

static void print_load(FILE *out, const struct metrics *metrics)
{
    struct engine_load load;
    engine_load(metrics->engine, &load);
    const struct {
        const char *type, *name, *help;
        double value;
    } rows[] = {
        {"gauge", "jetd_num_requests_running", "Sequences that hold a state slot.", load.running},
        {"gauge", "jetd_num_requests_waiting", "Sequences that wait for a slot.", load.waiting},
        {"gauge", "jetd_state_slots", "State slots.", load.slots},
        {"gauge", "jetd_kv_cache_usage_perc", "Share of KV blocks reserved, 0 to 1.",
         load.blocks ? (double)load.blocks_used / (double)load.blocks : 0},
        {"gauge", "jetd_draining", "1 while new requests are refused.", load.draining},
        {"counter", "jetd_steps_total", "Steps run.", (double)load.steps},
        {"counter", "jetd_prompt_tokens_total", "Prompt tokens read.", (double)load.prompt_tokens},
        {"counter", "jetd_generation_tokens_total", "Tokens generated.",
         (double)load.generated_tokens},
        {"counter", "jetd_requests_total", "Requests accepted.", (double)load.requests},
        {"counter", "jetd_request_success_total", "Requests that ran to their end.",
         (double)load.finished},
        {"counter", "jetd_request_cancelled_total", "Requests ended by client or deadline.",
         (double)load.cancelled},
        {"counter", "jetd_request_failed_total", "Requests ended by an error.",
         (double)load.failed},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        print_number(out, metrics, rows[i].type, rows[i].name, rows[i].help, rows[i].value);
}

static void print_histograms(FILE *out, const struct metrics *metrics)
{
    const struct engine_times *times = engine_times(metrics->engine);
    histogram_print(&times->first_token, "jetd_time_to_first_token_seconds",
                    "From arrival to the first token.", metrics->labels, out);
    histogram_print(&times->between_tokens, "jetd_inter_token_latency_seconds",
                    "Between two tokens of a sequence.", metrics->labels, out);
    histogram_print(&times->whole, "jetd_e2e_request_latency_seconds",
                    "From arrival to the end of a sequence.", metrics->labels, out);
    histogram_print(&times->queued, "jetd_request_queue_time_seconds",
                    "From arrival to a state slot.", metrics->labels, out);
    histogram_print(&times->prefill, "jetd_request_prefill_time_seconds",
                    "From a state slot to the first token.", metrics->labels, out);
    histogram_print(&times->decode, "jetd_request_decode_time_seconds",
                    "From the first to the last token.", metrics->labels, out);
}

static struct MHD_Response *respond(const struct metrics *metrics)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (out == NULL)
        return NULL;
    print_load(out, metrics);
    print_histograms(out, metrics);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(length, text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL)
        free(text);
    else
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                                "text/plain; version=0.0.4; charset=utf-8");
    return response;
}

static struct MHD_Response *respond_static(const char *text)
{
    return MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text,
                                           MHD_RESPMEM_PERSISTENT);
}

static enum MHD_Result answer(void *context, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **state)
{
    (void)version;
    (void)upload;
    (void)upload_size;
    (void)state;
    unsigned code = MHD_HTTP_OK;
    struct MHD_Response *response;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0) {
        code = MHD_HTTP_METHOD_NOT_ALLOWED;
        response = respond_static("only GET\n");
    } else if (strcmp(url, "/metrics") == 0) {
        response = respond(context);
    } else {
        code = MHD_HTTP_NOT_FOUND;
        response = respond_static("only /metrics\n");
    }
    if (response == NULL)
        return MHD_NO;
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

/* ---- server ------------------------------------------------------------------------------- */

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static bool parse_address(const char *host, int port, union address *address)
{
    *address = (union address){0};
    if (strcmp(host, "localhost") == 0)
        host = "127.0.0.1";
    if (inet_pton(AF_INET, host, &address->four.sin_addr) == 1) {
        address->four.sin_family = AF_INET;
        address->four.sin_port = htons((uint16_t)port);
        return true;
    }
    if (inet_pton(AF_INET6, host, &address->six.sin6_addr) == 1) {
        address->six.sin6_family = AF_INET6;
        address->six.sin6_port = htons((uint16_t)port);
        return true;
    }
    return false;
}

static bool is_loopback(const union address *address)
{
    if (address->any.sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&address->six.sin6_addr);
    return ntohl(address->four.sin_addr.s_addr) >> 24 == 127;
}

/* A label value: quote, backslash and newline escaped. */
static void format_labels(struct metrics *metrics, const char *name)
{
    size_t used = (size_t)snprintf(metrics->labels, sizeof metrics->labels, "model_name=\"");
    for (; *name != '\0' && used + 4 < sizeof metrics->labels; name++) {
        if (*name == '"' || *name == '\\' || *name == '\n')
            metrics->labels[used++] = '\\';
        metrics->labels[used++] = *name == '\n' ? 'n' : *name;
    }
    metrics->labels[used++] = '"';
    metrics->labels[used] = '\0';
}

enum status metrics_open(const struct metrics_options *options, struct metrics **out,
                         struct error *error)
{
    union address address;
    if (!parse_address(options->host, options->port, &address))
        return error_set(error, STATUS_CONFIG, "--metrics-host: \"%s\" is not an address",
                         options->host);
    if (!is_loopback(&address) && !options->insecure)
        return error_set(
            error, STATUS_CONFIG,
            "--metrics-host: %s is not loopback: metrics have neither TLS nor a token, "
            "allow it with --insecure",
            options->host);
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics == NULL)
        return error_set(error, STATUS_NO_MEMORY, "metrics: out of memory");
    metrics->engine = options->engine;
    format_labels(metrics, options->model_name);
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_AUTO;
    if (address.any.sa_family == AF_INET6)
        flags |= MHD_USE_IPv6;
    metrics->server = MHD_start_daemon(flags, 0, NULL, NULL, answer, metrics, MHD_OPTION_SOCK_ADDR,
                                       &address.any, MHD_OPTION_CONNECTION_LIMIT, 64u,
                                       MHD_OPTION_CONNECTION_TIMEOUT, 10u, MHD_OPTION_END);
    if (metrics->server == NULL) {
        free(metrics);
        return error_set(error, STATUS_IO, "--metrics-port: cannot listen on %s port %d: %s",
                         options->host, options->port, strerror(errno));
    }
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(metrics->server, MHD_DAEMON_INFO_BIND_PORT);
    log_info("metrics on http://%s:%d/metrics", options->host, info ? info->port : options->port);
    *out = metrics;
    return STATUS_OK;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics == NULL)
        return;
    MHD_stop_daemon(metrics->server);
    free(metrics);
}
