/* Byte-level BPE from tokenizer.json (Qwen2.5's family): text <-> ids, immutable after load and
 * shared by all threads. Linear time (n log n in the longest word) on any input. */
#ifndef JETD_DAEMON_TOKENIZER_H
#define JETD_DAEMON_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/arena.h"
#include "daemon/base/status.h"

struct tokenizer;

/* Reads tokenizer.json of a checkpoint folder.
 * STATUS_NOT_FOUND: there is no tokenizer.json. Others name file and field. */
enum status tokenizer_load(const char *folder, struct tokenizer **tokenizer, struct error *error);
enum status tokenizer_parse(const char *name, const char *text, size_t length,
                            struct tokenizer **tokenizer, struct error *error);
void tokenizer_free(struct tokenizer *tokenizer);

/* One more than the largest id that has a token: ids from here on are never sampled. */
int tokenizer_size(const struct tokenizer *tokenizer);
/* The id of an added token's exact text; -1: none. */
int32_t tokenizer_special(const struct tokenizer *tokenizer, const char *text);

/* `text` must be valid UTF-8 (STATUS_INVALID_ARGUMENT with the byte offset otherwise).
 * specials: added tokens in the text become their ids; otherwise they are plain text.
 * ids [*count] in the arena (STATUS_RESOURCE_EXHAUSTED: the arena's limit). */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length,
                             bool specials, struct arena *arena, int32_t **ids, size_t *count,
                             struct error *error);
/* Tokens that a text of so many bytes has at least, by arithmetic: most texts have many more. */
size_t tokenizer_least_tokens(const struct tokenizer *tokenizer, size_t bytes);
/* UTF-8 text of ids; broken sequences become U+FFFD as HF does; ids without a token give nothing.
 * skip_special drops tokens marked special. */
enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                             bool skip_special, struct arena *arena, char **text, size_t *length,
                             struct error *error);
/* The bytes of their tokens together: tokenizer_decode's text, but for broken sequences. */
size_t tokenizer_raw_bytes(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                           bool skip_special);
/* The raw bytes of one token (may be part of a character); *length 0 when it has none. */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, int32_t id, bool skip_special,
                            size_t *length);

struct chat_message {
    const char *role, *content; /* role: system, user, assistant or tool; content may be NULL */
    size_t role_length, content_length;
    const char *tool_calls; /* an assistant's: a JSON array, or NULL */
    size_t tool_calls_length;
};

/* ChatML as Qwen2.5's template renders it (default system prompt, generation prompt), straight to
 * ids: control tokens come from the template only, text in `content` never becomes one.
 * INVALID_ARGUMENT names the message and field; FAILED_PRECONDITION: the vocabulary lacks ChatML's
 * tokens. */
enum status tokenizer_chat(const struct tokenizer *tokenizer, const struct chat_message *messages,
                           size_t count, bool generation_prompt, struct arena *arena, int32_t **ids,
                           size_t *id_count, struct error *error);

/* The same with `tools`, a JSON array of function descriptions, or NULL. */
enum status tokenizer_chat_tools(const struct tokenizer *tokenizer,
                                 const struct chat_message *messages, size_t count,
                                 const char *tools, size_t tools_length, bool generation_prompt,
                                 struct arena *arena, int32_t **ids, size_t *id_count,
                                 struct error *error);

/* ---- utf8.c ---- */

/* Offset of the first byte that is not part of valid UTF-8, or `length` when all is well. */
size_t utf8_invalid(const char *text, size_t length);

/* ---- stream.c: ids of one output, incrementally, to text and stops ---- */

struct stream;
struct stop_string; /* request.h */

/* Stop strings made ready to be looked for, read by any number of streams at once. They outlive it,
 * and it outlives the streams. NULL: out of memory, or one is longer than 65535 bytes. */
struct stops;
struct stops *stops_create(const struct stop_string *strings, int count);
void stops_destroy(struct stops *stops); /* NULL is fine */

struct stream_options {
    const struct tokenizer *tokenizer;
    const struct stops *stops; /* NULL: none */
    bool include_stop;         /* the matched stop string stays in the text */
    int min_tokens;            /* a stop string that these complete does not count */
};

struct stream *stream_create(const struct stream_options *options);
void stream_destroy(struct stream *stream);
/* Adds one token. `*text` (valid until the next call) gets what is certain now: whole UTF-8
 * characters that no stop string can still claim. `*matched` >= 0: that stop string is complete;
 * the text before it (or with it) was released and the stream is at its end: further tokens give
 * nothing. The stop string that is complete first wins, the longest among several that end at the
 * same character: tokens' borders play no part. With min_tokens it is the first that a later token
 * completes, though it may have begun before. */
enum status stream_push(struct stream *stream, int32_t id, const char **text, size_t *length,
                        int *matched);
/* The end without a stop: releases what was held back, U+FFFD for an unfinished character. */
enum status stream_finish(struct stream *stream, const char **text, size_t *length);

#endif
