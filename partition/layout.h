/* Where one rank's device memory goes: four regions (weights, state, KV, scratch), each placed by
 * one walk. plan.c walks without a base to count bytes, stage.c walks again with memory to get the
 * pointers, so that the numbers a plan prints and what a stage takes cannot drift. */
#ifndef JETD_PARTITION_LAYOUT_H
#define JETD_PARTITION_LAYOUT_H

#include "partition/partition.h"

enum {
    REGION_ALIGN = 256,
    META_ALIGN = 32,       /* integers between the step's packed arrays */
    HEAD_TILE = 64,        /* rows of logits held at once */
    PROJECTION_ALIGN = 16, /* columns of a merged projection */
    STEP_BIASES_PER_SEQUENCE = 1024,
    STEP_BANS_PER_SEQUENCE = 72, /* 64 of a request, 8 eos */
    HISTOGRAM_BINS = 256,
    REPLAYS_MAX = 256, /* recorded shapes of decode steps */
};

struct region {
    unsigned char *base; /* NULL: only count */
    uint64_t used;       /* UINT64_MAX while counting: more than 64 bits hold; plan.c refuses it */
};

/* count x size bytes, aligned; NULL while counting. Count and size each fit 64 bits by the ranges
 * of config.c and plan.c, their product need not. */
void *region_take(struct region *region, uint64_t count, uint64_t size);

/* ---- weights: `void *` of the activation dtype ----------------------------------------------- */

/* Columns of the merged jet projection, each [.., hidden]; total is padded with zero rows. */
struct jet_columns {
    int q, k, v, gate, w1, a, b, total;
};

struct jet_weights {
    void *projection;       /* [columns.total, hidden] */
    void *w2;               /* [heads * d_v * taps, generator] */
    float *w2_bias;         /* [heads * d_v * taps] */
    float *a_log, *dt_bias; /* [heads] */
    float *norm;            /* [d_v] */
    void *output;           /* [hidden, heads * d_v] */
};

struct attention_columns {
    int q, k, v, total;
};

struct attention_weights {
    void *projection; /* [columns.total, hidden] */
    float *bias;      /* [columns.total] */
    void *output;     /* [hidden, q heads * head_dim] */
};

struct layer_weights {
    float *mixer_norm, *mlp_norm;       /* [hidden] */
    struct jet_weights jet;             /* of a jet layer */
    struct attention_weights attention; /* of the others */
    void *gate_up;                      /* [2 * columns, hidden] */
    void *down;                         /* [hidden, columns] */
};

struct stage_weights {
    void *embedding;   /* [vocab rows, hidden]; first stage, or last of a tied model */
    void *head;        /* [vocab rows, hidden]; last stage; may be `embedding` */
    float *final_norm; /* [hidden]; last stage */
    float *rope;       /* [head_dim / 2] inverse frequencies */
    struct layer_weights layer[MODEL_LAYERS_MAX]; /* by index in this stage */
};

/* ---- state ------------------------------------------------------------------------------------
 */

struct layer_state {
    float *recurrent; /* [slots, heads, d_k, d_v] */
    void *rows;       /* [slots, taps - 1, heads * d_v] */
    void *cache;      /* ring of a swa layer, blocks of an attn layer; see kv_cache */
};

struct stage_state {
    struct layer_state layer[MODEL_LAYERS_MAX]; /* by index in this stage */
};

/* ---- scratch: everything a step writes besides state ------------------------------------------
 */

struct stage_scratch {
    int32_t *meta; /* the step's arrays of struct ragged, packed per step by ragged.c */
    int32_t *ids;  /* [tokens] */
    int32_t *last; /* [slots] newest sampled token; kept between steps */
    struct sample_result *outcome; /* [rows]; last stage, right after `last` */
    unsigned char *returned;       /* [depth, as last and outcome]; first stage of several */
    int32_t *table;                /* [slots, max_blocks_per_sequence]; kept between steps */
    int32_t *remember_slots, *remember_tokens; /* [rows] */
    /* activations */
    void *x, *normed, *delta; /* [tokens, hidden] */
    void *projected;          /* [tokens, widest projection] */
    void *mixed;              /* [tokens, widest input of an output projection] */
    void *mixer;              /* jet_mixer_scratch() */
    /* the head, last stage only */
    int32_t *row_index;            /* [rows] */
    struct sample_row *row;        /* [rows] */
    struct logit_bias *bias;       /* [biases] */
    int32_t *bans;                 /* [bans] */
    void *head_rows;               /* [sample tile, hidden] */
    void *head_normed;             /* [sample tile, hidden] */
    float *raw;                    /* [sample tile, columns] logits before adjustment */
    float *logits;                 /* [sample tile, columns]; see sample_columns() */
    struct logit_summary *summary; /* [HEAD_TILE] */
    int32_t *targets;              /* [HEAD_TILE] */
    float *values, *maxima;        /* [HEAD_TILE] */
    struct logit_candidate *tops;  /* [HEAD_TILE, SAMPLE_TOP_MAX] */
    struct logit_candidate *draws; /* [HEAD_TILE] */
    uint32_t *prefixes, *floors;   /* [HEAD_TILE] */
    double *mass;                  /* [HEAD_TILE, HISTOGRAM_BINS] */
    uint32_t *histogram;           /* [HEAD_TILE, HISTOGRAM_BINS] */
    struct count_entry *entry;     /* [tokens] */
    int32_t *reset;                /* [sequences] */
    uint32_t *counts;              /* [slots, columns] */
};

/* Bytes from `last` to `outcome`. */
uint64_t layout_last(const struct plan *plan);
/* Bytes of both, with room for all rows. */
uint64_t layout_returned(const struct plan *plan);
/* Device memory that the back end takes for REPLAYS_MAX recorded steps, at most. */
uint64_t layout_recordings(const struct plan *plan, const struct rank_plan *rank);
/* State slots: one for each running sequence, and the idle one behind them (classes.c). */
uint64_t layout_slots(const struct plan *plan);
/* Integers of a step's packed arrays at most. */
uint64_t layout_meta(int sequences, int tokens);

/* The rank's view of the model, in the numbers that layers use. */
struct jet_columns layout_jet_columns(const struct plan *plan, const struct rank_plan *rank);
struct attention_columns layout_attention_columns(const struct plan *plan,
                                                  const struct rank_plan *rank);
/* Rows whose logits are held at once: HEAD_TILE, or more where sampling stays on the device. */
int layout_sample_tile(const struct plan *plan);
/* Positions a ring keeps. */
int layout_ring(const struct plan *plan);
enum layer_type layout_layer(const struct plan *plan, const struct rank_plan *rank, int index);
/* The shape fields of the jet mixer; pointers are left NULL. */
struct jet_mixer_op layout_jet_mixer(const struct plan *plan, const struct rank_plan *rank);

void layout_weights(const struct plan *plan, const struct rank_plan *rank, struct region *region,
                    struct stage_weights *weights);
void layout_state(const struct plan *plan, const struct rank_plan *rank, struct region *region,
                  struct stage_state *state);
/* Takes limits.kv_blocks for the number of blocks; one more is behind them, for idle sequences. */
void layout_kv(const struct plan *plan, const struct rank_plan *rank, struct region *region,
               struct stage_state *state);
void layout_scratch(const struct plan *plan, const struct rank_plan *rank, struct region *region,
                    struct stage_scratch *scratch);

#endif
