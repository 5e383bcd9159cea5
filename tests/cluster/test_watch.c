/* The watch: whom it names, in what order a verdict is logged, told and carried out, and the
 * deadline of what it does not see. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cluster/deadline.h"
#include "cluster/watch.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"

/* ---- whom it names -------------------------------------------------------------------------- */

enum { WORLD = 4 };

/* Rank 0's or another rank's view; `say` is beat r of rank r. */
struct view {
    const char *says; /* NULL: nobody is at fault */
    int rank;
    double closing;
    struct beat say[WORLD];
    double silent[WORLD];
};

#define LOADING(s) .phase = PHASE_LOADING, .seconds = (s)
#define STEP(n, s) .phase = PHASE_STEP, .step = (n), .seconds = (s)
#define IDLE(n) .phase = PHASE_IDLE, .step = (n)

static void assert_names(const struct view *view)
{
    struct peer peers[WORLD];
    int count = 0;
    for (int r = 0; r < WORLD; r++)
        if ((view->rank == 0) != (r == 0))
            peers[count++] = (struct peer){
                .rank = r,
                .left = view->say[r].leaving,
                .heard = 100 * CLOCK_SECOND - (int64_t)(view->silent[r] * (double)CLOCK_SECOND),
                .last = view->say[r],
            };
    struct evidence evidence = {
        .rank = view->rank,
        .own = view->say[view->rank],
        .peers = peers,
        .peer_count = count,
        .now = 100 * CLOCK_SECOND,
        .closing = view->closing,
        .limits = {.silence = 5, .step = 30, .load = 60, .close = 20},
    };
    struct verdict verdict;
    char text[160] = "nobody";
    if (verdict_find(&evidence, &verdict))
        verdict_text(&verdict, text, sizeof text);
    assert_string_equal(text, view->says != NULL ? view->says : "nobody");
}

static void silence_and_death(void **state)
{
    (void)state;
    const struct view views[] = {
        {.closing = -1, .silent = {0, 4.9, 4.9, 4.9}},
        {"rank 2 stalled in step 7 (no sign of life for 5.5 s)", .closing = -1,
         .say[2] = {STEP(7, 1)}, .silent[2] = 5.5},
        {.closing = -1, .say[2] = {.leaving = 1}, .silent[2] = 5.5},
        {"rank 0 stalled before the first step (no sign of life for 6.0 s)", .rank = 1,
         .closing = -1, .silent[0] = 6},
        {.rank = 1, .closing = -1, .silent[2] = 6},
        {"rank 3 died in step 7", .closing = -1, .say = {[0] = {.dead = 4}, [3] = {STEP(7, 1)}}},
        {"rank 3 died while loading", .closing = -1,
         .say = {[2] = {.dead = 4}, [3] = {LOADING(1)}}},
        {.rank = 1, .closing = -1, .say = {[1] = {.dead = 4}}},
        {"rank 0 died after step 6", .rank = 1, .closing = -1,
         .say = {[0] = {IDLE(6)}, [1] = {.dead = 1}}},
    };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        assert_names(&views[i]);
}

static void long_steps(void **state)
{
    (void)state;
    const struct beat waits = {STEP(7, 31), .waiting = 1, .transfers = 9};
    const struct view views[] = {
        {.closing = -1, .say = {{STEP(7, 29)}, {STEP(7, 29)}, {STEP(7, 29)}, {STEP(7, 29)}}},
        {"rank 1 stalled in step 7 (it has been in it for 31.0 s)", .closing = -1,
         .say = {waits, {STEP(7, 31)}, waits, waits}},
        {"rank 0 stalled in step 7 (it has been in it for 31.0 s)", .closing = -1,
         .say = {{STEP(7, 31)}, waits, waits, waits}},
        {"rank 3 stalled in step 7 (it has been in it for 31.0 s)", .closing = -1,
         .say = {waits, waits, waits, {STEP(7, 31), .waiting = 1, .transfers = 8}}},
        /* between steps: it took the others' time, not its own */
        {"rank 2 stalled after step 6 (the next one has waited for it for 31.0 s)", .closing = -1,
         .say = {waits, waits, {IDLE(6)}, waits}},
        /* done with the step, and waits for the next: not the one */
        {"rank 3 stalled in step 7 (it has been in it for 31.0 s)", .closing = -1,
         .say = {waits, waits, {IDLE(7), .waiting = 1}, {STEP(7, 31)}}},
        /* rank 0 may rest between steps */
        {"rank 1 stalled in step 7 (it has been in it for 31.0 s)", .closing = -1,
         .say = {{IDLE(7)},
                 {STEP(7, 31), .waiting = 1},
                 {IDLE(7), .waiting = 1},
                 {IDLE(7), .waiting = 1}}},
        {.closing = -1, .say = {{IDLE(7)}, {IDLE(7)}, {IDLE(7)}, {IDLE(7)}}},
        {.rank = 1, .closing = -1, .say = {waits, {STEP(7, 31)}, waits, waits}},
    };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        assert_names(&views[i]);
}

