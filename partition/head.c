#include "partition/head.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status head_create(struct stage *stage)
{
    struct head *head = calloc(1, sizeof *head);
    if (head == NULL)
        return STATUS_NO_MEMORY;
    size_t largest = sizeof head->mass;
    head->gathered = malloc((size_t)stage->plan->mesh.tensor * largest);
    stage->head = head;
    return head->gathered == NULL ? STATUS_NO_MEMORY : STATUS_OK;
}

void head_destroy(struct stage *stage)
{
    if (stage->head == NULL)
        return;
    free(stage->head->gathered);
    free(stage->head);
}

const void *head_gather(struct stage *stage, const void *mine, size_t bytes, enum status *status)
{
    *status = STATUS_OK;
    if (stage->plan->mesh.tensor == 1)
        return mine;
    *status = stage->fabric->ops->all_gather(stage->fabric, AXIS_TENSOR, mine,
                                             stage->head->gathered, bytes);
    return *status == STATUS_OK ? stage->head->gathered : NULL;
}

/* ---- phases of a tile ---------------------------------------------------------------------- */

struct gemm_op head_product(const struct stage *stage)
{
    struct span all = sample_columns(stage), mine = stage->rank->vocab;
    int hidden = stage->plan->model.hidden;
    return (struct gemm_op){.columns = span_size(mine),
                            .depth = hidden,
                            .ld_x = hidden,
                            .ld_out = span_size(all),
                            .x = stage->scratch.head_normed,
                            .weight = stage->weights.head,
                            .out = stage->scratch.logits + mine.begin - all.begin,
                            .float_out = true};
}

struct gemm_op head_normed(const struct stage *stage, struct gemm_op op)
{
    return product_normed(stage, op, stage->scratch.head_rows, stage->weights.final_norm);
}

enum status logits_make(struct stage *stage, int first, int rows)
{
    const struct backend *backend = stage->backend;
    struct stage_scratch *s = &stage->scratch;
    const struct model_config *m = &stage->plan->model;
    TRY(backend->gather(stage->device, &(struct gather_op){.rows = rows,
                                                           .columns = m->hidden,
                                                           .ld_x = m->hidden,
                                                           .index = s->row_index + first,
                                                           .x = s->x,
                                                           .out = s->head_rows}));
    struct gemm_op op = head_product(stage);
    op.rows = rows;
    const struct gemm_op fused = head_normed(stage, op);
    if (product_fuses(stage, &fused))
        op = fused;
    else
        TRY(backend->rms_norm(stage->device,
                              &(struct rms_norm_op){.rows = rows,
                                                    .columns = m->hidden,
                                                    .epsilon = m->rms_epsilon,
                                                    .x = s->head_rows,
                                                    .weight = stage->weights.final_norm,
                                                    .out = s->head_normed}));
    size_t count = (size_t)rows * (size_t)op.ld_out;
    bool shared = op.ld_out != op.columns;
    if (shared) /* the sum over tensor ranks, each with zeros for the others' columns */
        TRY(backend->zero(stage->device, s->logits, count * sizeof *s->logits));
    TRY(backend->gemm(stage->device, &op));
    return shared ? stage->fabric->ops->all_reduce(stage->fabric, AXIS_TENSOR, s->logits, count,
                                                   DTYPE_F32)
                  : STATUS_OK;
}

enum status head_summarise(const struct tile *tile, const float *logits,
                           struct logit_summary *merged)
{
    struct stage *stage = tile->stage;
    struct stage_scratch *s = &stage->scratch;
    size_t bytes = (size_t)tile->rows * sizeof *merged;
    TRY(stage->backend->logit_summary(
        stage->device, &(struct logit_summary_op){.rows = tile->rows,
                                                  .columns = span_size(stage->rank->vocab),
                                                  .first = stage->rank->vocab.begin,
                                                  .logits = logits,
                                                  .out = s->summary}));
    TRY(stage->backend->download(stage->device, merged, s->summary, bytes));
    enum status status;
    const struct logit_summary *all = head_gather(stage, merged, bytes, &status);
    if (all == NULL || all == merged)
        return status;
    memcpy(merged, all, bytes);
    for (int i = tile->rows; i < stage->plan->mesh.tensor * tile->rows; i++)
        logit_summary_merge(&merged[i % tile->rows], &all[i]);
    return STATUS_OK;
}

