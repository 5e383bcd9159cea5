/* The door of partition/: the model and how it is cut. Knows what is computed where; sees no
 * client and no clock.
 *
 *   model      config.json and generation_config.json, checked        (config.c)
 *   checkpoint a folder of safetensors, checked, read by pieces        (checkpoint.c)
 *   plan       model + mesh + limits -> who holds and computes what    (plan.c), pure
 *   stage      one rank's run of layers, its weights and its state     (stage.c and layer files)
 *   step       flat bytes of one step, the same on every rank          (step.h, batch.c) */
#ifndef JETD_PARTITION_H
#define JETD_PARTITION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cluster/cluster.h"
#include "daemon/base/status.h"
#include "kernels/kernels.h"
#include "partition/step.h"

/* ---- model -------------------------------------------------------------------------------- */

enum { MODEL_LAYERS_MAX = 512, MODEL_EOS_MAX = 8 };

enum layer_type { LAYER_JET, LAYER_ATTN, LAYER_SWA };
enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_YARN, ROPE_LLAMA3 };

struct rope_config {
    enum rope_type type;
    double theta, factor;
    double attention_factor;                  /* yarn; 0: from factor */
    double beta_fast, beta_slow;              /* yarn */
    double mscale, mscale_all_dim;            /* yarn; 0: absent */
    double low_freq_factor, high_freq_factor; /* llama3 */
    int original_max_position;
    bool truncate; /* yarn: round the correction range; default true */
};

struct model_config {
    int layers, hidden, intermediate, vocab;
    int attention_heads, kv_heads, head_dim;
    int window;                                            /* of swa layers; 0: none */
    int jet_heads, jet_d_k, jet_d_v, conv_taps, generator; /* generator = R; 0: no jet layers */
    float rms_epsilon, jet_epsilon;
    int max_position;
    bool tied;
    struct rope_config rope;
    enum layer_type layer[MODEL_LAYERS_MAX];
    /* generation_config.json (eos falls back to config.json) */
    int eos[MODEL_EOS_MAX], eos_count;
    float temperature, top_p, min_p, repetition_penalty; /* temperature 0: do_sample is false */
    int top_k;
    bool has_generation; /* a generation_config.json with sampling fields: else defaults are 1.0 */
};

/* Reads `folder`/config.json and, where present, generation_config.json.
 * Errors name file and field: STATUS_CONFIG, STATUS_CORRUPT, STATUS_IO. */
enum status model_config_load(const char *folder, struct model_config *config, struct error *error);
/* The same from text, for tests and fuzzing; `name` stands for the file in errors. */
enum status model_config_parse(const char *name, const char *text, size_t length,
                               struct model_config *config, struct error *error);
/* Built-in published shapes: "jet-nemotron-2b", "jet-nemotron-4b". STATUS_NOT_FOUND otherwise. */
enum status model_config_builtin(const char *name, struct model_config *config,
                                 struct error *error);
/* Inverse frequencies [head_dim / 2] and the scale on cos and sin, as in transformers' rope
 * utilities; `length` matters to dynamic scaling only (max_model_len of the run). */
void model_rope(const struct model_config *config, int length, float *frequencies, float *scale);

/* ---- checkpoint --------------------------------------------------------------------------- */

enum { TENSOR_DIMS_MAX = 8 };

struct tensor_entry {
    const char *name; /* owned by the checkpoint */
    enum dtype dtype;
    int dims;
    uint64_t shape[TENSOR_DIMS_MAX];
    uint64_t bytes;
    const char *file; /* "dummy" where there is none */
    uint64_t offset;  /* of the data in the file */
    int shard;        /* number of the file in the checkpoint */
};

struct checkpoint;

/* Opens and checks every shard and the index, and compares the tensors with what `config` needs
 * (names, shapes, none missing, none extra). Errors name file, tensor and offset. */
enum status checkpoint_open(const char *folder, const struct model_config *config,
                            struct checkpoint **checkpoint, struct error *error);
/* No files: every tensor the config needs exists and yields small random numbers from `seed`,
 * a pure function of (seed, name, element), so that any mesh loads the same model. */
enum status checkpoint_dummy(const struct model_config *config, uint64_t seed,
                             struct checkpoint **checkpoint, struct error *error);
void checkpoint_close(struct checkpoint *checkpoint);
/* NULL when absent (lm_head.weight of a tied model). */
const struct tensor_entry *checkpoint_find(const struct checkpoint *checkpoint, const char *name);
/* Rows [row, row + rows) and columns [column, column + columns) of a tensor seen as a matrix
 * [shape[0], rest] (1-d: [n, 1]), converted to f32 or bf16, to out with ld_out elements a row.
 * NaN or Inf: STATUS_CORRUPT naming tensor and element. Thread-safe. */
enum status checkpoint_read(const struct checkpoint *checkpoint, const struct tensor_entry *tensor,
                            uint64_t row, uint64_t rows, uint64_t column, uint64_t columns,
                            enum dtype dtype, void *out, uint64_t ld_out, struct error *error);
/* That no file changed since it was opened, for whoever has read the last piece: an earlier read
 * may have met half of a change. STATUS_CORRUPT naming the file. */
enum status checkpoint_unchanged(const struct checkpoint *checkpoint, struct error *error);
/* Digest of names, shapes, dtypes, offsets and sizes: what ranks compare. */
uint64_t checkpoint_digest(const struct checkpoint *checkpoint);

/* ---- plan --------------------------------------------------------------------------------- */

