/* Sampling that stays on the device: with a backend that samples in one entry and the whole
 * vocabulary's logits on the rank, the host sees tokens only when the next step is already under
 * way. Tensor ranks whose fabric is on the device gather each other's logits and all draw the same.
 */
#include "partition/head.h"

bool sample_resident(const struct stage *stage)
{
    return stage->backend->sample != NULL &&
           (stage->plan->mesh.tensor == 1 || stage->fabric->streamed);
}

struct span sample_columns(const struct stage *stage)
{
    return sample_resident(stage) ? (struct span){0, stage->plan->model.vocab} : stage->rank->vocab;
}

struct sample_needs sample_needs_of(const struct stage *stage, const struct step *step)
{
    struct sample_needs needs = {.adjusted = stage->limit < stage->plan->model.vocab};
    for (int i = 0; i < step->rows; i++) {
        const struct sample_row *row = &step->row[i].sample;
        needs.tops |= row->tops > 0;
        if (row->target >= 0)
            continue;
        bool draws = row->temperature > 0;
        needs.adjusted |= (draws && row->temperature != 1) || row->bias_count > 0 ||
                          row->ban_count > 0 || (row->flags & SAMPLE_COUNTED) != 0;
        needs.thresholds |= draws && (row->top_k > 0 || row->top_p < 1 || row->min_p > 0);
    }
    return needs;
}

static struct sample_op sample_op_of(struct stage *stage, const struct step *step, int first,
                                     int rows)
{
    struct stage_scratch *s = &stage->scratch;
    struct sample_needs needs = sample_needs_of(stage, step);
    return (struct sample_op){.batch = {.rows = rows,
                                        .columns = stage->plan->model.vocab,
                                        .limit = stage->limit,
                                        .row = s->row + first,
                                        .bias = s->bias,
                                        .bans = s->bans,
                                        .counts = s->counts},
                              .adjusted = needs.adjusted,
                              .thresholds = needs.thresholds,
                              .tops = needs.tops,
                              .logits = s->logits,
                              .work = s->raw,
                              .last = s->last,
                              .counts = s->counts,
                              .out = s->outcome + first};
}

enum status sample_run(struct stage *stage, const struct step *step)
{
    int tile = layout_sample_tile(stage->plan);
    for (int first = 0; first < step->rows; first += tile) {
        int rows = step->rows - first < tile ? step->rows - first : tile;
        TRY(logits_make(stage, first, rows));
        struct sample_op op = sample_op_of(stage, step, first, rows);
        TRY(stage->backend->sample(stage->device, &op));
    }
    return STATUS_OK;
}