static void long_loads(void **state)
{
    (void)state;
    const struct beat waits = {LOADING(61), .waiting = 1, .transfers = 2};
    const struct view views[] = {
        {.closing = -1, .say = {{LOADING(59)}, {LOADING(59)}, {LOADING(59)}, {LOADING(59)}}},
        {"rank 2 stalled while loading (no progress for 61.0 s)", .closing = -1,
         .say = {waits, waits, {LOADING(61)}, waits}},
        {"rank 0 stalled while loading (no progress for 61.0 s)", .closing = -1,
         .say = {{LOADING(61)}, waits, waits, waits}},
        /* those who wait for a rank that comes forward are not to blame */
        {.closing = -1, .say = {waits, waits, {LOADING(1)}, waits}},
        {"rank 2 stalled while loading (no progress for 61.0 s)", .closing = -1,
         .say = {waits, {LOADING(1)}, {LOADING(61)}, waits}},
        /* the last one has just come: their beats are older than it */
        {.closing = -1, .say = {waits, waits, {IDLE(0)}, waits}},
        /* all wait: the one furthest behind */
        {"rank 3 stalled while loading (no progress for 61.0 s)", .closing = -1,
         .say = {waits, waits, waits, {LOADING(61), .waiting = 1, .transfers = 1}}},
        /* a step does not wait for who loads, nor the other way round */
        {.closing = -1, .say = {{STEP(1, 29)}, {STEP(1, 29)}, {LOADING(2)}, {STEP(1, 29)}}},
        {.rank = 1, .closing = -1, .say = {waits, {LOADING(61)}, waits, waits}},
    };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        assert_names(&views[i]);
}

static void closing(void **state)
{
    (void)state;
    const struct beat left = {.step = 9, .closing = 1, .leaving = 1};
    const struct view views[] = {
        {.closing = 19, .say = {{IDLE(9)}, left, {IDLE(9)}, left}},
        {"rank 2 stalled after step 9 (the others have been closing for 21.0 s)", .closing = 21,
         .say = {{IDLE(9)}, left, {IDLE(9)}, left}},
        /* rank 0 waits for another: not this rank's to judge */
        {.rank = 1, .closing = 21, .say = {[0] = {IDLE(9), .closing = 1}}},
        {"rank 0 stalled after step 9 (the others have been closing for 21.0 s)", .rank = 1,
         .closing = 21, .say = {[0] = {IDLE(9)}}},
    };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        assert_names(&views[i]);
}

/* Rank 0 was stopped and goes on: time has passed for all, only silence and death count. */
static void held_up(void **state)
{
    (void)state;
    struct peer peer = {.rank = 1, .last = {STEP(7, 31)}};
    struct evidence evidence = {.own = {STEP(7, 31)},
                                .peers = &peer,
                                .peer_count = 1,
                                .closing = -1,
                                .held_up = true,
                                .limits = {.silence = 5, .step = 30, .load = 60, .close = 20}};
    struct verdict verdict;
    assert_false(verdict_find(&evidence, &verdict));
    evidence.held_up = false;
    assert_true(verdict_find(&evidence, &verdict));
    evidence.held_up = true;
    evidence.now = 6 * CLOCK_SECOND;
    assert_true(verdict_find(&evidence, &verdict));
    assert_int_equal(verdict.kind, VERDICT_SILENT);
}

/* ---- the order of things -------------------------------------------------------------------- */

