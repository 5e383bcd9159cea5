/* The guard of preset dev: an allocation inside a step aborts, one outside does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/guard.h"

/* How a child ends that allocates, inside a guarded section or after it. */
static int child_signal(int inside)
{
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        guard_enter("a test's step");
        if (!inside)
            guard_leave();
        void *volatile memory = malloc(16);
        free(memory);
        _exit(0);
    }
    int state = 0;
    assert_int_equal(waitpid(child, &state, 0), child);
    return WIFSIGNALED(state) ? WTERMSIG(state) : 0;
}

static void allocation_in_a_step_aborts(void **state)
{
    (void)state;
    assert_int_equal(child_signal(1), SIGABRT);
    assert_int_equal(child_signal(0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(allocation_in_a_step_aborts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
