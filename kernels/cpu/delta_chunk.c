/* Gated delta rule in chunks (arXiv 2412.06464, section 3.3). With G the sum of g inside the chunk
 * and S the entering state:
 *   M = strictly-lower(beta_i exp(G_i - G_j) k_i . k_j)
 *   (I + M) R = beta * (V - exp(G) * K S)            solved row by row
 *   O = exp(G) * Q S + lower(exp(G_i - G_j) q_i . k_j) R
 *   S' = exp(G_last) S + (exp(G_last - G) * K)^T R
 * Only differences G_i - G_j <= 0 are exponentiated. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/variant.h"

enum {
    CHUNK_MAX = 64, /* a longer chunk is taken in pieces of this */
    STRIP = 64,     /* columns of S at a time */
};

/* What all columns of S share. */
struct chunk {
    const struct delta_op *op;
    ptrdiff_t first; /* token */
    int head, tokens;
    float sum[CHUNK_MAX];             /* G */
    float mix[CHUNK_MAX][CHUNK_MAX];  /* M */
    float read[CHUNK_MAX][CHUNK_MAX]; /* exp(G_i - G_j) q_i . k_j */
};

static ptrdiff_t head_at(const struct chunk *c, int i)
{
    return (c->first + i) * c->op->heads + c->head;
}

static void chunk_prepare(struct chunk *c)
{
    const struct delta_op *op = c->op;
    const float *q = op->q, *k = op->k;
    float sum = 0.0f;

    for (int i = 0; i < c->tokens; i++) {
        c->sum[i] = sum += op->g[head_at(c, i)];
        for (int j = 0; j <= i; j++) {
            float decay = expf(c->sum[i] - c->sum[j]);
            const float *k_j = k + head_at(c, j) * op->d_k;
            c->read[i][j] = decay * dot(q + head_at(c, i) * op->d_k, k_j, op->d_k);
            c->mix[i][j] =
                op->beta[head_at(c, i)] * decay * dot(k + head_at(c, i) * op->d_k, k_j, op->d_k);
        }
    }
}

/* to[j] += factor * from[j] */
ALWAYS_INLINE void add_scaled(float *to, float factor, const float *from, int width)
{
    for (int j = 0; j < width; j++)
        to[j] += factor * from[j];
}

/* to += row^T S over columns at .. at + width - 1 */
static void add_product(float *to, const float *row, const struct delta_op *op, const float *state,
                        int at, int width)
{
    for (ptrdiff_t i = 0; i < op->d_k; i++)
        add_scaled(to, row[i], state + i * op->d_v + at, width);
}

/* R of token i, from those before it. */
static void correct(const struct chunk *c, int i, const float *state, int at, int width,
                    float r[][STRIP])
{
    const struct delta_op *op = c->op;
    const float *k = (const float *)op->k + head_at(c, i) * op->d_k;
    const float *v = (const float *)op->v + head_at(c, i) * op->d_v + at;
    float known[STRIP] = {0}, decay = expf(c->sum[i]), beta = op->beta[head_at(c, i)];

    add_product(known, k, op, state, at, width);
    for (int j = 0; j < width; j++)
        r[i][j] = beta * (v[j] - decay * known[j]);
    for (int j = 0; j < i; j++)
        add_scaled(r[i], -c->mix[i][j], r[j], width);
}

static void read_out(const struct chunk *c, int i, const float *state, int at, int width,
                     float r[][STRIP])
{
    const struct delta_op *op = c->op;
    const float *q = (const float *)op->q + head_at(c, i) * op->d_k;
    float o[STRIP] = {0}, decay = expf(c->sum[i]);

    add_product(o, q, op, state, at, width);
    for (int j = 0; j < width; j++)
        o[j] *= decay;
    for (int j = 0; j <= i; j++)
        add_scaled(o, c->read[i][j], r[j], width);
    memcpy((float *)op->out + head_at(c, i) * op->d_v + at, o, (size_t)width * sizeof(float));
}

static void advance(const struct chunk *c, float *state, int at, int width, float r[][STRIP])
{
    const struct delta_op *op = c->op;
    float last = c->sum[c->tokens - 1];

    for (ptrdiff_t i = 0; i < op->d_k; i++)
        for (int j = 0; j < width; j++)
            state[i * op->d_v + at + j] *= expf(last);
    for (int t = 0; t < c->tokens; t++) {
        const float *k = (const float *)op->k + head_at(c, t) * op->d_k;
        float decay = expf(last - c->sum[t]);
        for (ptrdiff_t i = 0; i < op->d_k; i++)
            add_scaled(state + i * op->d_v + at, decay * k[i], r[t], width);
    }
}

static void chunk_run(struct chunk *c, float *state)
{
    float r[CHUNK_MAX][STRIP];

    chunk_prepare(c);
    for (int at = 0; at < c->op->d_v; at += STRIP) {
        int width = c->op->d_v - at < STRIP ? c->op->d_v - at : STRIP;
        for (int i = 0; i < c->tokens; i++)
            correct(c, i, state, at, width, r);
        for (int i = 0; i < c->tokens; i++)
            read_out(c, i, state, at, width, r);
        advance(c, state, at, width, r);
    }
}

void VARIANT(delta_chunked)(const void *delta_op, int begin, int end)
{
    const struct delta_op *op = delta_op;
    const struct ragged *batch = op->batch;
    size_t size = (size_t)op->d_k * (size_t)op->d_v;
    int step = op->chunk < CHUNK_MAX ? op->chunk : CHUNK_MAX;
    struct chunk c = {.op = op};

    for (int s = 0; s < batch->sequences; s++) {
        for (c.head = begin; c.head < end; c.head++) {
            float *state =
                op->state + ((size_t)batch->slots[s] * (size_t)op->heads + (size_t)c.head) * size;
            if (batch->contexts[s] == 0)
                memset(state, 0, size * sizeof(float));
            for (int t = batch->starts[s]; t < batch->starts[s + 1]; t += step) {
                c.first = t;
                c.tokens = batch->starts[s + 1] - t < step ? batch->starts[s + 1] - t : step;
                chunk_run(&c, state);
            }
        }
    }
}
