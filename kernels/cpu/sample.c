/* From raw logits to a token: adjustment and the exponential race. */
#include "kernels/cpu/cpu.h"

/* The logit of `id`; NULL: in another shard. */
static float *logit_of(const struct sample_batch *batch, float *row, int32_t id)
{
    int64_t column = (int64_t)id - batch->first;

    return column >= 0 && column < batch->columns ? row + column : NULL;
}

static void add_bias(const struct sample_batch *batch, const struct sample_row *how, float *row)
{
    for (int i = 0; i < how->bias_count; i++) {
        const struct logit_bias *bias = &batch->bias[how->bias_begin + i];
        float *logit = logit_of(batch, row, bias->id);
        if (logit != NULL)
            *logit += bias->value;
    }
}

static float penalise(const struct sample_row *how, float logit, uint32_t count)
{
    uint32_t given = count & ~COUNT_SEEN_IN_PROMPT;

    if (count != 0)
        logit = logit > 0.0f ? logit / how->repetition : logit * how->repetition;
    if (given > 0)
        logit -= how->presence + how->frequency * (float)given;
    return logit;
}

static void apply_penalties(const struct sample_batch *batch, const struct sample_row *how,
                            float *row)
{
    const uint32_t *counts = batch->counts + (ptrdiff_t)how->slot * batch->columns;

    for (int c = 0; c < batch->columns; c++)
        if (counts[c] != 0)
            row[c] = penalise(how, row[c], counts[c]);
}

static void apply_bans(const struct sample_batch *batch, const struct sample_row *how, float *row)
{
    for (int i = 0; i < how->ban_count; i++) {
        float *logit = logit_of(batch, row, batch->bans[how->ban_begin + i]);
        if (logit != NULL)
            *logit = -INFINITY;
    }
    int allowed = batch->limit > batch->first ? batch->limit - batch->first : 0;
    for (int c = allowed; c < batch->columns; c++)
        row[c] = -INFINITY;
}

enum status cpu_logit_adjust(struct device *device, const struct logit_adjust_op *op)
{
    const struct sample_batch *batch = &op->batch;

    (void)device;
    for (ptrdiff_t r = 0; r < batch->rows; r++) {
        const struct sample_row *how = &batch->row[r];
        float *row = op->logits + r * batch->columns;
        add_bias(batch, how, row);
        if (how->flags & SAMPLE_COUNTED)
            apply_penalties(batch, how, row);
        apply_bans(batch, how, row);
        if (how->temperature > 0.0f)
            for (int c = 0; c < batch->columns; c++)
                row[c] /= how->temperature;
    }
    return STATUS_OK;
}

/* -log(-log(u)): Gumbel noise. u has 32 bits, so it lies between -3.2 and 22.9. */
static double race_noise(const struct sample_row *how, int32_t id)
{
    return -log(-log(sample_uniform(how->seed, how->draw, (uint32_t)id)));
}

static struct logit_candidate draw_row(const struct sample_batch *batch,
                                       const struct sample_row *how, const float *row,
                                       uint32_t floor_key)
{
    static const double noise_max = 22.9;
    struct logit_candidate best = {-INFINITY, -1};

    for (int c = 0; c < batch->columns; c++) {
        float score = row[c];
        if (!(score > -INFINITY) || logit_key(score) < floor_key)
            continue;
        if (how->temperature > 0.0f) {
            if (best.id >= 0 && (float)(score + noise_max) <= best.value)
                continue; /* cannot win: rounding keeps order */
            score = (float)(score + race_noise(how, batch->first + c));
        }
        if (score > best.value || best.id < 0)
            best = (struct logit_candidate){score, batch->first + c};
    }
    return best;
}

enum status cpu_logit_draw(struct device *device, const struct logit_draw_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->batch.rows; r++)
        op->out[r] = draw_row(&op->batch, &op->batch.row[r], op->logits + r * op->batch.columns,
                              op->floors[r]);
    return STATUS_OK;
}
