/* A Prometheus histogram: cumulative buckets with fixed upper bounds, count and sum. One thread
 * observes, any thread reads; a reader may see a count one ahead of the sum. */
#ifndef JETD_DAEMON_HISTOGRAM_H
#define JETD_DAEMON_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

enum { HISTOGRAM_BOUNDS_MAX = 24 };

struct histogram {
    const double *bounds; /* [count] ascending; +Inf follows */
    int count;
    _Atomic uint64_t buckets[HISTOGRAM_BOUNDS_MAX + 1]; /* not cumulative */
    _Atomic double sum;
};

/* Bounds in seconds: whole requests, and single tokens of fast models. */
extern const double histogram_request_bounds[20];
extern const double histogram_token_bounds[22];

void histogram_init(struct histogram *histogram, const double *bounds, int count);
void histogram_observe(struct histogram *histogram, double value);
/* HELP, TYPE and sample lines; `labels` without braces, e.g. model_name="x". */
void histogram_print(const struct histogram *histogram, const char *name, const char *help,
                     const char *labels, FILE *out);

#endif
