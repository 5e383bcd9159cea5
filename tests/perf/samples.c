#include "tests/perf/samples.h"

#include <stdlib.h>

void samples_add(struct samples *samples, double value)
{
    if (samples->count == samples->room) {
        size_t room = samples->room ? 2 * samples->room : 1024;
        double *grown = realloc(samples->value, room * sizeof *grown);
        if (grown == NULL)
            return;
        samples->value = grown;
        samples->room = room;
    }
    samples->value[samples->count++] = value;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_quantile(struct samples *samples, double q)
{
    if (samples->count == 0)
        return 0;
    qsort(samples->value, samples->count, sizeof *samples->value, compare);
    size_t at = (size_t)(q * (double)samples->count);
    return samples->value[at < samples->count ? at : samples->count - 1];
}

void samples_free(struct samples *samples)
{
    free(samples->value);
    *samples = (struct samples){0};
}
