/* The door of kernels/: arithmetic on one device, with no notion of model, rank or request.
 *
 * A `backend` is a table of operations (cpu, cuda); a `device` is one opened execution context of
 * it: memory, one ordered stream of work, private scratch. Each operation takes one struct; every
 * tensor field states its shape. Conventions:
 *
 * - A tensor of the backend's activation dtype (f32 on cpu, bf16 on cuda) is `void *`; `float *`
 *   is always f32. All pointers in an operation are device memory unless the field says host.
 * - Matrices are row-major; `ld_x` is the distance in elements between rows of x, so that an input
 *   may be a column range of a merged projection. Weights are [out, in]: y = x W^T.
 * - Operations are enqueued in order; of the memory's entries `download`, `synchronize`, `wait`,
 *   `release` and an `upload` behind others wait. They allocate nothing, but for a product of a
 *   shape that gemm_prepare was not shown, which may be timed when it first comes. A status other
 *   than STATUS_OK means the device is lost.
 * - The result of a token (row) never depends on which other tokens share the call: on the cpu
 *   bit for bit.
 * Formulas: Jet-Nemotron, arXiv 2508.15884; gated delta rule, arXiv 2412.06464. */
#ifndef JETD_KERNELS_H
#define JETD_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

size_t dtype_size(enum dtype dtype); /* bytes */
const char *dtype_name(enum dtype dtype);

struct device;
struct recording;

enum { DEVICE_LANES = 8 }; /* fetches that may be under way */

struct device_options {
    int ordinal;          /* which accelerator of this host */
    int threads;          /* cpu: worker threads for one operation, >= 1 */
    int max_tokens;       /* the most tokens a step will carry: sizes private scratch */
    int max_sequences;    /* the most sequences in a step */
    bool batch_invariant; /* cuda: the same bits for a row in any batch, at a cost */
    /* cuda: file of gemm_prepare's choices, read and written (picks.h); NULL: none. Outlives the
     * device. */
    const char *gemm_cache;
};

/* A ragged batch: sequences with different numbers of new tokens, packed without padding.
 * Sequences with one new token come first (`decodes` of them), then longer ones. */
struct ragged {
    int sequences;
    int tokens;                    /* new tokens over all sequences */
    int decodes;                   /* leading sequences with exactly one new token */
    int max_tokens;                /* new tokens of the longest sequence */
    int max_context;               /* largest context + new tokens of a sequence */
    const int32_t *starts;         /* [sequences + 1] first token of each sequence */
    const int32_t *slots;          /* [sequences] row in the state pools */
    const int32_t *contexts;       /* [sequences] tokens before the new ones; 0: a new sequence,
                                      whatever the pools hold counts as zero */
    const int32_t *token_sequence; /* [tokens] which sequence */
    const int32_t *token_position; /* [tokens] position in its sequence, from 0 */
    const int32_t *host_starts;    /* host copies of starts, slots and contexts */
    const int32_t *host_slots;
    const int32_t *host_contexts;
};

/* ---- embedding and dense ------------------------------------------------------------------ */

/* ids[t] = source[t] >= 0 ? source[t] : last[-1 - source[t]]: a token is a literal id, or the
 * newest sampled token of a slot, which the host need not know yet. */
struct resolve_op {
    int tokens;
    const int32_t *source; /* [tokens] */
    const int32_t *last;   /* [slots] */
    int32_t *ids;          /* [tokens] */
};

/* Rows of the embedding whose id lies in [first, first + rows); zeros for others, so that the sum
 * over vocabulary shards is the whole embedding. */
struct embed_op {
    int tokens, hidden, first, rows;
    const int32_t *ids; /* [tokens] */
    const void *table;  /* [rows, hidden] */
    void *out;          /* [tokens, hidden] */
};

/* x += delta (if not NULL); out = x / sqrt(mean(x^2) + eps) * weight, in fp32. */
struct rms_norm_op {
    int rows, columns;
    float epsilon;
    void *x;             /* [rows, columns], updated only when delta is not NULL */
    const void *delta;   /* [rows, columns] or NULL */
    const float *weight; /* [columns] */
    void *out;           /* [rows, columns]; NULL: only the addition */
};

/* out = x W^T (+ bias). Where gemm_fuses() says so: x normed first, as rms_norm would into memory
 * between; the product, rounded as if by itself, added to what is in out. */
