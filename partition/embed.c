#include "partition/stage.h"

enum status embed_run(struct stage *stage, const struct step *step)
{
    const struct backend *backend = stage->backend;
    const struct rank_plan *rank = stage->rank;
    TRY(backend->resolve(stage->device, &(struct resolve_op){.tokens = step->tokens,
                                                             .source = stage->source,
                                                             .last = stage->scratch.last,
                                                             .ids = stage->scratch.ids}));
    int hidden = stage->plan->model.hidden;
    TRY(backend->embed(stage->device, &(struct embed_op){.tokens = step->tokens,
                                                         .hidden = hidden,
                                                         .first = rank->vocab.begin,
                                                         .rows = span_size(rank->vocab),
                                                         .ids = stage->scratch.ids,
                                                         .table = stage->weights.embedding,
                                                         .out = stage->scratch.x}));
    return stage_reduce(stage, stage->scratch.x, (uint64_t)step->tokens * (uint64_t)hidden);
}
