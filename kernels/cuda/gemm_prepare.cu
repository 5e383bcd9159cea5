/* Choosing how products are computed before the first step, and remembering it between runs.
 *
 * What a choice costs: with few rows about 14 candidates of 19 runs each, a run being one reading
 * of the weights, and a graph to make; with more rows 8 candidates of 4 runs. A published model has
 * 8 shapes of weights and, up to 8192 rows, 21 classes of row counts, some of which fused forms
 * take: about 120 choices, 1.6 s on an H200, more where the library is first read from a disk. When
 * that takes longer than PREPARE_SECONDS the rest is left to the library's own first choice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "daemon/base/clock.h"
}
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/mixer.h"

static const double PREPARE_SECONDS = 30.0;

/* ---- what earlier runs chose --------------------------------------------------------------- */

/* Everything that a choice depends on beside the product. */
static enum status key_make(const struct device *device, char *key)
{
    cudaDeviceProp properties;
    int driver = 0;
    enum status status =
        device_check(cudaGetDeviceProperties(&properties, device->ordinal), "properties");
    if (status == STATUS_OK)
        status = device_check(cudaDriverGetVersion(&driver), "driver version");
    if (status != STATUS_OK)
        return status;
    snprintf(key, PICKS_KEY_MAX, "%.160s, %d multiprocessors, driver %d, cublasLt %zu",
             properties.name, properties.multiProcessorCount, driver, device->gemm->lt.version());
    for (char *at = key; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
    return STATUS_OK;
}

/* A file that cannot be used is replaced: it only ever saves time. */
static enum status picks_open(struct device *device)
{
    const char *path = device->options.gemm_cache;
    struct gemm_context *gemm = device->gemm;
    char key[PICKS_KEY_MAX] = {};
    struct error error = {};
    if (path == NULL || gemm->picks != NULL)
        return STATUS_OK;
    gemm->picks = (struct picks *)calloc(1, sizeof(*gemm->picks));
    if (gemm->picks == NULL)
        return STATUS_NO_MEMORY;
    enum status status = key_make(device, key);
    if (status != STATUS_OK)
        return status;
    enum status loaded = picks_load(path, gemm->picks, &error);
    bool stale = loaded == STATUS_OK && strcmp(gemm->picks->key, key) != 0;
    if (stale)
        log_warning("cuda: %s was made on another device or with other versions: not used", path);
    else if (loaded != STATUS_OK && loaded != STATUS_NOT_FOUND)
        log_warning("cuda: choices of earlier runs are not used: %s", error.text);
    if (stale || loaded != STATUS_OK)
        gemm->picks->count = 0;
    memcpy(gemm->picks->key, key, sizeof(key));
    return STATUS_OK;
}

static void picks_close(const struct device *device, bool changed)
{
    struct error error = {};
    if (changed && picks_save(device->options.gemm_cache, device->gemm->picks, &error) != STATUS_OK)
        log_warning("cuda: choices could not be kept for the next run: %s", error.text);
}

static bool pick_keep(struct gemm_context *gemm, const struct plan *plan)
{
    const struct pick pick = pick_of(plan);
    return gemm->picks != NULL && plan->timed && picks_add(gemm->picks, &pick);
}

/* ---- the entry ----------------------------------------------------------------------------- */

/* The product of the most rows. */
static struct gemm_op product_of(const struct device *device, const struct prepare_op *op)
{
    struct gemm_op product;
    switch (op->kind) {
    case PREPARE_GATE_UP:
        return compose_gate_up_product(&op->gate_up);
    case PREPARE_JET_MIXER:
        product = mixer_generator_product(&op->jet_mixer);
        product.rows = mixer_generator_rows(device, &op->jet_mixer);
        return product;
    default:
        return op->gemm;
    }
}

/* Whether the operation has its product with so many rows. */
static bool product_asked(const struct device *device, const struct prepare_op *op, int rows)
{
    if (op->kind != PREPARE_GATE_UP)
        return true;
    struct gate_up_op gate_up = op->gate_up;
    gate_up.rows = rows;
    return gate_up_composes(device, &gate_up);
}

/* One product with the largest row count of every class, or the largest there is. */
static void product_prepare(struct device *device, const struct prepare_op *op, int64_t deadline,
                            int *choices, bool *changed)
{
    const struct gemm_op all = product_of(device, op);
    struct gemm_op part = all;
    if (all.columns == 0 || all.depth == 0 || !library_fits(device, &all))
        return;
    for (int rows = op->least; rows <= all.rows; rows = part.rows + 1) {
        bool made;
        int most = row_class_of(rows);
        part.rows = rows <= most && most < all.rows ? most : all.rows;
        /* A fused form takes all of a class or none of it, but perhaps of the last. */
        if (!product_asked(device, op, rows) && !product_asked(device, op, part.rows))
            continue;
        device->gemm->hurried = clock_now() > deadline;
        const struct plan *plan = plan_for(device, &part, &made);
        *choices += made;
        *changed |= made && plan != NULL && pick_keep(device->gemm, plan);
    }
    device->gemm->hurried = false;
}

enum status cuda_gemm_prepare(struct device *device, const struct prepare_op *ops, int count,
                              int *choices)
{
    const int64_t deadline = clock_now() + (int64_t)(PREPARE_SECONDS * (double)CLOCK_SECOND);
    bool changed = false;
    *choices = 0;
    enum status status = device_enter(device);
    if (status == STATUS_OK)
        status = picks_open(device);
    for (int i = 0; i < count && status == STATUS_OK; i++)
        product_prepare(device, &ops[i], deadline, choices, &changed);
    if (clock_now() > deadline)
        log_warning("cuda: choosing how products are computed was cut short");
    (void)cudaGetLastError(); /* a candidate's refusal is no failure */
    if (status == STATUS_OK)
        status = device_check(cudaStreamSynchronize(device->stream), "gemm prepare");
    picks_close(device, status == STATUS_OK && changed);
    return status;
}