struct gemm_op {
    int rows, columns, depth; /* x [rows, depth], weight [columns, depth], out [rows, columns] */
    int ld_x, ld_out;
    const void *x, *weight;
    const float *bias; /* [columns] or NULL */
    void *out;         /* activation dtype, or f32 when float_out */
    bool float_out;
    const float *norm; /* [depth] the norm's weight, or NULL */
    float epsilon;     /* the norm's */
    bool add;          /* out += */
};

/* out[r] = x[index[r]] */
struct gather_op {
    int rows, columns, ld_x;
    const int32_t *index; /* [rows] */
    const void *x;        /* [*, columns] */
    void *out;            /* [rows, columns] */
};

/* out = silu(x); may be in place. */
struct silu_op {
    int rows, columns, ld_x, ld_out;
    const void *x;
    void *out;
};

/* out = silu(gate) * up */
struct swiglu_op {
    int rows, columns, ld_in;
    const void *gate, *up; /* [rows, columns], both with ld_in */
    void *out;             /* [rows, columns] packed */
};

/* out = silu(x Wg^T) * (x Wu^T), the first half of a gated MLP. The default composes gemm and
 * swiglu (compose.c); a backend may fuse. */
struct gate_up_op {
    int rows, columns, depth, ld_x;
    const void *x;      /* [rows, depth] */
    const void *weight; /* [2 * columns, depth]: Wg, then Wu */
    void *scratch;      /* [rows, 2 * columns], of unknown content afterwards */
    void *out;          /* [rows, columns] packed */
    const float *norm;  /* [depth] or NULL, as in gemm_op; where gate_up_fuses() says so */
    float epsilon;
};

/* ---- attention ---------------------------------------------------------------------------- */

/* Rotary embedding, rotate-half form, in place on the whole head:
 * angle[i] = position * frequency[i]; out = x cos + rotate_half(x) sin, both scaled by `scale`
 * (yarn's attention factor; 1 otherwise). */
struct rope_op {
    int tokens, heads, head_dim, ld_x;
    const int32_t *positions; /* [tokens] */
    const float *frequencies; /* [head_dim / 2] inverse frequencies */
    float scale;
    void *x; /* [tokens, heads, head_dim] */
};

enum { CUDA_HEAD_DIM_MAX = 256 }; /* of attention on cuda */

/* Keys and values of one layer.
 * Paged (ring == 0): data is [blocks, 2, kv_heads, block_tokens, head_dim] (k, then v); position p
 *   of a slot lives in block table[slot, p / block_tokens].
 * Ring (ring > 0): data is [slots, 2, kv_heads, ring, head_dim]; position p is at p % ring. */
struct kv_cache {
    void *data;
    int kv_heads, head_dim;
    int block_tokens;
    const int32_t *table; /* [slots, ld_table] block numbers */
    int ld_table;
    int ring;
};

/* Writes new keys and values at their positions. For a ring only the last `ring` new tokens of each
 * sequence are written. */
struct kv_store_op {
    const struct ragged *batch;
    int ld_kv;
    const void *k, *v; /* [tokens, kv_heads, head_dim] */
    struct kv_cache cache;
};

/* Queries and keys rotated in place, then keys and values written: of decodes alone, where a ring
 * loses nothing by it. */
struct rope_store_op {
    struct rope_op rope;      /* heads: queries, then the keys that are stored */
    struct kv_store_op store; /* store.k: the keys within rope.x; a ring holds a window */
};

/* Causal attention of the new tokens over context and themselves; softmax in fp32.
 * Paged: kv_store ran before, everything is read from the cache.
 * Ring: kv_store runs after; positions >= context are read from k, v below, older ones from the
 * ring. Local query head i reads local kv head (group_offset + i) / group. */
struct attention_op {
    const struct ragged *batch;
    int heads;        /* local query heads */
    int group;        /* query heads per kv head in the whole model */
    int group_offset; /* global index of the first local query head, minus group x the global
                         index of the first local kv head */
    int ld_q, ld_kv;
    float scale;
    int window;        /* > 0: query t sees keys t - window + 1 .. t; 0: all keys */
    const void *q;     /* [tokens, heads, head_dim], rotated */
    const void *k, *v; /* [tokens, kv_heads, head_dim], rotated; used by rings */
    struct kv_cache cache;
    void *out;  /* [tokens, heads, head_dim] packed */
    float *lse; /* [tokens, heads] log-sum-exp of the scaled scores, or NULL */
};

