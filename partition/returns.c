/* Tokens on their way back from the last stage of a pipeline to the first, device to device. They
 * come beside the stream and against its direction, so that the first stage can work on a step
 * whose tokens it has while the last still samples another: micro-batches keep all stages busy. */
#include "partition/stage.h"

_Static_assert((int)STAGE_DEPTH <= (int)FABRIC_EXPECTED,
               "every step under way may expect a message");

bool results_streamed(const struct stage *stage)
{
    return stage->fabric->ops->expect != NULL && sample_resident(stage) &&
           stage->plan->mesh.pipeline > 1;
}

/* The newest token of every slot, then the rows' outcome. */
static size_t message_bytes(const struct stage *stage, const struct step *step)
{
    return layout_last(stage->plan) + (size_t)step->rows * sizeof(struct sample_result);
}

enum status results_send(struct stage *stage, const struct step *step)
{
    if (step->rows == 0)
        return STATUS_OK;
    return stage->fabric->ops->send(stage->fabric, AXIS_PIPELINE, 0, stage->scratch.last,
                                    message_bytes(stage, step));
}

/* A message's place in the ring. */
static uint64_t place_of(const struct stage *stage, uint64_t number)
{
    return number % (uint64_t)stage->depth;
}

static unsigned char *message_at(const struct stage *stage, uint64_t number)
{
    return stage->scratch.returned + place_of(stage, number) * layout_returned(stage->plan);
}

/* The oldest message becomes what steps enqueued from now on embed. */
static enum status arrive(struct stage *stage)
{
    struct returns *returns = &stage->returns;
    uint64_t number = returns->arrived++;
    TRY(stage->fabric->ops->arrive(stage->fabric, returns->turn[place_of(stage, number)]));
    return stage->backend->copy(stage->device, stage->scratch.last, message_at(stage, number),
                                (size_t)stage->plan->limits.max_num_seqs * sizeof(int32_t));
}

enum status results_expect(struct stage *stage, const struct step *step, struct lane *lane)
{
    struct returns *returns = &stage->returns;
    if (returns->expected - returns->arrived == (uint64_t)stage->depth)
        TRY(arrive(stage));
    bool wanted = stage->fabric->rank == 0;
    uint64_t number = returns->expected++;
    struct fabric_expected what = {.index = stage->plan->mesh.pipeline - 1,
                                   .data = message_at(stage, number),
                                   .bytes = message_bytes(stage, step),
                                   .host = wanted ? lane->results : NULL,
                                   .skip = layout_last(stage->plan)};
    unsigned *turn = &returns->turn[place_of(stage, number)];
    TRY(stage->fabric->ops->expect(stage->fabric, AXIS_PIPELINE, &what, turn));
    lane->expected = wanted;
    lane->turn = *turn;
    for (int i = 0; i < step->rows; i++)
        if (step->row[i].sample.target < 0)
            returns->slot[step->row[i].sample.slot] = returns->expected;
    return STATUS_OK;
}

enum status results_need(struct stage *stage, const struct step *step)
{
    struct returns *returns = &stage->returns;
    uint64_t needed = 0;
    for (int i = 0; i < step->tokens; i++) {
        uint64_t one = step->token[i] < 0 ? returns->slot[-1 - step->token[i]] : 0;
        needed = one > needed ? one : needed;
    }
    while (returns->arrived < needed)
        TRY(arrive(stage));
    return STATUS_OK;
}
