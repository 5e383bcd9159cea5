/* Limits of control groups, from texts as kernels write them and from trees built here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "daemon/base/cgroup.h"

static void limits_are_read(void **state)
{
    (void)state;
    assert_int_equal(cgroup_limit_parse("536870912\n"), 536870912);
    assert_int_equal(cgroup_limit_parse("0\n"), 0);
    assert_int_equal(cgroup_limit_parse("9223372036854771712\n"), INT64_C(9223372036854771712));
    const char *none[] = {"max\n", "", "\n", "-1\n", " 5", "99999999999999999999999\n"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_true(cgroup_limit_parse(none[i]) == UINT64_MAX);
}

static void groups_are_found(void **state)
{
    static const char hybrid[] =
        "12:pids:/a\n5:cpu,memory:/docker/17\n1:name=systemd:/b\n0::/u:1\n";
    char path[32];
    (void)state;
    assert_true(cgroup_path_parse(hybrid, NULL, path, sizeof path));
    assert_string_equal(path, "/u:1");
    assert_true(cgroup_path_parse(hybrid, "memory", path, sizeof path));
    assert_string_equal(path, "/docker/17");
    assert_true(cgroup_path_parse("0::/", NULL, path, sizeof path)); /* no last newline */
    assert_string_equal(path, "/");
    assert_false(cgroup_path_parse("0::/\n", "memory", path, sizeof path));
    assert_false(cgroup_path_parse("3:memory_x:/a\n2:emory:/b\n", "memory", path, sizeof path));
    assert_false(cgroup_path_parse("5:memory:/docker/17\n", "memory", path, 10)); /* no room */
    assert_true(cgroup_path_parse("5:memory:/docker/17\n", "memory", path, 11));
    const char *broken[] = {"", "\n\n", "0", "0:", "memory", "0:\n:/x"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_false(cgroup_path_parse(broken[i], "memory", path, sizeof path));
}

/* ---- whole trees ----------------------------------------------------------------------------- */

static char root[] = "/tmp/test_cgroup_XXXXXX";

/* Writes root/name, and the folders above it. */
static void put(const char *name, const char *text)
{
    char path[256];
    assert_true(snprintf(path, sizeof path, "%s%s", root, name) < (int)sizeof path);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        mkdir(path, 0700);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void the_least_of_all_groups_counts(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(root));
    assert_true(cgroup_memory_limit(root) == UINT64_MAX); /* no /proc */
    put("/proc/self/cgroup", "0::/pod/box\n");
    assert_true(cgroup_memory_limit(root) == UINT64_MAX); /* no files */
    put("/sys/fs/cgroup/pod/box/memory.max", "max\n");
    assert_true(cgroup_memory_limit(root) == UINT64_MAX);
    put("/sys/fs/cgroup/pod/memory.max", "4000000\n");
    assert_int_equal(cgroup_memory_limit(root), 4000000); /* the one above */
    put("/sys/fs/cgroup/pod/box/memory.max", "3000000\n");
    assert_int_equal(cgroup_memory_limit(root), 3000000);
    /* v1 in a container: the host's path does not exist, the mount is the container's */
    put("/proc/self/cgroup", "4:memory:/docker/17\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
    assert_int_equal(cgroup_memory_limit(root), 2000000);
    put("/sys/fs/cgroup/memory/docker/17/memory.limit_in_bytes", "1000000\n");
    assert_int_equal(cgroup_memory_limit(root), 1000000);
    put("/sys/fs/cgroup/memory.max", "500000\n");
    assert_int_equal(cgroup_memory_limit(root), 500000);
}

static int remove_tree(void **state)
{
    char command[64];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_are_read),
        cmocka_unit_test(groups_are_found),
        cmocka_unit_test(the_least_of_all_groups_counts),
    };
    return cmocka_run_group_tests(tests, NULL, remove_tree);
}