/* ---- jet block ---------------------------------------------------------------------------- */

/* z = silu(x); out = z / sqrt(sum z^2 + epsilon) * scale per head. */
struct head_norm_op {
    int tokens, heads, dim, ld_x;
    float epsilon, scale;
    const void *x; /* [tokens, heads, dim] */
    void *out;     /* [tokens, heads, dim] packed */
};

/* Dynamic causal convolution with per-token kernels and carried rows:
 * out[t, c] = silu(sum_w kernels[t, c, w] * u[t - taps + 1 + w, c]); rows before the new tokens
 * come from `rows` (zero for a new sequence), which afterwards holds the last taps - 1 rows. */
struct convolution_op {
    const struct ragged *batch;
    int channels, taps, ld_u;
    const void *u;       /* [tokens, channels] */
    const void *kernels; /* [tokens, channels, taps] */
    void *rows;          /* [slots, taps - 1, channels], oldest first */
    void *out;           /* [tokens, channels] packed */
};

/* beta = sigmoid(b); g = -exp(A_log) * softplus(a + dt_bias), per head in fp32. */
struct gates_op {
    int tokens, heads, ld_a, ld_b;
    const void *a, *b;            /* [tokens, heads] */
    const float *a_log, *dt_bias; /* [heads] */
    float *g, *beta;              /* [tokens, heads] */
};

/* Gated delta rule. Per head, state S [d_k, d_v] in fp32:
 * S = exp(g) S; r = beta (v - S^T k); S += k r^T; o = S^T q. */
struct delta_op {
    const struct ragged *batch;
    int heads, d_k, d_v;
    const void *q, *k; /* [tokens, heads, d_k] packed, normalised, q scaled */
    const void *v;     /* [tokens, heads, d_v] packed */
    const float *g;    /* [tokens, heads], <= 0 */
    const float *beta; /* [tokens, heads] */
    float *state;      /* [slots, heads, d_k, d_v], read and written */
    void *out;         /* [tokens, heads, d_v] packed */
    int chunk;         /* chunked form: tokens a chunk, >= 1 */
};

/* out = o / sqrt(mean(o^2) + epsilon) * weight * silu(gate), the norm per head. */
struct gated_norm_op {
    int tokens, heads, dim, ld_gate;
    float epsilon;
    const void *o;       /* [tokens, heads, dim] packed */
    const void *gate;    /* [tokens, heads, dim] */
    const float *weight; /* [dim] */
    void *out;           /* [tokens, heads, dim] packed */
};

/* The whole jet mixer between the merged input projection and the output projection: head norms,
 * generator, convolution, gates, delta rule, gated norm. The default composes the entries above
 * (compose.c); a backend may fuse.
 *
 * A backend may read the state before the entries ahead of the call have ended, since they make
 * only the projections. So between two calls on one state, or after another entry that wrote it,
 * there must be a transfer (upload, copy, zero) or the beginning of a replay, which wait for
 * everything. Steps have their upload there. */
struct jet_mixer_op {
    const struct ragged *batch;
    int heads, d_k, d_v, taps, generator; /* local heads; generator = R, columns of w1 */
    float head_epsilon, norm_epsilon;
    const void *projected; /* [tokens, ld_projected], merged columns at the offsets below */
    int ld_projected;
    int q_at, k_at, v_at, gate_at, w1_at, a_at, b_at;
    const void *w2;               /* [heads * d_v * taps, generator] */
    const float *w2_bias;         /* [heads * d_v * taps] */
    const float *a_log, *dt_bias; /* [heads] */
    const float *norm_weight;     /* [d_v] */
    void *rows;                   /* [slots, taps - 1, heads * d_v] */
    float *state;                 /* [slots, heads, d_k, d_v] */
    void *out;                    /* [tokens, heads * d_v] */
    void *scratch;                /* jet_mixer_scratch() bytes */
};

/* An operation as steps will call it, shown to gemm_prepare: with what is there and of the most
 * rows (of a mixer: batch->tokens, and no more decodes than device_options.max_sequences). */
enum prepare_kind { PREPARE_GEMM, PREPARE_GATE_UP, PREPARE_JET_MIXER };

struct prepare_op {
    enum prepare_kind kind;
    int least; /* never with fewer rows */
    union {
        struct gemm_op gemm;
        struct gate_up_op gate_up;
        struct jet_mixer_op jet_mixer;
    };
};

