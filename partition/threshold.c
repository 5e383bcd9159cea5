/* Exact thresholds over a distribution that is split over ranks: four rounds of 256-bin histograms
 * of order-preserving keys, from the leading byte to the last, narrow down the greatest key at or
 * above which there is enough (count for top-k, probability for top-p). Tokens equal to the one at
 * the border are kept with it. */
#include <math.h>
#include <string.h>

#include "partition/head.h"

/* One row's search. */
struct search {
    bool active, by_count;
    double goal;  /* count or mass wanted at or above the key */
    double above; /* count or mass strictly above the prefix's range */
    double mass;  /* mass strictly above the prefix's range */
    uint32_t key;
};

static bool wants_top_k(const struct tile *tile, int row)
{
    const struct sample_row *r = tile_row(tile, row);
    return r->target < 0 && r->temperature > 0 && r->top_k > 0 && r->top_k < tile->stage->limit;
}

static bool wants_top_p(const struct tile *tile, int row)
{
    const struct sample_row *r = tile_row(tile, row);
    return r->target < 0 && r->temperature > 0 && r->top_p < 1;
}

static bool wants_min_p(const struct tile *tile, int row)
{
    const struct sample_row *r = tile_row(tile, row);
    return r->target < 0 && r->temperature > 0 && r->min_p > 0;
}

static enum status histogram_sum(const struct tile *tile)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    size_t bins = (size_t)tile->rows * HISTOGRAM_BINS;
    int parts = stage->plan->mesh.tensor;
    enum status status;
    const double *mass = head_gather(stage, head->mass, bins * sizeof *mass, &status);
    if (mass == NULL || parts == 1)
        return status;
    memcpy(head->mass, mass, bins * sizeof *mass);
    for (size_t i = bins; i < bins * (size_t)parts; i++)
        head->mass[i % bins] += mass[i];
    const uint32_t *count = head_gather(stage, head->histogram, bins * sizeof *count, &status);
    if (count == NULL)
        return status;
    memcpy(head->histogram, count, bins * sizeof *count);
    for (size_t i = bins; i < bins * (size_t)parts; i++)
        head->histogram[i % bins] += count[i];
    return STATUS_OK;
}

static enum status histogram_make(const struct tile *tile, int shift)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    struct stage_scratch *s = &stage->scratch;
    size_t rows = (size_t)tile->rows, bins = rows * HISTOGRAM_BINS;
    TRY(stage->backend->upload(stage->device, s->prefixes, head->prefixes,
                               rows * sizeof *head->prefixes));
    TRY(stage->backend->logit_histogram(
        stage->device, &(struct logit_histogram_op){.rows = tile->rows,
                                                    .columns = span_size(stage->rank->vocab),
                                                    .shift = shift,
                                                    .logits = s->logits,
                                                    .maxima = s->maxima,
                                                    .prefixes = s->prefixes,
                                                    .mass = s->mass,
                                                    .count = s->histogram}));
    TRY(stage->backend->download(stage->device, head->mass, s->mass, bins * sizeof *head->mass));
    TRY(stage->backend->download(stage->device, head->histogram, s->histogram,
                                 bins * sizeof *head->histogram));
    return histogram_sum(tile);
}

/* Steps into the bin in which the goal is reached; past the last one by rounding: the lowest. */
static void search_narrow(struct search *search, const double *mass, const uint32_t *count,
                          int shift)
{
    int lowest = 0;
    while (lowest < HISTOGRAM_BINS - 1 && count[lowest] == 0)
        lowest++;
    int bin = HISTOGRAM_BINS - 1;
    for (; bin > lowest; bin--) {
        double amount = search->by_count ? count[bin] : mass[bin];
        if (count[bin] > 0 && search->above + amount >= search->goal)
            break;
        search->above += amount;
        search->mass += mass[bin];
    }
    search->key |= (uint32_t)bin << shift;
    if (shift == 0)
        search->mass += mass[bin];
}

static enum status search_run(const struct tile *tile, struct search *searches)
{
    struct head *head = tile->stage->head;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = 0; i < tile->rows; i++)
            head->prefixes[i] = searches[i].key;
        TRY(histogram_make(tile, shift));
        for (int i = 0; i < tile->rows; i++) {
            if (searches[i].active)
                search_narrow(&searches[i], &head->mass[i * HISTOGRAM_BINS],
                              &head->histogram[i * HISTOGRAM_BINS], shift);
        }
    }
    return STATUS_OK;
}

static void floor_raise(struct head *head, int row, uint32_t key)
{
    if (key > head->floors[row])
        head->floors[row] = key;
}

/* masses[r]: what top-k leaves of the row's mass. */
static enum status top_k_run(const struct tile *tile, double *masses)
{
    struct head *head = tile->stage->head;
    struct search searches[HEAD_TILE] = {{0}};
    bool any = false;
    for (int i = 0; i < tile->rows; i++) {
        if (!wants_top_k(tile, i))
            continue;
        any = true;
        searches[i] =
            (struct search){.active = true, .by_count = true, .goal = tile_row(tile, i)->top_k};
    }
    if (!any)
        return STATUS_OK;
    TRY(search_run(tile, searches));
    for (int i = 0; i < tile->rows; i++) {
        if (!searches[i].active)
            continue;
        masses[i] = searches[i].mass;
        floor_raise(head, i, searches[i].key);
    }
    return STATUS_OK;
}

static enum status top_p_run(const struct tile *tile, const double *masses)
{
    struct search searches[HEAD_TILE] = {{0}};
    bool any = false;
    for (int i = 0; i < tile->rows; i++) {
        if (!wants_top_p(tile, i))
            continue;
        any = true;
        searches[i] = (struct search){.active = true, .goal = tile_row(tile, i)->top_p * masses[i]};
    }
    if (!any)
        return STATUS_OK;
    TRY(search_run(tile, searches));
    for (int i = 0; i < tile->rows; i++) {
        if (searches[i].active)
            floor_raise(tile->stage->head, i, searches[i].key);
    }
    return STATUS_OK;
}

static bool tile_is_cut(const struct tile *tile)
{
    for (int i = 0; i < tile->rows; i++) {
        if (wants_top_k(tile, i) || wants_top_p(tile, i) || wants_min_p(tile, i))
            return true;
    }
    return false;
}

static enum status cuts_find(const struct tile *tile)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    double masses[HEAD_TILE];
    TRY(head_summarise(tile, stage->scratch.logits, head->adjusted));
    for (int i = 0; i < tile->rows; i++) {
        masses[i] = head->adjusted[i].sum;
        head->maxima[i] = head->adjusted[i].max;
    }
    TRY(stage->backend->upload(stage->device, stage->scratch.maxima, head->maxima,
                               (size_t)tile->rows * sizeof *head->maxima));
    TRY(top_k_run(tile, masses));
    TRY(top_p_run(tile, masses));
    for (int i = 0; i < tile->rows; i++) {
        if (wants_min_p(tile, i))
            floor_raise(head, i, logit_key(head->maxima[i] + logf(tile_row(tile, i)->min_p)));
    }
    return STATUS_OK;
}

enum status threshold_run(const struct tile *tile)
{
    struct stage *stage = tile->stage;
    struct head *head = stage->head;
    memset(head->floors, 0, sizeof head->floors);
    if (tile_is_cut(tile))
        TRY(cuts_find(tile));
    return stage->backend->upload(stage->device, stage->scratch.floors, head->floors,
                                  (size_t)tile->rows * sizeof *head->floors);
}
