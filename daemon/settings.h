/* jetd's options, parsed: the one table behind the command line, environment, file and help. */
#ifndef JETD_DAEMON_SETTINGS_H
#define JETD_DAEMON_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/option.h"

struct settings {
    const char *config;
    /* model */
    const char *model, *served_model_name, *tokenizer, *load_format, *model_config;
    uint64_t seed;
    /* cluster */
    const char *device, *fabric;
    int tensor, pipeline, context;
    double heartbeat_timeout, step_timeout, load_timeout;
    /* capacity */
    int max_model_len, max_num_seqs, max_num_batched_tokens, block_size, max_queued_requests;
    uint64_t kv_blocks, memory;
    double gpu_memory_utilization;
    int threads;
    bool batch_invariant;
    const char *gemm_cache;
    /* service */
    const char *host;
    int port;
    const char *metrics_host;
    int metrics_port;
    bool insecure;
    const char *ssl_certfile, *ssl_keyfile, *ssl_ca_certs, *api_key_file;
    uint64_t max_message_bytes, outbox_bytes;
    double outbox_timeout, drain_timeout;
    /* what to do and say */
    bool plan, help, version, document;
    const char *log_level;
    bool log_json;
};

extern const struct option_table settings_table;

#endif
