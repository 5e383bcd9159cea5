/* Private: the head's host side, shared by head.c (logits and outcomes) and threshold.c (which
 * keys may be drawn). Rows go through in tiles of HEAD_TILE. Vocabulary shards exchange summaries,
 * candidates and histograms, not logits (sample.c does, on the device); everything is merged in
 * rank order, so that all tensor ranks come to the same outcome. */
#ifndef JETD_PARTITION_HEAD_H
#define JETD_PARTITION_HEAD_H

#include "partition/stage.h"

struct head {
    struct logit_summary summary[HEAD_TILE];  /* raw, merged */
    struct logit_summary adjusted[HEAD_TILE]; /* after adjustment, merged; where thresholds are */
    int32_t targets[HEAD_TILE];
    float values[HEAD_TILE];
    float maxima[HEAD_TILE];
    struct logit_candidate draws[HEAD_TILE];
    struct logit_candidate tops[HEAD_TILE * SAMPLE_TOP_MAX];
    uint32_t prefixes[HEAD_TILE], floors[HEAD_TILE];
    double mass[HEAD_TILE * HISTOGRAM_BINS];
    uint32_t histogram[HEAD_TILE * HISTOGRAM_BINS];
    void *gathered; /* the largest of the arrays above from every tensor rank */
};

/* The rows that are in work. */
struct tile {
    struct stage *stage;
    const struct step *step;
    int first, rows;
};

static inline const struct sample_row *tile_row(const struct tile *tile, int row)
{
    return &tile->step->row[tile->first + row].sample;
}

/* The product that makes logits, without its rows. */
struct gemm_op head_product(const struct stage *stage);
/* The same with the norm of the gathered rows, as a back end may take it. */
struct gemm_op head_normed(const struct stage *stage, struct gemm_op op);
/* s->logits = head(final norm(x[row_index[first ..]])) for `rows` rows. */
enum status logits_make(struct stage *stage, int first, int rows);
/* Host bytes of every tensor rank, rank by rank; NULL: the fabric failed. */
const void *head_gather(struct stage *stage, const void *mine, size_t bytes, enum status *status);
/* The merged summaries of the tile's present logits. */
enum status head_summarise(const struct tile *tile, const float *logits,
                           struct logit_summary *merged);

/* threshold.c: the least key that each row may draw, by top-k, then top-p of what is left, then
 * min-p, into head->floors (host) and scratch.floors. */
enum status threshold_run(const struct tile *tile);

#endif