/* Peers that beat, and answer a verdict where `answers`. */
struct fake {
    bool answers, left;     /* left: its one beat before the verdict is the leaving one */
    struct verdict verdict; /* rank 0's, to a follower */
    atomic_int verdicts_told, agreed_told, announced, ended;
    atomic_bool told_first, answered;
    char text[160];
    int64_t announced_at, ended_at;
};

static bool fake_tell(void *context, int peer, const struct beat *beat)
{
    struct fake *fake = context;
    (void)peer;
    if (beat->verdict.kind == VERDICT_NONE && !beat->agreed)
        return true;
    if (!atomic_load(&fake->announced))
        atomic_store(&fake->told_first, true);
    atomic_fetch_add(beat->verdict.kind != VERDICT_NONE ? &fake->verdicts_told : &fake->agreed_told,
                     1);
    return true;
}

static bool fake_hear(void *context, int peer, struct beat *beat)
{
    struct fake *fake = context;
    static _Thread_local bool again[3]; /* one beat a turn and peer */
    again[peer] = !again[peer];
    *beat = (struct beat){.step = 7, .phase = PHASE_STEP, .seconds = 1};
    beat->leaving = fake->left && peer == 1 && !atomic_load(&fake->announced);
    beat->agreed = fake->answers && atomic_load(&fake->verdicts_told) > 0;
    if (peer == 0)
        beat->verdict = fake->verdict;
    if (again[peer] && peer == 1 && beat->agreed)
        atomic_store(&fake->answered, true);
    return again[peer];
}

static int fake_dead(void *context)
{
    (void)context;
    return 2;
}

static void fake_announce(void *context, const char *why)
{
    struct fake *fake = context;
    snprintf(fake->text, sizeof fake->text, "%s", why);
    fake->announced_at = clock_now();
    atomic_fetch_add(&fake->announced, 1);
}

static void fake_end(void *context)
{
    struct fake *fake = context;
    fake->ended_at = clock_now();
    atomic_fetch_add(&fake->ended, 1);
}

/* Runs rank `rank`'s watch to its end. */
static void run_watch(struct fake *fake, int rank)
{
    struct watch_link link = {
        .context = fake,
        .tell = fake_tell,
        .hear = fake_hear,
        .dead = rank == 0 ? fake_dead : NULL,
        .announce = fake_announce,
        .end = fake_end,
        .together = true,
    };
    struct fabric_options options = {.mesh = {3, 1, 1}};
    struct error error = {.status = STATUS_OK};
    struct watch *watch;
    assert_int_equal(watch_open(&options, rank, 3, &link, &watch, &error), STATUS_OK);
    while (!atomic_load(&fake->ended))
        clock_sleep(CLOCK_SECOND / 1000);
    watch_close(watch);
    assert_int_equal(atomic_load(&fake->announced), 1);
    assert_int_equal(atomic_load(&fake->ended), 1);
    assert_string_equal(fake->text, "rank 2 died in step 7");
    assert_false(atomic_load(&fake->told_first));
}

static void verdict_is_logged_told_and_answered(void **state)
{
    (void)state;
    struct fake fake = {.answers = true};
    run_watch(&fake, 0);
    assert_in_range(atomic_load(&fake.verdicts_told), 2, 6); /* two peers, few rounds */
}

static void verdict_is_told_to_who_left(void **state)
{
    (void)state;
    struct fake fake = {.answers = true, .left = true};
    run_watch(&fake, 0);
    assert_true(atomic_load(&fake.answered));
    assert_in_range(atomic_load(&fake.verdicts_told), 2, 6);
}

static void verdict_waits_three_ticks_for_answers(void **state)
{
    (void)state;
    struct fake fake = {.answers = false};
    run_watch(&fake, 0);
    assert_true(fake.ended_at - fake.announced_at >= CLOCK_SECOND * 6 / 10);
}

static void follower_logs_then_answers(void **state)
{
    (void)state;
    struct fake fake = {
        .verdict = {.kind = VERDICT_DEAD, .rank = 2, .phase = PHASE_STEP, .step = 7}};
    run_watch(&fake, 1);
    assert_true(atomic_load(&fake.agreed_told) > 0);
    assert_int_equal(atomic_load(&fake.verdicts_told), 0);
}

