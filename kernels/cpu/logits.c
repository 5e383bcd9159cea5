/* What is asked of a row of logits, one vocabulary shard at a time. */
#include <string.h>

#include "kernels/cpu/cpu.h"

static struct logit_summary summarise(const float *row, int columns, int first)
{
    struct logit_summary s = {.max = -INFINITY, .argmax = -1};

    for (int c = 0; c < columns; c++) {
        if (isnan(row[c]) || row[c] == INFINITY)
            s.bad = 1;
        if (row[c] > s.max) {
            s.max = row[c];
            s.argmax = first + c;
        }
    }
    for (int c = 0; c < columns; c++)
        if (row[c] > -INFINITY)
            s.sum += exp((double)row[c] - s.max);
    return s;
}

enum status cpu_logit_summary(struct device *device, const struct logit_summary_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++)
        op->out[r] = summarise(op->logits + r * op->columns, op->columns, op->first);
    return STATUS_OK;
}

enum status cpu_logit_pick(struct device *device, const struct logit_pick_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++) {
        int64_t column = (int64_t)op->targets[r] - op->first;
        op->values[r] =
            column >= 0 && column < op->columns ? op->logits[r * op->columns + column] : -INFINITY;
    }
    return STATUS_OK;
}

/* Keeps `best` sorted; an equal value of a higher id does not move ahead. */
static void insert(struct logit_candidate *best, int k, struct logit_candidate entry)
{
    int at = k - 1;

    if (!(entry.value > best[at].value))
        return;
    for (; at > 0 && entry.value > best[at - 1].value; at--)
        best[at] = best[at - 1];
    best[at] = entry;
}

enum status cpu_logit_top(struct device *device, const struct logit_top_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows && op->k > 0; r++) {
        const float *row = op->logits + r * op->columns;
        struct logit_candidate *best = op->out + r * op->k;
        for (int i = 0; i < op->k; i++)
            best[i] = (struct logit_candidate){-INFINITY, -1};
        for (int c = 0; c < op->columns; c++)
            insert(best, op->k, (struct logit_candidate){row[c], op->first + c});
    }
    return STATUS_OK;
}

static void histogram(const float *row, int columns, int shift, float maximum, uint32_t prefix,
                      double *mass, uint32_t *count)
{
    memset(mass, 0, 256 * sizeof(*mass));
    memset(count, 0, 256 * sizeof(*count));
    for (int c = 0; c < columns; c++) {
        uint64_t key = logit_key(row[c]);
        if (key >> (shift + 8) != (uint64_t)prefix >> (shift + 8))
            continue;
        unsigned bin = (unsigned)(key >> shift) & 255;
        count[bin]++;
        if (row[c] > -INFINITY)
            mass[bin] += exp((double)row[c] - maximum);
    }
}

enum status cpu_logit_histogram(struct device *device, const struct logit_histogram_op *op)
{
    (void)device;
    for (ptrdiff_t r = 0; r < op->rows; r++)
        histogram(op->logits + r * op->columns, op->columns, op->shift, op->maxima[r],
                  op->prefixes[r], op->mass + r * 256, op->count + r * 256);
    return STATUS_OK;
}