/* ---- logits and sampling ------------------------------------------------------------------ */

enum { SAMPLE_TOP_MAX = 20 }; /* log-probabilities of the k best: k at most this */

/* How one row of logits becomes a token. Plain data, copied to the device as it is. */
struct sample_row {
    int32_t slot;              /* whose counts apply */
    int32_t target;            /* >= 0: score this id instead of sampling */
    float temperature;         /* 0: greedy */
    float top_p, min_p;        /* 1 and 0: off */
    int32_t top_k;             /* 0: off */
    float repetition;          /* 1: off */
    float presence, frequency; /* 0: off */
    uint64_t seed;
    uint64_t draw;                  /* which draw of this seed: the output index */
    int32_t bias_begin, bias_count; /* range in sample_batch.bias */
    int32_t ban_begin, ban_count;   /* range in sample_batch.bans */
    int32_t tops;                   /* log-probabilities of this many best ids are wanted */
    int32_t flags;
};

enum { SAMPLE_COUNTED = 1 }; /* the slot's counts row is in use */

struct logit_bias {
    int32_t id;
    float value;
};

/* Rows of one vocabulary shard: columns are the ids first .. first + columns - 1. */
struct sample_batch {
    int rows, columns, first;
    int limit;                     /* ids >= limit have no token and are never sampled */
    const struct sample_row *row;  /* [rows] */
    const struct logit_bias *bias; /* concatenated lists, by id of the whole vocabulary */
    const int32_t *bans;           /* ids that this draw must not give (min_new_tokens) */
    const uint32_t *counts;        /* [slots, columns]: output occurrences, SEEN_IN_PROMPT bit */
};

#define COUNT_SEEN_IN_PROMPT UINT32_C(0x80000000)

/* Raw distribution of a row over this shard; shards merge with logit_summary_merge(). */
struct logit_summary {
    float max;      /* -inf for an empty shard */
    int32_t argmax; /* lowest id among equals */
    double sum;     /* sum of exp(x - max) */
    int32_t bad;    /* NaN or +inf seen: the row must not be sampled from */
    int32_t unused;
};

void logit_summary_merge(struct logit_summary *into, const struct logit_summary *from);

struct logit_summary_op {
    int rows, columns, first;
    const float *logits;       /* [rows, columns] */
    struct logit_summary *out; /* [rows] */
};

/* value[r] = logits[r, target - first] where the row's target lies in this shard, else -inf. */
struct logit_pick_op {
    int rows, columns, first;
    const int32_t *targets; /* [rows] */
    const float *logits;    /* [rows, columns] */
    float *values;          /* [rows] */
};

struct logit_candidate {
    float value;
    int32_t id; /* -1: none */
};

/* The k best of this shard, best first, lower id first among equals. */
struct logit_top_op {
    int rows, columns, first, k; /* k <= SAMPLE_TOP_MAX */
    const float *logits;         /* [rows, columns] */
    struct logit_candidate *out; /* [rows, k] */
};

/* In place: bias, then penalties by counts (repetition as in CTRL: l > 0 ? l / r : l * r, over
 * prompt and output; presence and frequency over the output), bans and ids >= limit to -inf, then
 * l / temperature (left alone when temperature is 0). */
struct logit_adjust_op {
    struct sample_batch batch;
    float *logits; /* [rows, columns] */
};

/* Order-preserving 32-bit key of a float: a < b as floats iff key(a) < key(b). */
uint32_t logit_key(float value);

/* Masses and counts by key digit, among columns whose key shares `prefix` in the bits above
 * `shift + 8`: the bin of a column is (key >> shift) & 255. Four rounds (shift 24, 16, 8, 0) find
 * the exact value at any rank or mass, whichever way the vocabulary is split. */
struct logit_histogram_op {
    int rows, columns, shift;
    const float *logits;      /* [rows, columns], adjusted */
    const float *maxima;      /* [rows] maximum over all shards: mass is exp(x - max) */
    const uint32_t *prefixes; /* [rows] */
    double *mass;             /* [rows, 256] */
    uint32_t *count;          /* [rows, 256] */
};

