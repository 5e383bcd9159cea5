/* Before the first step: the back end is shown every product that a step may ask for, in the memory
 * that steps use; then decode steps that are likely to come are recorded. */
#include <stdlib.h>

#include "partition/head.h"

struct products {
    struct gemm_op *op;
    int count;
};

enum { PRODUCTS_OF_LAYER = 5 };

static void add(struct products *products, struct gemm_op op, int rows)
{
    op.rows = rows;
    products->op[products->count++] = op;
}

/* The generator's second product, which the mixer makes in scratch of its own: here in that of the
 * projections, with as many rows as it holds. */
static void add_generator(const struct stage *stage, int layer, int tokens,
                          struct products *products)
{
    struct jet_mixer_op mixer = layout_jet_mixer(stage->plan, stage->rank);
    int columns = mixer.heads * mixer.d_v * mixer.taps, hidden = stage->plan->model.hidden;
    int64_t widest = layout_projected(stage->plan, stage->rank);
    struct gemm_op op =
        projection_product(stage, stage->weights.layer[layer].jet.w2, NULL, columns);
    op.depth = op.ld_x = mixer.generator;
    if (op.depth == 0 || columns == 0)
        return;
    int64_t rows_in = (int64_t)tokens * hidden / op.depth, rows_out = tokens * widest / columns;
    int64_t rows = rows_in < rows_out ? rows_in : rows_out;
    add(products, op, rows < tokens ? (int)rows : tokens);
}

static void add_layer(const struct stage *stage, int layer, int tokens, struct products *products)
{
    const struct layer_weights *w = &stage->weights.layer[layer];
    const struct rank_plan *rank = stage->rank;
    int columns = span_size(rank->columns);
    if (layout_layer(stage->plan, rank, layer) == LAYER_JET) {
        int total = layout_jet_columns(stage->plan, rank).total;
        int values = span_size(rank->jet_heads) * stage->plan->model.jet_d_v;
        add(products, projection_product(stage, w->jet.projection, NULL, total), tokens);
        add_generator(stage, layer, tokens, products);
        add(products, output_product(stage, w->jet.output, values), tokens);
    } else {
        struct attention_columns at = layout_attention_columns(stage->plan, rank);
        const struct attention_weights *attention = &w->attention;
        add(products, projection_product(stage, attention->projection, attention->bias, at.total),
            tokens);
        add(products, output_product(stage, attention->output, at.k - at.q), tokens);
    }
    add(products, projection_product(stage, w->gate_up, NULL, 2 * columns), tokens);
    add(products, output_product(stage, w->down, columns), tokens);
}

enum status stage_prepare(struct stage *stage, int *choices, struct error *error)
{
    int layers = span_size(stage->rank->layers),
        tokens = stage->plan->limits.max_num_batched_tokens;
    struct products products = {.count = 0};
    *choices = 0;
    if (stage->backend->gemm_prepare == NULL)
        return STATUS_OK;
    products.op = calloc((size_t)layers * PRODUCTS_OF_LAYER + 1, sizeof *products.op);
    if (products.op == NULL)
        return error_set(error, STATUS_NO_MEMORY, "stage: out of host memory");
    for (int i = 0; i < layers; i++)
        add_layer(stage, i, tokens, &products);
    if (stage->rank->last)
        add(&products, head_product(stage), layout_sample_tile(stage->plan));
    enum status status =
        stage->backend->gemm_prepare(stage->device, products.op, products.count, choices);
    free(products.op);
    stage->settled = status == STATUS_OK && stage->plan->ranks == 1;
    if (status != STATUS_OK)
        error_set(error, status, "rank %d: choosing how products are computed: %s",
                  stage->rank->rank, status_name(status));
    return status;
}

/* Likely step `number`: of every class, one that needs nothing of sampling (greedy, or temperature
 * 1), then one with a temperature and top-p; of the shortest context. false: there are no more. */
static bool likely_step(struct stage *stage, int number, struct step *step)
{
    const struct step nothing = {.number = 0};
    int most = stage->plan->limits.max_num_seqs, size = 1;
    for (int i = 0; i < number / 2; i++) {
        if (size == most)
            return false;
        size = class_of(size + 1, most);
    }
    *step = idle_fill(stage, &nothing, size, size);
    if (number % 2 != 0) {
        stage->idle.row[0].sample.temperature = 0.5f;
        stage->idle.row[0].sample.top_p = 0.5f;
    }
    return true;
}

enum status stage_record(struct stage *stage, bool *more, struct error *error)
{
    struct step step;
    *more = stage->settled && stage->replays != NULL && stage->likely < REPLAYS_MAX / 2 &&
            likely_step(stage, stage->likely, &step);
    if (!*more)
        return STATUS_OK;
    stage->likely++;
    return stage_run(stage, &step, NULL, error);
}
