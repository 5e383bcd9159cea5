/* JSON-lines test data, and the tokenizer they belong to. */
#ifndef JETD_TESTS_TOKENIZER_VECTORS_H
#define JETD_TESTS_TOKENIZER_VECTORS_H

#include <jansson.h>

#include "daemon/tokenizer_private.h"

/* Calls `check` for each line of JETD_TEST_DATA/tokenizer/<name>; how many there were. */
int vectors_each(const char *name, void (*check)(const json_t *line, int number));

/* The tokenizer of JETD_TEST_DATA/tokenizer, loaded once for the whole program. */
int vectors_setup(void **state);
int vectors_teardown(void **state);
extern struct tokenizer *vectors_tokenizer;

/* Encodes and compares with a JSON array of ids; prints what differs. */
void vectors_assert_ids(const json_t *ids, const int32_t *got, size_t count, int number);

#endif
