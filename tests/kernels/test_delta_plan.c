/* Where the delta rule cuts long sequences: never where the device is full, never into crumbs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "kernels/cuda/delta_plan.h"

enum { SM = 132 };

/* Segments of the longest of `sequences` of `chunks` each; printed, to be read. */
static int segments(const char *what, int heads, int d_k, int sequences, int chunks)
{
    struct delta_load load = {.chains = heads * 4,
                              .across = heads * ((d_k + 63) / 64),
                              .chunks = (int64_t)sequences * chunks,
                              .longest = chunks,
                              .multiprocessors = SM};
    int each = delta_segment_chunks(&load), count = (chunks + each - 1) / each;

    assert_true(each >= 1 && each <= chunks);
    assert_true(count <= DELTA_SEGMENTS_MAX);
    assert_true(count == 1 || each >= DELTA_SEGMENT_CHUNKS);
    printf("%-4s %3d sequences of %4d chunks: %2d segments of %d\n", what, sequences, chunks, count,
           each);
    return count;
}

static void one_long_sequence_is_cut(void **state)
{
    (void)state;
    assert_in_range(segments("4B", 16, 128, 1, 512), 3, 8);
    assert_in_range(segments("4B", 16, 128, 1, 128), 2, 8);
    assert_in_range(segments("2B", 12, 96, 1, 512), 3, 10);
    assert_in_range(segments("4B/2", 8, 128, 1, 512), 4, 16);
    assert_in_range(segments("4B", 16, 128, 1, 16384), 3, 8);
}

static void a_full_device_is_left_alone(void **state)
{
    (void)state;
    for (int sequences = 4; sequences <= 64; sequences *= 2) {
        assert_int_equal(segments("4B", 16, 128, sequences, 512), 1);
        assert_int_equal(segments("2B", 12, 96, 2 * sequences, 512), 1);
    }
    assert_int_equal(segments("4B", 16, 128, 8, 128), 1);
}

static void short_sequences_are_whole(void **state)
{
    (void)state;
    for (int chunks = 1; chunks < 2 * DELTA_SEGMENT_CHUNKS; chunks++)
        assert_int_equal(segments("4B", 16, 128, 1, chunks), 1);
}

/* Beside one long prompt, short ones do not count as much. */
static void the_longest_decides(void **state)
{
    struct delta_load load = {
        .chains = 64, .across = 32, .chunks = 512 + 3 * 4, .longest = 512, .multiprocessors = SM};

    (void)state;
    assert_true(delta_segment_chunks(&load) < 512);
    load = (struct delta_load){.chains = 64, .across = 32, .multiprocessors = SM};
    assert_int_equal(delta_segment_chunks(&load), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_long_sequence_is_cut),
        cmocka_unit_test(a_full_device_is_left_alone),
        cmocka_unit_test(short_sequences_are_whole),
        cmocka_unit_test(the_longest_decides),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
