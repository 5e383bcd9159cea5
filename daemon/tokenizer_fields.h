/* Checks of tokenizer.json's fields. Each failure names the field; the caller puts the file's name
 * in front. */
#ifndef JETD_DAEMON_TOKENIZER_FIELDS_H
#define JETD_DAEMON_TOKENIZER_FIELDS_H

#include <jansson.h>

#include "daemon/tokenizer_private.h"

/* tokenizer_fields.c: everything but the vocabulary. */
enum status fields_normalizer(const json_t *root, struct tokenizer *tokenizer, struct error *error);
enum status fields_pre_tokenizer(const json_t *root, struct tokenizer *tokenizer,
                                 struct error *error);
enum status fields_decoder(const json_t *root, struct error *error);
enum status fields_model(const json_t *model, struct error *error);
/* `object`.`name` must be a boolean equal to `wanted` where it is present. */
enum status field_flag(const json_t *object, const char *path, const char *name, bool wanted,
                       struct error *error);

/* The beginning of a name in the file, fit for an error's one line. */
struct field_name {
    char text[41];
};
struct field_name field_name(const char *name);

/* tokenizer_vocab.c */
enum status vocab_load(const json_t *model, const json_t *added, struct tokenizer *tokenizer,
                       struct error *error);

#endif
