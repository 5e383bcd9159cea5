/* A fixture: a loadable checkpoint and what a float64 implementation of its formulas gives. Read by
 * a small safetensors reader of its own, so that the reader under test is not its own witness. */
#ifndef JETD_TESTS_GOLDEN_FIXTURE_H
#define JETD_TESTS_GOLDEN_FIXTURE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fixture {
    char folder[512];
    unsigned char *bytes; /* of expected.safetensors */
    size_t data;          /* where the data begin */
    json_t *header;
    int prompt_count, greedy_count, vocab;
    const int32_t *prompt, *greedy;
    const float *logits; /* [prompt_count, vocab] */
    double *logprobs;    /* their log-softmax */
};

/* Ends the program with a message when the fixture cannot be read. */
struct fixture *fixture_open(const char *folder);
void fixture_close(struct fixture *fixture);
/* NULL: absent. `count`: numbers in it. */
const float *fixture_tensor(const struct fixture *fixture, const char *name, size_t *count);
/* Expected log-probability of `id` at `position`. */
double fixture_logprob(const struct fixture *fixture, int position, int id);

#endif
