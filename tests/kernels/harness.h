/* What a kernel test stands on: a device of the back end under test (environment JETD_TEST_DEVICE,
 * cpu by default; batch-invariant unless JETD_TEST_FAST is set), fresh random numbers
 * (JETD_TEST_SEED, printed), and host values that travel to and from it. Host numbers are float;
 * "activations" are rounded to the back end's dtype when they are made, so that the float64
 * formulas see what the kernel sees. All memory goes at the end of a test. */
#ifndef JETD_TESTS_KERNELS_HARNESS_H
#define JETD_TESTS_KERNELS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/kernels.h"

struct harness {
    const struct backend *backend;
    struct device *device;
    bool exact;      /* fp32 and bit-stable: the cpu */
    bool invariant;  /* a row has the same bits in any batch: the cpu, and others when asked */
    void *kept[512]; /* device memory */
    int kept_count;
    void *host[512];
    int host_count;
};

extern struct harness h;

/* cmocka group and test fixtures. */
int harness_open(void **state);
int harness_close(void **state);
int harness_sweep(void **state); /* test teardown: frees what the test made */

/* Runs a group between them: those whose names match the pattern JETD_TEST_ONLY (with * and ?), or
 * all. */
#define harness_run(tests)                                                                         \
    (cmocka_set_test_filter(getenv("JETD_TEST_ONLY")),                                             \
     cmocka_run_group_tests(tests, harness_open, harness_close))

/* Random: `spread` is the standard deviation. */
double random_unit(void);          /* [0, 1) */
int random_int(int low, int high); /* low .. high, both possible */
float *random_activations(size_t count, double spread);
float *random_floats(size_t count, double spread);
void round_activations(float *values, size_t count); /* to the back end's dtype */
void random_shuffle(int32_t *values, int count);

/* Zeroed host memory until the end of the test. */
void *host_memory(size_t count, size_t size);

/* To the device. */
void *put(const float *values, size_t count);  /* as activations */
void *put_raw(const void *from, size_t bytes); /* as it is */
float *put_floats(const float *values, size_t count);
int32_t *put_ints(const int32_t *values, size_t count);
void *poison(size_t count);     /* activations, all NaN */
void *poison_raw(size_t bytes); /* all bits one */

/* Back, to host memory. */
float *get(const void *from, size_t count);
float *get_floats(const float *from, size_t count);
void *get_raw(const void *from, size_t bytes);

#define MUST(call) assert_int_equal((call), STATUS_OK)

/* Relative Frobenius error of `got` <= `bound` on an exact back end, <= `loose` on another; nothing
 * may be NaN. */
void assert_close(const char *what, const float *got, const double *want, size_t count,
                  double bound, double loose);
/* The same relative to `size`, a norm: for few values that may cancel to nearly nothing. */
void assert_close_for(const char *what, const float *got, const double *want, size_t count,
                      double size, double bound, double loose);
void assert_same_bits(const float *a, const float *b, size_t count);

/* A ragged batch on host and device. */
struct sequence {
    int context, tokens;
};

/* Sequences with one token must come first. Slots are shuffled out of `slots`. */
struct ragged *make_batch(const struct sequence *sequence, int sequences, int slots);
/* The same with given slots. */
struct ragged *make_batch_at(const struct sequence *sequence, int sequences, const int32_t *slot);

#endif
