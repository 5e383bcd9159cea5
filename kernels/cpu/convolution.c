/* Dynamic causal convolution; the rows before the new tokens are carried in a pool. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/variant.h"

/* One sequence, channels begin .. end - 1. */
struct line {
    const struct convolution_op *op;
    float *rows;  /* [taps - 1, channels] of its slot */
    int start;    /* first token */
    int tokens;   /* new tokens */
    bool carried; /* the pool's rows count */
};

/* u of new token `index`; below 0: a carried row. NULL: zeros. */
static const float *input_row(const struct line *line, int index)
{
    const struct convolution_op *op = line->op;

    if (index >= 0)
        return (const float *)op->u + (ptrdiff_t)(line->start + index) * op->ld_u;
    return line->carried ? line->rows + (ptrdiff_t)(op->taps - 1 + index) * op->channels : NULL;
}

static void convolve(const struct line *line, int index, int begin, int end)
{
    const struct convolution_op *op = line->op;
    ptrdiff_t token = line->start + index, taps = op->taps;
    const float *kernels = (const float *)op->kernels + token * op->channels * taps;
    float *out = (float *)op->out + token * op->channels;

    for (int c = begin; c < end; c++)
        out[c] = 0.0f;
    for (int w = 0; w < taps; w++) {
        const float *u = input_row(line, index - (int)taps + 1 + w);
        if (u == NULL)
            continue;
        for (int c = begin; c < end; c++)
            out[c] += kernels[c * taps + w] * u[c];
    }
    for (int c = begin; c < end; c++)
        out[c] = out[c] / (1.0f + expf(-out[c]));
}

/* Row j becomes the input of the last taps - 1 - j tokens ago; sources lie ahead of what is
 * written, so the shift is done in place. */
static void carry(const struct line *line, int begin, int end)
{
    const struct convolution_op *op = line->op;
    size_t bytes = (size_t)(end - begin) * sizeof(float);

    for (int j = 0; j < op->taps - 1; j++) {
        const float *u = input_row(line, line->tokens - op->taps + 1 + j);
        float *row = line->rows + (ptrdiff_t)j * op->channels;
        if (u != NULL)
            memmove(row + begin, u + begin, bytes);
        else
            memset(row + begin, 0, bytes);
    }
}

void VARIANT(convolution)(const void *convolution_op, int begin, int end)
{
    const struct convolution_op *op = convolution_op;
    const struct ragged *batch = op->batch;

    for (int s = 0; s < batch->sequences; s++) {
        ptrdiff_t pool_row = (ptrdiff_t)batch->slots[s] * (op->taps - 1);
        struct line line = {.op = op,
                            .rows = (float *)op->rows + pool_row * op->channels,
                            .start = batch->starts[s],
                            .tokens = batch->starts[s + 1] - batch->starts[s],
                            .carried = batch->contexts[s] > 0};
        for (int i = 0; i < line.tokens; i++)
            convolve(&line, i, begin, end);
        if (line.tokens > 0)
            carry(&line, begin, end);
    }
}
