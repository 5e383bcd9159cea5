/* Where to cut the layers. The cost of a layer is the time of one decoded token on a reference
 * accelerator: multiply-adds at its dense rate, plus bytes at its memory rate, weights shared by
 * a batch. Only ratios matter. */
#include <float.h>
#include <stdlib.h>

#include "partition/plan.h"

static const double reference_flops = 6e14, reference_bytes = 4e12; /* a second */
static const double reference_batch = 32, reference_context = 16384;

static double time_of(double parameters, double own_bytes, double own_flops)
{
    return (2 * parameters + own_flops) / reference_flops +
           (2 * parameters / reference_batch + own_bytes) / reference_bytes;
}

static double layer_cost(const struct plan *plan, enum layer_type type)
{
    const struct model_config *m = &plan->model;
    double hidden = m->hidden, mlp = 3.0 * hidden * m->intermediate;
    if (type == LAYER_JET) {
        double keys = (double)m->jet_heads * m->jet_d_k;
        double values = (double)m->jet_heads * m->jet_d_v;
        double weights = hidden * (2 * keys + 3 * values + m->generator + 2.0 * m->jet_heads) +
                         values * m->conv_taps * m->generator;
        double state = keys * m->jet_d_v;
        return time_of(mlp + weights, 8 * state, 8 * state);
    }
    double length = plan->limits.max_model_len;
    if (length > reference_context)
        length = reference_context;
    if (type == LAYER_SWA && length > m->window)
        length = m->window;
    double width = (double)m->attention_heads * m->head_dim;
    double kv_width = (double)m->kv_heads * m->head_dim;
    double weights = hidden * (2 * width + 2 * kv_width);
    return time_of(mlp + weights, 4 * kv_width * length, 4 * width * length);
}

static double stage_cost(const struct plan *plan, const double *sums, int begin, int end)
{
    const struct model_config *m = &plan->model;
    double cost = sums[end] - sums[begin];
    if (begin == 0)
        cost += time_of(0, 2.0 * m->hidden, 0);
    if (end == m->layers)
        cost += time_of((double)m->vocab * m->hidden, 8.0 * m->vocab, 0);
    return cost;
}

/* best[s][e]: the dearest of s + 1 stages over layers [0, e), at its least; from[s][e]: where the
 * last of them begins. */
static void balance_fill(const struct plan *plan, const double *sums, double *best, int *from)
{
    int layers = plan->model.layers, stages = plan->mesh.pipeline, width = layers + 1;
    for (int s = 0; s < stages; s++) {
        for (int end = s + 1; end <= layers; end++) {
            double *at = &best[s * width + end];
            *at = s == 0 ? stage_cost(plan, sums, 0, end) : DBL_MAX;
            from[s * width + end] = s == 0 ? 0 : s;
            for (int begin = s; s > 0 && begin < end; begin++) {
                double last = stage_cost(plan, sums, begin, end);
                double before = best[(s - 1) * width + begin];
                double dearest = last > before ? last : before;
                if (dearest < *at) {
                    *at = dearest;
                    from[s * width + end] = begin;
                }
            }
        }
    }
}

enum status plan_balance(const struct plan *plan, int *cuts, double *costs)
{
    int layers = plan->model.layers, stages = plan->mesh.pipeline;
    size_t cells = (size_t)stages * ((size_t)layers + 1);
    double *sums = calloc((size_t)layers + 1, sizeof *sums);
    double *best = calloc(cells, sizeof *best);
    int *from = calloc(cells, sizeof *from);
    enum status status = STATUS_NO_MEMORY;
    if (sums == NULL || best == NULL || from == NULL)
        goto free_tables;
    for (int i = 0; i < layers; i++)
        sums[i + 1] = sums[i] + layer_cost(plan, plan->model.layer[i]);
    balance_fill(plan, sums, best, from);
    cuts[stages] = layers;
    for (int s = stages - 1; s >= 0; s--) {
        cuts[s] = from[s * (layers + 1) + cuts[s + 1]];
        costs[s] = stage_cost(plan, sums, cuts[s], cuts[s + 1]);
    }
    status = STATUS_OK;
free_tables:
    free(sums);
    free(best);
    free(from);
    return status;
}
