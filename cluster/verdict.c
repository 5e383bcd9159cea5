#include "cluster/verdict.h"

#include <stdio.h>

static bool condemn(struct verdict *verdict, enum verdict_kind kind, int rank,
                    const struct beat *beat, double seconds)
{
    *verdict = (struct verdict){
        .kind = kind, .rank = rank, .phase = beat->phase, .step = beat->step, .seconds = seconds};
    return true;
}

static double seconds_since(const struct evidence *evidence, int64_t then)
{
    return (double)(evidence->now - then) * 1e-9;
}

/* A process that ended without leaving. Only rank 0 knows everyone's step, so others tell it. */
static bool judge_death(const struct evidence *evidence, struct verdict *verdict)
{
    int dead = evidence->own.dead;
    for (int i = 0; i < evidence->peer_count && dead == 0 && evidence->rank == 0; i++)
        dead = evidence->peers[i].last.dead;
    for (int i = 0; i < evidence->peer_count && dead != 0; i++) {
        const struct peer *peer = &evidence->peers[i];
        if (peer->rank == dead - 1 && !peer->left)
            return condemn(verdict, VERDICT_DEAD, peer->rank, &peer->last, 0);
    }
    return false;
}

static bool judge_silence(const struct evidence *evidence, struct verdict *verdict)
{
    for (int i = 0; i < evidence->peer_count; i++) {
        const struct peer *peer = &evidence->peers[i];
        double silent = seconds_since(evidence, peer->heard);
        if (!peer->left && silent > evidence->limits.silence)
            return condemn(verdict, VERDICT_SILENT, peer->rank, &peer->last, silent);
    }
    return false;
}

/* ---- by what the beats say; rank 0 only ----------------------------------------------------- */

/* Index -1 is rank 0 itself; NULL: this one left. */
static const struct beat *beat_at(const struct evidence *evidence, int index)
{
    if (index < 0)
        return &evidence->own;
    return evidence->peers[index].left ? NULL : &evidence->peers[index].last;
}

static int rank_at(const struct evidence *evidence, int index)
{
    return index < 0 ? evidence->rank : evidence->peers[index].rank;
}

/* Whether `a` rather than `b` is what the others wait for. */
static bool holds_up(const struct beat *a, const struct beat *b)
{
    if (a->waiting != b->waiting)
        return a->waiting < b->waiting;
    if (a->step != b->step)
        return a->step < b->step;
    if (a->phase != b->phase)
        return a->phase > b->phase;
    return a->transfers < b->transfers;
}

/* Ranks that wait for a slow one look as busy as that one: name the one behind. It may be between
 * steps, where rank 0 alone has a right to be. */
static bool judge_slowness(const struct evidence *evidence, struct verdict *verdict)
{
    const struct beat *behind = NULL;
    double longest = 0;
    int rank = 0;
    for (int i = -1; i < evidence->peer_count; i++) {
        const struct beat *beat = beat_at(evidence, i);
        if (beat == NULL || beat->phase == PHASE_LOADING || (i < 0 && beat->phase == PHASE_IDLE))
            continue;
        if (beat->phase == PHASE_STEP && beat->seconds > longest)
            longest = beat->seconds;
        if (behind == NULL || holds_up(beat, behind)) {
            behind = beat;
            rank = rank_at(evidence, i);
        }
    }
    if (longest <= evidence->limits.step)
        return false;
    return condemn(verdict, VERDICT_SLOW, rank, behind,
                   behind->phase == PHASE_STEP ? behind->seconds : longest);
}

/* Who waits is to blame only when nobody at all has come forward for as long. */
static bool judge_loading(const struct evidence *evidence, struct verdict *verdict)
{
    const struct beat *behind = NULL;
    bool all_late = true;
    int rank = 0;
    for (int i = -1; i < evidence->peer_count; i++) {
        const struct beat *beat = beat_at(evidence, i);
        if (beat == NULL)
            continue;
        bool late = beat->seconds > evidence->limits.load;
        all_late = all_late && late;
        if (late && beat->phase == PHASE_LOADING && (behind == NULL || holds_up(beat, behind))) {
            behind = beat;
            rank = rank_at(evidence, i);
        }
    }
    if (behind == NULL || (behind->waiting && !all_late))
        return false;
    return condemn(verdict, VERDICT_LOADING, rank, behind, behind->seconds);
}

/* ---- closing -------------------------------------------------------------------------------- */

/* Rank 0 leaves last: while it closes, it is for rank 0 to say who does not. */
static bool judge_closing(const struct evidence *evidence, struct verdict *verdict)
{
    if (evidence->closing <= evidence->limits.close)
        return false;
    for (int i = 0; i < evidence->peer_count; i++) {
        const struct peer *peer = &evidence->peers[i];
        if (!peer->left && !peer->last.closing)
            return condemn(verdict, VERDICT_LINGERS, peer->rank, &peer->last, evidence->closing);
    }
    return false;
}

bool verdict_find(const struct evidence *evidence, struct verdict *verdict)
{
    if (judge_death(evidence, verdict) || judge_silence(evidence, verdict))
        return true;
    if (evidence->held_up)
        return false;
    if (evidence->rank == 0 &&
        (judge_slowness(evidence, verdict) || judge_loading(evidence, verdict)))
        return true;
    return judge_closing(evidence, verdict);
}

/* ---- text ----------------------------------------------------------------------------------- */

static void phase_text(const struct verdict *verdict, char *text, size_t room)
{
    unsigned long long step = verdict->step;
    if (verdict->phase == PHASE_LOADING)
        snprintf(text, room, "while loading");
    else if (verdict->phase == PHASE_STEP)
        snprintf(text, room, "in step %llu", step);
    else if (step > 0)
        snprintf(text, room, "after step %llu", step);
    else
        snprintf(text, room, "before the first step");
}

void verdict_text(const struct verdict *verdict, char *text, size_t room)
{
    static const char *const details[] = {
        [VERDICT_NONE] = "none",
        [VERDICT_SILENT] = "no sign of life for",
        [VERDICT_SLOW] = "it has been in it for",
        [VERDICT_LOADING] = "no progress for",
        [VERDICT_LINGERS] = "the others have been closing for",
    };
    char phase[64];
    phase_text(verdict, phase, sizeof phase);
    if (verdict->kind == VERDICT_DEAD) {
        snprintf(text, room, "rank %d died %s", verdict->rank, phase);
        return;
    }
    bool known = verdict->kind > VERDICT_NONE && verdict->kind <= VERDICT_LINGERS;
    const char *detail = details[known ? verdict->kind : VERDICT_NONE];
    if (verdict->kind == VERDICT_SLOW && verdict->phase != PHASE_STEP)
        detail = "the next one has waited for it for";
    snprintf(text, room, "rank %d stalled %s (%s %.1f s)", verdict->rank, phase, detail,
             verdict->seconds);
}
