/* Recordings of decode steps (CUDA graphs): a step's device work depends on the host only through
 * its shape, so a step of a shape seen before is replayed in one call. Shapes are few: batch-size
 * classes (classes.c), powers of two of context, what sampling needs.
 *
 * Where the back end has made its choices before the first step (stage_prepare), a shape is
 * recorded when it is first seen. Elsewhere, and where a fabric may have to connect first, the
 * first step of a shape runs as it is and the second is recorded.
 *
 * A recording takes memory on the device, which the plan keeps for REPLAYS_MAX of them
 * (layout_recordings). When there are as many, the one that was used longest ago gives way: it may
 * still be under way, which recording_free allows (kernels.h). */
#include <stdlib.h>

#include "daemon/base/guard.h"
#include "partition/stage.h"

enum { CONTEXT_LEAST = 1024 };

struct replay_key {
    int sequences, context, rows, needs;
};

struct replay {
    struct replay_key key;
    struct recording *recording; /* NULL: seen once */
    uint64_t used;               /* when: the number of uses before */
};

struct replays {
    int count;
    uint64_t uses;
    struct replay replay[REPLAYS_MAX];
};

enum status replays_create(struct stage *stage)
{
    if (stage->backend->record_begin == NULL)
        return STATUS_OK;
    stage->replays = calloc(1, sizeof *stage->replays);
    return stage->replays != NULL ? idle_create(stage) : STATUS_NO_MEMORY;
}

void replays_destroy(struct stage *stage)
{
    if (stage->replays == NULL)
        return;
    for (int i = 0; i < stage->replays->count; i++)
        if (stage->replays->replay[i].recording != NULL)
            stage->backend->recording_free(stage->device, stage->replays->replay[i].recording);
    free(stage->replays);
    idle_destroy(stage);
}

int replay_context(const struct stage *stage, int context)
{
    int bound = CONTEXT_LEAST;
    while (bound < context && bound < 1 << 29)
        bound *= 2;
    int most = stage->plan->limits.max_model_len;
    return bound < most ? bound : most;
}

bool step_recordable(const struct stage *stage, const struct step *step)
{
    const struct mesh *mesh = &stage->plan->mesh;
    bool alone = mesh->tensor == 1 && mesh->pipeline == 1;
    return stage->replays != NULL && step->tokens == step->sequences && step->sequences > 0 &&
           (alone || stage->fabric->streamed);
}

static struct replay_key key_of(const struct stage *stage, const struct step *step)
{
    struct sample_needs needs = sample_needs_of(stage, step);
    return (struct replay_key){
        .sequences = step->sequences,
        .context = stage->batch.max_context,
        .rows = step->rows,
        .needs = needs.adjusted + 2 * needs.thresholds + 4 * needs.tops,
    };
}

static bool key_equal(struct replay_key a, struct replay_key b)
{
    return a.sequences == b.sequences && a.context == b.context && a.rows == b.rows &&
           a.needs == b.needs;
}

static struct replay *replay_find(struct replays *replays, struct replay_key key)
{
    for (int i = 0; i < replays->count; i++)
        if (key_equal(replays->replay[i].key, key))
            return &replays->replay[i];
    return NULL;
}

/* A place for a shape that is new. */
static struct replay *replay_add(struct stage *stage, struct replay_key key)
{
    struct replays *replays = stage->replays;
    struct replay *oldest = &replays->replay[0];
    if (replays->count < REPLAYS_MAX) {
        oldest = &replays->replay[replays->count++];
    } else {
        for (int i = 1; i < replays->count; i++)
            if (replays->replay[i].used < oldest->used)
                oldest = &replays->replay[i];
        stage->backend->recording_free(stage->device, oldest->recording);
    }
    *oldest = (struct replay){.key = key};
    return oldest;
}

static enum status replay_record(struct stage *stage, const struct step *step,
                                 enum status (*part)(struct stage *, const struct step *),
                                 struct replay *replay)
{
    guard_leave(); /* a recording takes memory, once */
    enum status status = stage->backend->record_begin(stage->device), ended = status;
    if (status == STATUS_OK) {
        status = part(stage, step);
        ended = stage->backend->record_end(stage->device, &replay->recording);
    }
    guard_enter("step");
    return status != STATUS_OK ? status : ended;
}

enum status replay_run(struct stage *stage, const struct step *step,
                       enum status (*part)(struct stage *, const struct step *))
{
    struct replay_key key = key_of(stage, step);
    struct replay *replay = replay_find(stage->replays, key);
    bool seen = replay != NULL;
    if (!seen)
        replay = replay_add(stage, key);
    replay->used = stage->replays->uses++;
    if (!seen && !stage->settled)
        return part(stage, step);
    if (replay->recording == NULL)
        TRY(replay_record(stage, step, part, replay));
    return stage->backend->replay(stage->device, replay->recording);
}