/* A row's outcome. */
struct sample_result {
    int32_t token;     /* sampled id, or the target; -1: the logits were not finite */
    int32_t is_argmax; /* of the raw logits */
    float logprob;     /* of `token`, raw (before penalties and temperature) */
    int32_t tops;
    struct logit_candidate top[SAMPLE_TOP_MAX]; /* value = raw log-probability, best first */
};

/* The winner of the exponential race among columns with key >= floor:
 * argmax (logit - log(-log(u))) with u from sample_uniform(seed, draw, id), so that the drawn token
 * does not depend on how the vocabulary is split. Greedy rows: plain argmax, lowest id first. */
struct logit_draw_op {
    struct sample_batch batch;
    const float *logits;         /* [rows, columns], adjusted */
    const uint32_t *floors;      /* [rows] least key that may be drawn */
    struct logit_candidate *out; /* [rows] value = race score */
};

/* Uniform in (0, 1), 32 random bits: Philox4x32-10 (Salmon et al., SC'11) with key = seed and
 * counter = (draw, id). */
double sample_uniform(uint64_t seed, uint64_t draw, uint32_t id);

/* Counts: one entry per (slot, id); `prompt` sets the seen bit, otherwise the count grows by one.
 * id -1 - s stands for last[s]. Ids outside the shard are ignored. reset slots are cleared first.
 */
struct count_entry {
    int32_t slot, id, prompt;
};

struct count_op {
    int entries, resets, columns, first;
    const struct count_entry *entry; /* [entries] */
    const int32_t *reset;            /* [resets] slots */
    const int32_t *last;             /* [slots] */
    uint32_t *counts;                /* [slots, columns] */
};

/* last[slot[i]] = token[i] */
struct remember_op {
    int rows;
    const int32_t *slots, *tokens; /* [rows] */
    int32_t *last;                 /* [slots] */
};

/* All of sampling for rows of the whole vocabulary (one shard) without the host: summary, tops,
 * adjustment, thresholds (top_k, then top_p, then min_p, over the adjusted distribution), draw or
 * target. For sampled rows then last[row.slot] = token, and the slot's count where SAMPLE_COUNTED.
 * The outcome is what the single entries above give. */
struct sample_op {
    struct sample_batch batch;
    /* What some row of the batch asks for; what none asks for is skipped. */
    bool adjusted;   /* bias, penalties, bans, limit < columns, or temperature other than 0 and 1 */
    bool thresholds; /* top_k, top_p or min_p */
    bool tops;       /* log-probabilities of the k best */
    const float *logits;       /* [rows, columns] raw */
    float *work;               /* [rows, columns], clobbered */
    int32_t *last;             /* [slots] */
    uint32_t *counts;          /* [slots, columns] */
    struct sample_result *out; /* [rows] */
};

/* ---- the table ---------------------------------------------------------------------------- */

struct backend {
    const char *name;
    enum dtype activation;

    /* Errors: STATUS_CONFIG (no such device, no such build), STATUS_DEVICE, STATUS_NO_MEMORY. */
    enum status (*open)(const struct device_options *options, struct device **device,
                        struct error *error);
    void (*close)(struct device *device);
    /* Bytes of device memory free and in all. */
    enum status (*memory)(struct device *device, size_t *available, size_t *total);
    /* Zeroed, 256-byte aligned. Only before the first step. */
    enum status (*allocate)(struct device *device, size_t bytes, void **memory);
    void (*release)(struct device *device, void *memory); /* NULL is fine */
    /* `from` may be reused at return. */
    enum status (*upload)(struct device *device, void *to, const void *from_host, size_t bytes);
    /* Returns when the bytes are there. */
    enum status (*download)(struct device *device, void *to_host, const void *from, size_t bytes);
    enum status (*copy)(struct device *device, void *to, const void *from, size_t bytes);
    enum status (*zero)(struct device *device, void *to, size_t bytes);
    enum status (*synchronize)(struct device *device);

