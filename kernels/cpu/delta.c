/* Gated delta rule as a recurrence: what the cpu serves with. The columns of a state evolve apart
 * from each other, so a strip of them passes through all tokens while it sits in the cache. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/variant.h"

enum { STRIP = 64 };

/* Token t of head h on columns at .. at + width - 1 of S. */
static void token_step(const struct delta_op *op, ptrdiff_t t, int h, float *state, int at,
                       int width)
{
    ptrdiff_t head = t * op->heads + h, d_k = op->d_k, d_v = op->d_v;
    const float *q = (const float *)op->q + head * d_k, *k = (const float *)op->k + head * d_k;
    const float *v = (const float *)op->v + head * d_v + at;
    float *out = (float *)op->out + head * d_v + at;
    float decay = expf(op->g[head]), beta = op->beta[head];
    float r[STRIP] = {0}, o[STRIP] = {0};

    for (ptrdiff_t i = 0; i < d_k; i++) {
        float *row = state + i * d_v + at;
        for (int j = 0; j < width; j++) {
            row[j] *= decay;
            r[j] += k[i] * row[j];
        }
    }
    for (int j = 0; j < width; j++)
        r[j] = beta * (v[j] - r[j]);
    for (ptrdiff_t i = 0; i < d_k; i++) {
        float *row = state + i * d_v + at;
        for (int j = 0; j < width; j++) {
            row[j] += k[i] * r[j];
            o[j] += q[i] * row[j];
        }
    }
    memcpy(out, o, (size_t)width * sizeof(float));
}

static void sequence_head(const struct delta_op *op, int s, int h)
{
    const struct ragged *batch = op->batch;
    size_t size = (size_t)op->d_k * (size_t)op->d_v;
    float *state = op->state + ((size_t)batch->slots[s] * (size_t)op->heads + (size_t)h) * size;

    if (batch->contexts[s] == 0)
        memset(state, 0, size * sizeof(float));
    for (int at = 0; at < op->d_v; at += STRIP) {
        int width = op->d_v - at < STRIP ? op->d_v - at : STRIP;
        for (int t = batch->starts[s]; t < batch->starts[s + 1]; t++)
            token_step(op, t, h, state, at, width);
    }
}

void VARIANT(delta_recurrent)(const void *delta_op, int begin, int end)
{
    const struct delta_op *op = delta_op;

    for (int s = 0; s < op->batch->sequences; s++)
        for (int h = begin; h < end; h++)
            sequence_head(op, s, h);
}
