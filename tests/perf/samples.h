/* Numbers of a measurement: collected, then read as percentiles. */
#ifndef JETD_PERF_SAMPLES_H
#define JETD_PERF_SAMPLES_H

#include <stddef.h>

struct samples {
    double *value;
    size_t count, room;
};

void samples_add(struct samples *samples, double value); /* drops what memory has no room for */
/* q in [0, 1]; nearest rank; 0 without samples. Sorts. */
double samples_quantile(struct samples *samples, double q);
void samples_free(struct samples *samples);

#endif