    enum status (*resolve)(struct device *, const struct resolve_op *);
    enum status (*embed)(struct device *, const struct embed_op *);
    enum status (*rms_norm)(struct device *, const struct rms_norm_op *);
    enum status (*gemm)(struct device *, const struct gemm_op *);
    enum status (*gather)(struct device *, const struct gather_op *);
    enum status (*silu)(struct device *, const struct silu_op *);
    enum status (*swiglu)(struct device *, const struct swiglu_op *);
    enum status (*gate_up)(struct device *, const struct gate_up_op *);
    enum status (*rope)(struct device *, const struct rope_op *);
    enum status (*kv_store)(struct device *, const struct kv_store_op *);
    enum status (*attention)(struct device *, const struct attention_op *);
    enum status (*head_norm)(struct device *, const struct head_norm_op *);
    enum status (*convolution)(struct device *, const struct convolution_op *);
    enum status (*gates)(struct device *, const struct gates_op *);
    enum status (*delta_recurrent)(struct device *, const struct delta_op *);
    enum status (*delta_chunked)(struct device *, const struct delta_op *);
    enum status (*gated_norm)(struct device *, const struct gated_norm_op *);
    enum status (*jet_mixer)(struct device *, const struct jet_mixer_op *);
    size_t (*jet_mixer_scratch)(const struct jet_mixer_op *shape, int max_tokens); /* bytes */
    enum status (*logit_summary)(struct device *, const struct logit_summary_op *);
    enum status (*logit_pick)(struct device *, const struct logit_pick_op *);
    enum status (*logit_top)(struct device *, const struct logit_top_op *);
    enum status (*logit_adjust)(struct device *, const struct logit_adjust_op *);
    enum status (*logit_histogram)(struct device *, const struct logit_histogram_op *);
    enum status (*logit_draw)(struct device *, const struct logit_draw_op *);
    enum status (*count)(struct device *, const struct count_op *);
    enum status (*remember)(struct device *, const struct remember_op *);

    /* Optional entries, NULL where a backend lacks them. */
    enum status (*rope_store)(struct device *, const struct rope_store_op *);
    enum status (*sample)(struct device *, const struct sample_op *);
    /* Whether gemm takes op's norm and add, and gate_up its norm. */
    bool (*gemm_fuses)(struct device *, const struct gemm_op *);
    bool (*gate_up_fuses)(struct device *, const struct gate_up_op *);
    /* Before the first step: makes the choices that the products of these operations need, for
     * every row count that they may have, by running and timing them, so that no step has to. What
     * the products write is clobbered, scratch too. *choices: how many were made. */
    enum status (*gemm_prepare)(struct device *, const struct prepare_op *ops, int count,
                                int *choices);
    /* Pinned host memory, for fetch. */
    enum status (*host_allocate)(struct device *, size_t bytes, void **memory);
    void (*host_release)(struct device *, void *memory);
    /* Starts a copy to pinned memory; wait() returns when the lane's newest fetch is there. Lanes
     * are 0 .. DEVICE_LANES - 1. */
    enum status (*fetch)(struct device *, int lane, void *to_host, const void *from, size_t bytes);
    enum status (*wait)(struct device *, int lane);
    bool (*ready)(struct device *, int lane); /* wait() would not wait */
    /* Between begin and end, entries are recorded instead of run; replay runs them again with the
     * memory and shapes they were recorded with (a CUDA graph). What was chosen from host fields of
     * struct ragged (max_context) must hold for every replay. recording_free may be called while
     * replays are under way, which end as if it had not been (NULL is fine). */
    enum status (*record_begin)(struct device *);
    enum status (*record_end)(struct device *, struct recording **recording);
    enum status (*replay)(struct device *, const struct recording *recording);
    void (*recording_free)(struct device *, struct recording *recording);
    /* Accelerators of this host that this process may open. */
    int (*devices)(void);
    /* The accelerator's own number, equal in every process that opened the same one. */
    enum status (*identity)(struct device *, unsigned char id[16]);
    /* The native stream that entries are enqueued on (cudaStream_t), for cluster/. */
    void *(*stream)(struct device *);
};

/* The table by name ("cpu", "cuda"); NULL for another name. A build without CUDA has a "cuda"
 * table whose open() says so. */
const struct backend *backend_find(const char *name);

/* compose.c: coarse entries from the fine ones of `backend`; what a table may use as its gate_up,
 * jet_mixer and jet_mixer_scratch. */
enum status compose_gate_up(const struct backend *backend, struct device *device,
                            const struct gate_up_op *op);
struct gemm_op compose_gate_up_product(const struct gate_up_op *op); /* its only one */
enum status compose_jet_mixer(const struct backend *backend, struct device *device,
                              const struct jet_mixer_op *op);
size_t compose_jet_mixer_scratch(const struct backend *backend, const struct jet_mixer_op *shape,
                                 int max_tokens);

#ifdef __cplusplus
}
#endif

#endif
