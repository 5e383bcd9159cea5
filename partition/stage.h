/* Private: one rank's stage, and what its layer files share. A stage is used by one thread. */
#ifndef JETD_PARTITION_STAGE_H
#define JETD_PARTITION_STAGE_H

#include "partition/layout.h"

struct replays; /* replay.c */

/* What the host may know of a step that is under way. */
struct lane {
    struct sample_result *results; /* [max rows]; pinned where the backend fetches */
    int rows;
    bool fetched;  /* the results arrive by a fetch: wait for it */
    bool expected; /* they arrive by the fabric, at `turn` */
    unsigned turn;
};

/* Results on their way from the last stage to the first (returns.c): turn number n - 1 of each. */
struct returns {
    uint64_t expected, arrived; /* how many; what arrived is in scratch.last */
    unsigned turn[STAGE_DEPTH]; /* by number % depth */
    uint64_t *slot;             /* [layout_slots] how many must have arrived for the newest token */
};

/* Room for a step that is filled up to its class (classes.c). */
struct idle {
    struct step_sequence *sequence; /* [max_num_seqs] */
    int32_t *token;                 /* [max_num_seqs] */
    struct step_row *row;           /* [max rows] */
};

struct stage {
    const struct plan *plan;
    const struct rank_plan *rank;
    const struct backend *backend;
    struct device *device;
    struct fabric *fabric;
    int depth;             /* steps that may be under way */
    int limit;             /* ids below this may be sampled */
    float rope_scale;      /* on cos and sin */
    float attention_scale; /* head_dim^-1/2 */
    void *memory[4];       /* the regions of layout.h: weights, state, KV, scratch */
    struct stage_weights weights;
    struct stage_state state;
    struct stage_scratch scratch;
    struct ragged batch;   /* of the present step */
    const void *pending;   /* what the next norm adds to scratch.x; NULL: nothing */
    const int32_t *source; /* [tokens] of the present step, device */
    /* host memory, all taken at open */
    int32_t *meta;             /* as scratch.meta */
    int32_t *slot_blocks;      /* [layout_slots] blocks in the slot's table */
    int32_t *slot_length;      /* [layout_slots] tokens of the slot's sequence so far */
    struct count_entry *entry; /* [tokens] */
    int32_t *reset;            /* [sequences] */
    int32_t *pairs;            /* [2 * rows] slots, then tokens to remember; row indices before */
    struct sample_row *row;    /* [rows] */
    struct head *head;         /* host side of the head, last stage only (head.h) */
    struct lane lane[STAGE_DEPTH];
    int first_lane, lanes; /* oldest under way, how many */
    struct returns returns;
    int likely;              /* stage_record's next */
    bool settled;            /* stage_prepare made all choices that a step alone here may ask for */
    struct replays *replays; /* NULL: the backend does not record */
    struct idle idle;        /* where it does */
};

/* `elements` of the activation dtype behind `base`. */
static inline void *stage_at(const struct stage *stage, void *base, uint64_t elements)
{
    return (unsigned char *)base + elements * dtype_size(stage->plan->activation);
}

/* ragged.c: checks the step against the slots, extends their block tables and uploads the arrays
 * of stage->batch. */
enum status ragged_upload(struct stage *stage, const struct step *step, struct error *error);

/* load.c: this rank's pieces of the checkpoint into stage->weights. */
enum status weights_load(struct stage *stage, const struct stage_options *options,
                         struct error *error);

/* embed.c: x = embedding of the step's tokens, whole on every tensor rank. */
enum status embed_run(struct stage *stage, const struct step *step);
/* jet.c, attention.c: x += mixer(norm(x)), summed over tensor ranks; `index` within the stage. */
enum status jet_run(struct stage *stage, int index);
struct jet_mixer_op jet_mixer(const struct stage *stage, int index, const struct ragged *batch);
enum status attention_run(struct stage *stage, int index);
/* mlp.c: x += mlp(norm(x)), summed. */
enum status mlp_run(struct stage *stage, int index);
struct gate_up_op mlp_gate_up(const struct stage *stage, int index); /* without its rows */
/* dense.c: the products that every layer is made of. projected = norm(x) W^T (+ bias), with
 * `columns` columns; then x += mixed W^T, `depth` deep, summed over the tensor ranks. Where the
 * back end does not fuse them, the norm is a pass of its own, and what x gains is pending until
 * then. */
