/* jetctl: a client of jetd for the terminal and for scripts. Shared by the files of this folder. */
#ifndef JETD_CTL_H
#define JETD_CTL_H

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/base/option.h"
#include "daemon/base/status.h"
#include "jet/v1/generation.pb-c.h"

/* Documented in --help. */
enum {
    CTL_OK = 0,
    CTL_FAILED = 1,      /* the server answered with an error */
    CTL_USAGE = 2,       /* options, input files */
    CTL_UNREACHABLE = 3, /* no connection, or it broke */
    CTL_NOT_SERVING = 4, /* health */
};

struct ctl_settings {
    const char *address;
    bool tls;
    const char *ca, *cert, *key, *token, *server_name;
    double timeout; /* seconds; 0: none */
    bool json, help, version;
    /* input */
    const char *text, *file, *ids, *system, *service;
    bool special_tokens, chat;
    /* generation; "" is unset */
    const char *request_id, *temperature, *top_p, *top_k, *min_p, *repetition_penalty,
        *presence_penalty, *frequency_penalty, *seed, *logprobs;
    struct option_list stop;
    int max_new_tokens, min_new_tokens, n, priority;
    bool include_stop, ignore_eos, echo;
    const char *drain_timeout;
};

extern const struct option_table ctl_table;

/* ---- client.c ---- */

struct ctl_client;

/* Called with each message of the answer, which is gone at return. */
typedef void ctl_visit(void *context, const ProtobufCMessage *message);

struct ctl_call {
    const char *path;
    const ProtobufCMessage *request;
    const ProtobufCMessageDescriptor *response;
    ctl_visit *visit;
    void *context;
};

/* Returns CTL_OK or CTL_USAGE (files that cannot be read; said on stderr). */
int ctl_connect(const struct ctl_settings *settings, struct ctl_client **client);
void ctl_disconnect(struct ctl_client *client);
/* Runs a unary or server-streaming call to its end; errors are said on stderr. Returns an exit
 * code. */
int ctl_run(struct ctl_client *client, const struct ctl_call *call);

/* ---- input.c ---- */

/* Text from the argument, --file or standard input; malloc'd. NULL: said on stderr. */
char *ctl_read_text(const struct ctl_settings *settings, size_t *length);
/* "1,2 3" -> ids; malloc'd. NULL: said on stderr. */
uint32_t *ctl_read_ids(const char *text, size_t *count);

/* What generate and score are asked about. */
struct ctl_prompt {
    char *text; /* NULL: ids were given */
    size_t length;
    Jet__V1__TokenIds ids;
};

/* Ids from --ids, else text. False: said on stderr. */
bool ctl_read_prompt(const struct ctl_settings *settings, struct ctl_prompt *prompt);
void ctl_free_prompt(struct ctl_prompt *prompt);

/* Numbers that may be unset (""). False: said on stderr. */
bool ctl_float(const char *option, const char *text, bool *set, float *value);
bool ctl_unsigned(const char *option, const char *text, uint64_t most, bool *set, uint64_t *value);

static inline ProtobufCBinaryData ctl_bytes(const char *text, size_t length)
{
    return (ProtobufCBinaryData){.len = length, .data = (uint8_t *)(uintptr_t)text};
}

/* ---- commands ---- */

typedef int ctl_command(const struct ctl_settings *settings, struct ctl_client *client);

ctl_command ctl_generate, ctl_chat;                             /* generate.c */
ctl_command ctl_score, ctl_tokenize, ctl_detokenize, ctl_abort; /* text.c */
ctl_command ctl_info, ctl_load, ctl_health, ctl_drain;          /* control.c */

#endif
