/* From a request as the client wrote it to a request_spec: every field is checked here, before
 * anything is queued, and errors name the field. Pure but for the random seed and id. */
#ifndef JETD_DAEMON_RPC_VALIDATE_H
#define JETD_DAEMON_RPC_VALIDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/arena.h"
#include "daemon/base/status.h"
#include "daemon/request.h"
#include "daemon/tokenizer.h"
#include "jet/v1/generation.pb-c.h"
#include "partition/partition.h"

enum {
    RPC_STOP_IDS_MAX = REQUEST_STOP_IDS_MAX - 1, /* one is kept for a chat's end of turn */
    RPC_SALT_MAX = 256,
    RPC_ABORTS_MAX = 1024,
    RPC_LOGPROBS_MAX = SAMPLE_TOP_MAX,
};

/* What requests are checked against. */
struct rpc_model {
    const struct tokenizer *tokenizer; /* NULL: none; its ids are below `vocab`, see rank.c */
    int vocab;                         /* width of the logits */
    int max_model_len;
    struct sampling sampling; /* defaults; seed and biases unused */
    int32_t turn_end;         /* id of <|im_end|>, -1: none */
};

void rpc_model_init(struct rpc_model *model, const struct plan *plan,
                    const struct tokenizer *tokenizer);

/* Room for what a request of `bytes` on the wire is turned into. */
size_t rpc_request_room(size_t bytes);

/* Errors: INVALID_ARGUMENT, FAILED_PRECONDITION (text without a tokenizer), UNIMPLEMENTED
 * (sessions), RESOURCE_EXHAUSTED (the arena). Lists of the spec live in the arena. */
enum status rpc_validate_generate(const struct rpc_model *model,
                                  const Jet__V1__GenerateRequest *message, int64_t deadline,
                                  struct arena *arena, struct request_spec *spec,
                                  struct error *error);
enum status rpc_validate_score(const struct rpc_model *model, const Jet__V1__ScoreRequest *message,
                               int64_t deadline, struct arena *arena, struct request_spec *spec,
                               struct error *error);

/* ---- rpc_prompt.c: the parts that turn text and ids into a prompt ---- */

enum status rpc_encode_text(const struct rpc_model *model, ProtobufCBinaryData text, bool specials,
                            struct arena *arena, int32_t **ids, size_t *count, struct error *error);
enum status rpc_encode_chat(const struct rpc_model *model, const Jet__V1__Chat *chat,
                            bool generation_prompt, struct arena *arena, int32_t **ids,
                            size_t *count, struct error *error);
/* Ids as the client wrote them, each below the vocabulary; `field` names them in errors. */
enum status rpc_copy_ids(const struct rpc_model *model, const char *field, const uint32_t *from,
                         size_t count, struct arena *arena, int32_t **ids, struct error *error);
/* A prompt's length against the model's. */
enum status rpc_check_prompt(const struct rpc_model *model, const char *field, size_t count,
                             int reserve, struct error *error);

/* ---- rpc_convert.c ---- */

enum status rpc_tokenize(const struct rpc_model *model, const Jet__V1__TokenizeRequest *request,
                         struct arena *arena, int32_t **ids, size_t *count, struct error *error);
/* `most`: bytes that the text may have. */
enum status rpc_detokenize(const struct rpc_model *model, const Jet__V1__DetokenizeRequest *request,
                           size_t most, struct arena *arena, char **text, size_t *length,
                           struct error *error);
/* Whether every id can be a request's. */
enum status rpc_check_abort(const Jet__V1__AbortRequest *request, struct error *error);

/* ---- rpc_sampling.c ---- */

enum status rpc_validate_sampling(const struct rpc_model *model,
                                  const Jet__V1__SamplingParams *message, struct arena *arena,
                                  struct sampling *sampling, struct error *error);

#endif