enum status projection_run(struct stage *stage, const float *norm, const void *weight,
                           const float *bias, int columns);
struct gemm_op projection_product(const struct stage *stage, const void *weight, const float *bias,
                                  int columns); /* without its rows; so below */
struct gemm_op output_product(const struct stage *stage, const void *weight, int depth);
/* The same with the norm of x, or adding to the stream, as a back end may take them. */
struct gemm_op product_normed(const struct stage *stage, struct gemm_op op, const void *x,
                              const float *norm);
struct gemm_op product_added(const struct stage *stage, struct gemm_op op);
bool output_adds(const struct stage *stage); /* nothing is to be summed over ranks before */
enum status output_run(struct stage *stage, const void *weight, int depth);
/* Whether the back end takes the product's norm or addition. */
bool product_fuses(const struct stage *stage, const struct gemm_op *op);
/* x += what is pending; normed = norm(x) unless the weight is NULL. */
enum status norm_run(struct stage *stage, const float *weight);
/* Sums delta over the tensor ranks. */
enum status stage_reduce(struct stage *stage, void *data, uint64_t count);

/* classes.c: the size of the class that a count belongs to, at most `most` (>= count); pure. */
int class_of(int count, int most);
/* The slot that no request is given. */
int idle_slot(const struct plan *plan);
enum status idle_create(struct stage *stage);
void idle_destroy(struct stage *stage);
/* A recordable step with idle sequences and rows up to its classes. What it leads to is the stage's
 * and holds until the next call. */
struct step step_fill(struct stage *stage, const struct step *step);
/* The same up to these numbers. */
struct step idle_fill(struct stage *stage, const struct step *step, int sequences, int rows);

/* replay.c: runs `part` for the step, from a recording of the same shape where there is one. Only
 * for recordable steps, filled up to their class. */
enum status replays_create(struct stage *stage);
void replays_destroy(struct stage *stage);
/* Whether a step's device work may be recorded: one new token a sequence, no host in between. */
bool step_recordable(const struct stage *stage, const struct step *step);
enum status replay_run(struct stage *stage, const struct step *step,
                       enum status (*part)(struct stage *, const struct step *));
/* The bound on context that a step of decodes is run (and recorded) for. */
int replay_context(const struct stage *stage, int context);

/* sample.c: sampling that stays on the device. */
bool sample_resident(const struct stage *stage);
enum status sample_run(struct stage *stage, const struct step *step);
/* The columns of logits and counts on this rank of the last stage: its shard, or the whole
 * vocabulary where sampling is resident. */
struct span sample_columns(const struct stage *stage);
/* What the step's rows ask for, as in struct sample_op. */
struct sample_needs {
    bool adjusted, thresholds, tops;
};
struct sample_needs sample_needs_of(const struct stage *stage, const struct step *step);

/* returns.c. Whether tokens go from the last stage to the first from device to device. */
bool results_streamed(const struct stage *stage);
/* Last stage, after sampling. */
enum status results_send(struct stage *stage, const struct step *step);
/* First stage, after the step's device work was enqueued. */
enum status results_expect(struct stage *stage, const struct step *step, struct lane *lane);
/* First stage, before a step: its device tokens are there when its work begins. */
enum status results_need(struct stage *stage, const struct step *step);

/* head.c: the step's rows and lists to the device; last stage only. */
enum status rows_upload(struct stage *stage, const struct step *step);
/* head.c: logits and outcome of every row, the same on every tensor rank of the last stage. */
enum status head_create(struct stage *stage);
void head_destroy(struct stage *stage);
enum status head_run(struct stage *stage, const struct step *step, struct sample_result *results);
/* tokens.c: counts of the step's literal tokens; last stage, before the head. */
enum status tokens_count(struct stage *stage, const struct step *step);
/* tokens.c: sampled tokens become the slots' newest, and are counted where penalties are on. */
enum status tokens_remember(struct stage *stage, const struct step *step,
                            const struct sample_result *results);

/* Passes a failure up. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum status try_status = (call);                                                           \
        if (try_status != STATUS_OK)                                                               \
            return try_status;                                                                     \
    } while (0)

#endif