/* ---- while loading -------------------------------------------------------------------------- */

/* Beats of one that waits and of one whose wait has just ended. */
struct loader {
    atomic_int beats, late; /* late: said not to wait, and to be without progress for long */
};

static bool loader_tell(void *context, int peer, const struct beat *beat)
{
    struct loader *loader = context;
    (void)peer;
    atomic_fetch_add(&loader->beats, 1);
    if (beat->phase == PHASE_LOADING && !beat->waiting && beat->seconds >= 0.5)
        atomic_fetch_add(&loader->late, 1);
    return true;
}

static bool loader_hear(void *context, int peer, struct beat *beat)
{
    (void)context;
    (void)peer;
    *beat = (struct beat){.phase = PHASE_LOADING};
    return false;
}

/* A rank that waited for long and goes on has made progress. */
static void end_of_a_wait_is_progress(void **state)
{
    (void)state;
    struct loader loader = {0};
    struct watch_link link = {.context = &loader, .tell = loader_tell, .hear = loader_hear};
    struct fabric_options options = {.mesh = {2, 1, 1}, .heartbeat_timeout = 60};
    struct error error = {.status = STATUS_OK};
    struct watch *watch;
    assert_int_equal(watch_open(&options, 1, 2, &link, &watch, &error), STATUS_OK);
    watch_wait_begin(watch);
    watch_load_mark(watch);
    clock_sleep(CLOCK_SECOND / 2);
    watch_wait_end(watch);
    int heard = atomic_load(&loader.beats);
    watch_close(watch); /* a last beat at once, before another mark */
    assert_true(atomic_load(&loader.beats) > heard);
    assert_int_equal(atomic_load(&loader.late), 0);
}

/* ---- ends of a process ---------------------------------------------------------------------- */

static int exit_code_of(void (*run)(void))
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        run();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expire(void)
{
    deadline_begin(0.05, "meet");
    clock_sleep(60 * CLOCK_SECOND);
}

static void keep(void)
{
    struct deadline *deadline = deadline_begin(60, "meet");
    deadline_end(deadline);
    deadline_end(NULL);
}

static void deadline_ends_the_process(void **state)
{
    (void)state;
    assert_int_equal(exit_code_of(keep), 0);
    assert_int_equal(exit_code_of(expire), 1);
}

/* One step of `seconds`, or loading of that long, by a rank that has no other to wait for. */
static void run_alone(double seconds, bool loading)
{
    struct fabric_options options = {.mesh = {1, 1, 1}, .step_timeout = 0.3, .load_timeout = 0.3};
    struct error error = {.status = STATUS_OK};
    struct fabric *fabric;
    if (fabric_open_self(&options, &fabric, &error) != STATUS_OK)
        _exit(3);
    if (loading)
        fabric_load_mark(fabric);
    else
        fabric_step_begin(fabric, 7);
    clock_sleep((int64_t)(seconds * (double)CLOCK_SECOND));
    fabric_load_end(fabric);
    clock_sleep(CLOCK_SECOND / 2); /* idle for longer than a step may be */
    fabric_close(fabric);
}

static void short_step(void)
{
    run_alone(0.01, false);
}

static void endless_step(void)
{
    run_alone(60, false);
}

static void endless_load(void)
{
    run_alone(60, true);
}

static void a_rank_alone_is_watched_too(void **state)
{
    (void)state;
    assert_int_equal(exit_code_of(short_step), 0);
    assert_int_equal(exit_code_of(endless_step), 1);
    assert_int_equal(exit_code_of(endless_load), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silence_and_death),
        cmocka_unit_test(long_steps),
        cmocka_unit_test(long_loads),
        cmocka_unit_test(closing),
        cmocka_unit_test(held_up),
        cmocka_unit_test(verdict_is_logged_told_and_answered),
        cmocka_unit_test(verdict_is_told_to_who_left),
        cmocka_unit_test(verdict_waits_three_ticks_for_answers),
        cmocka_unit_test(follower_logs_then_answers),
        cmocka_unit_test(end_of_a_wait_is_progress),
        cmocka_unit_test(deadline_ends_the_process),
        cmocka_unit_test(a_rank_alone_is_watched_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