static bool candidate_better(const struct logit_candidate *a, const struct logit_candidate *b)
{
    if (a->id < 0 || b->id < 0)
        return a->id >= 0;
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

/* The k best of sorted lists [parts, rows, k] of one row, into out [k]. */
static void tops_merge(const struct logit_candidate *all, int parts, int rows, int row, int k,
                       struct logit_candidate *out)
{
    for (int i = 0; i < k; i++)
        out[i] = (struct logit_candidate){-INFINITY, -1};
    for (int part = 0; part < parts; part++) {
        const struct logit_candidate *list = all + ((size_t)part * (size_t)rows + (size_t)row) * k;
        for (int i = 0; i < k && candidate_better(&list[i], &out[k - 1]); i++) {
            int at = k - 1;
            for (; at > 0 && candidate_better(&list[i], &out[at - 1]); at--)
                out[at] = out[at - 1];
            out[at] = list[i];
        }
    }
}

/* The most tops that a row of the tile wants; they lie in head->tops [rows, k] afterwards. */
static enum status tops_find(const struct tile *tile, int *most)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    int k = 0, parts = stage->plan->mesh.tensor;
    for (int i = 0; i < tile->rows; i++)
        k = tile_row(tile, i)->tops > k ? tile_row(tile, i)->tops : k;
    *most = k;
    if (k == 0)
        return STATUS_OK;
    size_t bytes = (size_t)tile->rows * (size_t)k * sizeof *head->tops;
    TRY(stage->backend->logit_top(stage->device,
                                  &(struct logit_top_op){.rows = tile->rows,
                                                         .columns = span_size(stage->rank->vocab),
                                                         .first = stage->rank->vocab.begin,
                                                         .k = k,
                                                         .logits = stage->scratch.logits,
                                                         .out = stage->scratch.tops}));
    TRY(stage->backend->download(stage->device, head->tops, stage->scratch.tops, bytes));
    enum status status;
    const struct logit_candidate *all = head_gather(stage, head->tops, bytes, &status);
    if (all == NULL || parts == 1)
        return status;
    for (int i = 0; i < tile->rows; i++)
        tops_merge(all, parts, tile->rows, i, k, &head->tops[i * k]);
    return STATUS_OK;
}

/* Whether adjustment leaves every logit that can be drawn as it is. */
static bool row_is_plain(const struct sample_row *row)
{
    return (row->temperature == 0 || row->temperature == 1) && row->bias_count == 0 &&
           !(row->flags & SAMPLE_COUNTED);
}

static struct sample_batch tile_batch(const struct tile *tile)
{
    struct stage *stage = tile->stage;
    return (struct sample_batch){.rows = tile->rows,
                                 .columns = span_size(stage->rank->vocab),
                                 .first = stage->rank->vocab.begin,
                                 .limit = stage->limit,
                                 .row = stage->scratch.row + tile->first,
                                 .bias = stage->scratch.bias,
                                 .bans = stage->scratch.bans,
                                 .counts = stage->scratch.counts};
}

/* Draws a token for every row of the tile (those that only score ignore theirs). */
static enum status tile_draw(const struct tile *tile)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    struct stage_scratch *s = &stage->scratch;
    struct sample_batch batch = tile_batch(tile);
    size_t bytes = (size_t)tile->rows * sizeof *head->draws;
    TRY(stage->backend->logit_adjust(
        stage->device, &(struct logit_adjust_op){.batch = batch, .logits = s->logits}));
    TRY(threshold_run(tile));
    TRY(stage->backend->logit_draw(stage->device, &(struct logit_draw_op){.batch = batch,
                                                                          .logits = s->logits,
                                                                          .floors = s->floors,
                                                                          .out = s->draws}));
    TRY(stage->backend->download(stage->device, head->draws, s->draws, bytes));
    enum status status;
    const struct logit_candidate *all = head_gather(stage, head->draws, bytes, &status);
    if (all == NULL || all == head->draws)
        return status;
    memcpy(head->draws, all, bytes);
    for (int i = tile->rows; i < stage->plan->mesh.tensor * tile->rows; i++) {
        if (candidate_better(&all[i], &head->draws[i % tile->rows]))
            head->draws[i % tile->rows] = all[i];
    }
    return STATUS_OK;
}

/* values[r]: the raw logit of targets[r]. */
static enum status targets_pick(const struct tile *tile, const float *logits)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    size_t bytes = (size_t)tile->rows * sizeof *head->values;
    TRY(stage->backend->upload(stage->device, stage->scratch.targets, head->targets,
                               (size_t)tile->rows * sizeof *head->targets));
    TRY(stage->backend->logit_pick(stage->device,
                                   &(struct logit_pick_op){.rows = tile->rows,
                                                           .columns = span_size(stage->rank->vocab),
                                                           .first = stage->rank->vocab.begin,
                                                           .targets = stage->scratch.targets,
                                                           .logits = logits,
                                                           .values = stage->scratch.values}));
    TRY(stage->backend->download(stage->device, head->values, stage->scratch.values, bytes));
    enum status status;
    const float *all = head_gather(stage, head->values, bytes, &status);
    if (all == NULL || all == head->values)
        return status;
    memcpy(head->values, all, bytes);
    for (int i = tile->rows; i < stage->plan->mesh.tensor * tile->rows; i++) {
        if (all[i] > head->values[i % tile->rows])
            head->values[i % tile->rows] = all[i];
    }
    return STATUS_OK;
}

