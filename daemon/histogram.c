#include "daemon/histogram.h"

const double histogram_request_bounds[20] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                             0.5,   1,     2,    5,     10,   20,  30,
                                             60,    120,   300,  600,   1800, 7200};
const double histogram_token_bounds[22] = {0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008,
                                           0.01,   0.015, 0.02,   0.025, 0.05,  0.075, 0.1,   0.15,
                                           0.2,    0.3,   0.5,    1,     2.5,   10};

void histogram_init(struct histogram *histogram, const double *bounds, int count)
{
    histogram->bounds = bounds;
    histogram->count = count;
    for (int i = 0; i <= HISTOGRAM_BOUNDS_MAX; i++)
        atomic_init(&histogram->buckets[i], 0);
    atomic_init(&histogram->sum, 0);
}

void histogram_observe(struct histogram *histogram, double value)
{
    int bucket = 0;
    while (bucket < histogram->count && value > histogram->bounds[bucket])
        bucket++;
    atomic_fetch_add_explicit(&histogram->buckets[bucket], 1, memory_order_relaxed);
    double sum = atomic_load_explicit(&histogram->sum, memory_order_relaxed);
    atomic_store_explicit(&histogram->sum, sum + value, memory_order_relaxed);
}

void histogram_print(const struct histogram *histogram, const char *name, const char *help,
                     const char *labels, FILE *out)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    uint64_t total = 0;
    for (int i = 0; i <= histogram->count; i++) {
        total += atomic_load_explicit(&histogram->buckets[i], memory_order_relaxed);
        if (i < histogram->count)
            fprintf(out, "%s_bucket{%s,le=\"%g\"} %llu\n", name, labels, histogram->bounds[i],
                    (unsigned long long)total);
        else
            fprintf(out, "%s_bucket{%s,le=\"+Inf\"} %llu\n", name, labels,
                    (unsigned long long)total);
    }
    fprintf(out, "%s_sum{%s} %.9g\n", name, labels,
            atomic_load_explicit(&histogram->sum, memory_order_relaxed));
    fprintf(out, "%s_count{%s} %llu\n", name, labels, (unsigned long long)total);
}