struct limits {
    int max_model_len;          /* tokens of one sequence; 0: max_position of the model */
    int max_num_seqs;           /* running sequences (state slots) */
    int max_num_batched_tokens; /* tokens of one step */
    int block_tokens;           /* tokens of one KV block; 64 */
    uint64_t kv_blocks;         /* 0: as many as memory_bytes leaves, at most what
                                   max_num_seqs x max_model_len can use */
    uint64_t memory_bytes;      /* of one rank, for all that total_bytes counts; 0: no limit */
};

struct span {
    int begin, end; /* [begin, end) */
};

static inline int span_size(struct span span)
{
    return span.end - span.begin;
}

/* One rank's share. */
struct rank_plan {
    int rank;
    struct coordinates at;
    struct span layers;    /* of the model */
    struct span jet_heads; /* value channels, generator rows and g, a, b go with the heads */
    struct span q_heads, kv_heads;
    int group, group_offset;                 /* see attention_op */
    struct span columns;                     /* of gate and up, rows of down's input */
    struct span vocab;                       /* embedding and head rows */
    bool first, last;                        /* pipeline stage: embeds, makes logits */
    int jet_layers, attn_layers, swa_layers; /* in `layers` */
    uint64_t weight_bytes, scratch_bytes;
    uint64_t recording_bytes;          /* of decode steps, which the back end takes as it goes */
    uint64_t state_bytes_per_sequence; /* recurrent, conv rows and rings */
    uint64_t kv_bytes_per_token;
    uint64_t kv_blocks; /* the same number on every rank */
    uint64_t total_bytes;
    double cost; /* modelled time of a token, arbitrary unit */
};

struct plan {
    struct model_config model;
    struct mesh mesh;
    struct limits limits; /* with defaults filled in */
    enum dtype activation;
    int ranks;
    struct rank_plan *rank; /* [ranks] */
    int max_blocks_per_sequence;
    uint64_t digest; /* of everything above */
};

/* Pure: no device, no file. Errors (STATUS_CONFIG) name the axis, the size and the limit that do
 * not fit, and what would. */
enum status plan_make(const struct model_config *model, struct mesh mesh, struct limits limits,
                      enum dtype activation, struct plan **plan, struct error *error);
void plan_free(struct plan *plan);
void plan_print(const struct plan *plan, FILE *out);
/* Steps under way that keep the host and every stage busy: 2 .. STAGE_DEPTH. */
int plan_depth(const struct plan *plan);
/* The capacities of a step under this plan: what builder, executor and stage share. */
void plan_step_shape(const struct plan *plan, struct step_shape *shape);

/* ---- stage -------------------------------------------------------------------------------- */

struct stage;

struct stage_options {
    const struct plan *plan;             /* outlives the stage */
    const struct checkpoint *checkpoint; /* may be closed after open */
    const struct backend *backend;
    struct device *device;
    struct fabric *fabric;
    int limit; /* ids >= limit are never sampled (those without a token); model vocab: none */
    /* Loading: bytes done and in all; may be NULL. */
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *progress_context;
};

/* Loads this rank's pieces, allocates pools and scratch. Steps allocate nothing, but for the
 * recording of a new shape of decode steps, whose memory the plan counts. */
enum status stage_open(const struct stage_options *options, struct stage **stage,
                       struct error *error);
void stage_close(struct stage *stage);
/* Before the first step, where steps must not wait for it: the back end chooses how the stage's
 * products are computed, for any number of tokens. *choices: how many it made. */
enum status stage_prepare(struct stage *stage, int *choices, struct error *error);

/* After stage_prepare and before the first step: records one more of the decode steps that are
 * likely to come (CUDA graphs), by a step that concerns no request. *more: there are others; false
 * at once where a stage cannot do so alone. */
enum status stage_record(struct stage *stage, bool *more, struct error *error);

enum { STAGE_DEPTH = 8 }; /* the most steps under way */

/* Starts one step; every rank of the mesh calls it with the same bytes. Where the device works on
 * its own it returns as soon as the work is enqueued. At most plan_depth() steps are under way. */
enum status stage_submit(struct stage *stage, const struct step *step, struct error *error);
/* Waits for the oldest step under way. On rank 0 `results` [rows] is filled, elsewhere only *rows
 * counts; `results` may be NULL. */
enum status stage_collect(struct stage *stage, struct sample_result *results, int *rows,
                          struct error *error);
/* Both in one. */
enum status stage_run(struct stage *stage, const struct step *step, struct sample_result *results,
                      struct error *error);
/* Whether stage_collect would return without waiting. */
bool stage_ready(const struct stage *stage);
/* Steps that wait to be collected. */
int stage_pending(const struct stage *stage);

/* Benchmarks: fills all state and KV memory with small random numbers, and makes a slot hold
 * `length` tokens of them in `blocks` [count], as if they had been prefilled. No step may be under
 * way. */
enum status stage_randomise(struct stage *stage, uint64_t seed, struct error *error);
enum status stage_inject(struct stage *stage, int slot, int length, const int32_t *blocks,
                         int count, struct error *error);

/* One sequence's state of one layer as this rank holds it, f32, for tests, snapshots and
 * hand-over: layer numbers are the model's; kinds that the layer lacks give STATUS_NOT_FOUND. */
enum state_kind {
    STATE_RECURRENT, /* [local heads, d_k, d_v] */
    STATE_CONV,      /* [taps - 1, local channels], oldest first */
    STATE_K,         /* [tokens kept, local kv heads, head_dim], oldest first */
    STATE_V,
};
/* *count: floats written (STATE_K, STATE_V: attn keeps `length` tokens, swa min(length, window)).
 */
enum status stage_export(struct stage *stage, int slot, int layer, enum state_kind kind, int length,
                         float *out, size_t room, size_t *count, struct error *error);

#endif