/* A row whose logits were not finite says so and harms no other. */
static void result_fill(const struct tile *tile, int row, int most, struct sample_result *result)
{
    const struct head *head = tile->stage->head;
    const struct logit_summary *summary = &head->summary[row];
    memset(result, 0, sizeof *result);
    result->token = head->targets[row];
    if (summary->bad || result->token < 0 || !isfinite(summary->max)) {
        result->token = -1;
        return;
    }
    double normaliser = (double)summary->max + log(summary->sum);
    result->is_argmax = result->token == summary->argmax;
    result->logprob = (float)((double)head->values[row] - normaliser);
    int wanted = tile_row(tile, row)->tops;
    for (int i = 0; i < wanted && head->tops[row * most + i].id >= 0; i++) {
        struct logit_candidate top = head->tops[row * most + i];
        top.value = (float)((double)top.value - normaliser);
        result->top[result->tops++] = top;
    }
}

static enum status tile_run(const struct tile *tile, struct sample_result *results)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    struct stage_scratch *s = &stage->scratch;
    bool sampling = false, plain = true;
    for (int i = 0; i < tile->rows; i++) {
        const struct sample_row *row = tile_row(tile, i);
        sampling |= row->target < 0;
        plain &= row_is_plain(row);
    }
    int most = 0;
    TRY(logits_make(stage, tile->first, tile->rows));
    TRY(head_summarise(tile, s->logits, head->summary));
    TRY(tops_find(tile, &most));
    const float *raw = s->logits;
    if (sampling && !plain) {
        raw = s->raw;
        size_t columns = (size_t)span_size(stage->rank->vocab);
        TRY(stage->backend->copy(stage->device, s->raw, s->logits,
                                 (size_t)tile->rows * columns * sizeof(float)));
    }
    /* A target may be an id that adjustment bans: pick it before. */
    for (int i = 0; i < tile->rows; i++)
        head->targets[i] = tile_row(tile, i)->target;
    bool scoring = false;
    for (int i = 0; i < tile->rows; i++)
        scoring |= head->targets[i] >= 0;
    float scored[HEAD_TILE];
    if (scoring) {
        TRY(targets_pick(tile, s->logits));
        memcpy(scored, head->values, sizeof scored);
    }
    if (sampling) {
        TRY(tile_draw(tile));
        for (int i = 0; i < tile->rows; i++) {
            if (tile_row(tile, i)->target < 0)
                head->targets[i] = head->draws[i].id;
        }
        TRY(targets_pick(tile, raw));
    }
    for (int i = 0; i < tile->rows; i++) {
        if (tile_row(tile, i)->target >= 0)
            head->values[i] = scored[i];
        result_fill(tile, i, most, &results[i]);
    }
    return STATUS_OK;
}

enum status rows_upload(struct stage *stage, const struct step *step)
{
    const struct backend *backend = stage->backend;
    struct stage_scratch *s = &stage->scratch;
    if (step->rows == 0)
        return STATUS_OK;
    int32_t *index = stage->pairs;
    for (int i = 0; i < step->rows; i++) {
        stage->row[i] = step->row[i].sample;
        index[i] = step->row[i].token;
    }
    TRY(backend->upload(stage->device, s->row_index, index, (size_t)step->rows * sizeof *index));
    TRY(backend->upload(stage->device, s->row, stage->row,
                        (size_t)step->rows * sizeof *stage->row));
    if (step->biases > 0)
        TRY(backend->upload(stage->device, s->bias, step->bias,
                            (size_t)step->biases * sizeof *step->bias));
    if (step->bans > 0)
        TRY(backend->upload(stage->device, s->bans, step->ban,
                            (size_t)step->bans * sizeof *step->ban));
    return STATUS_OK;
}

enum status head_run(struct stage *stage, const struct step *step, struct sample_result *results)
{
    for (int first = 0; first < step->rows; first += HEAD_TILE) {
        int left = step->rows - first;
        struct tile tile = {stage, step, first, left < HEAD_TILE ? left : HEAD_TILE};
        TRY(tile_run(&tile, results + first));
    }
    return STATUS_OK;
}
