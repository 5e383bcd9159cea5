/* Batch-size classes: few, and never far above what they are for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "partition/stage.h"

static void a_class_holds_its_counts(void **state)
{
    enum { MOST = 65536 };
    (void)state;
    for (int count = 0; count <= MOST; count++) {
        int size = class_of(count, MOST);
        assert_in_range(size, count, MOST);
        assert_int_equal(class_of(size, MOST), size);
        if (count > 0)
            assert_true(size >= class_of(count - 1, MOST));
        if (count <= 8)
            assert_int_equal(size, count);
        else
            assert_true(4 * (size - count) < count);
    }
    assert_int_equal(class_of(65, MOST), 80);
    assert_int_equal(class_of(257, MOST), 288);
}

static void none_is_above_the_limit(void **state)
{
    (void)state;
    for (int most = 1; most < 600; most++)
        for (int count = 0; count <= most; count++)
            assert_in_range(class_of(count, most), count, most);
    assert_int_equal(class_of(97, 100), 100);
}

static int classes_up_to(int most)
{
    int classes = 0;
    for (int count = 1; count <= most; count++)
        classes += class_of(count, most) == count;
    return classes;
}

static void classes_are_few(void **state)
{
    (void)state;
    assert_int_equal(classes_up_to(8), 8);
    assert_int_equal(classes_up_to(64), 20);
    assert_int_equal(classes_up_to(256), 32);
    assert_int_equal(classes_up_to(1024), 56);
    assert_int_equal(classes_up_to(4096), 104);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_class_holds_its_counts),
        cmocka_unit_test(none_is_above_the_limit),
        cmocka_unit_test(classes_are_few),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
