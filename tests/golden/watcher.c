#include "tests/golden/watcher.h"

#include <pthread.h>
#include <string.h>

enum { SHOWN_MAX = 128 };

struct watcher watcher;
static struct backend table;
static struct prepare_op shown[SHOWN_MAX];
static struct ragged batches[SHOWN_MAX]; /* of the mixers shown */
static int shown_count, fused_rows;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static const struct backend *cpu(void)
{
    return backend_find("cpu");
}

/* What is clobbered by running them. A mixer would change its state: only its scratch. */
static enum status show(struct device *device, const struct prepare_op *op)
{
    const struct jet_mixer_op *mixer = &op->jet_mixer;
    switch (op->kind) {
    case PREPARE_GEMM:
        return cpu()->gemm(device, &op->gemm);
    case PREPARE_GATE_UP:
        return cpu()->gate_up(device, &op->gate_up);
    default:
        memset(mixer->scratch, 0xff, compose_jet_mixer_scratch(cpu(), mixer, mixer->batch->tokens));
        return STATUS_OK;
    }
}

static enum status gemm_prepare(struct device *device, const struct prepare_op *ops, int count,
                                int *choices)
{
    enum status status = STATUS_OK;
    *choices = count;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < count && status == STATUS_OK; i++) {
        const struct prepare_op *op = &ops[i];
        if (shown_count == SHOWN_MAX) {
            status = STATUS_INTERNAL;
            break;
        }
        struct prepare_op *kept = &shown[shown_count];
        *kept = *op;
        if (op->kind == PREPARE_JET_MIXER) {
            batches[shown_count] = *op->jet_mixer.batch;
            kept->jet_mixer.batch = &batches[shown_count];
        }
        shown_count++;
        watcher.coarse += op->kind != PREPARE_GEMM;
        watcher.plain += op->kind == PREPARE_GEMM && op->least == 1;
        watcher.partly += op->kind == PREPARE_GEMM && op->least == fused_rows + 1 && fused_rows > 0;
        status = show(device, op);
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

/* The generator's bias is part of the product here; on cuda its reader adds it. */
static bool shows(const struct prepare_op *op, const struct gemm_op *asked)
{
    struct gemm_op of = op->gemm;
    if (op->kind == PREPARE_JET_MIXER) {
        const struct jet_mixer_op *mixer = &op->jet_mixer;
        return asked->weight == mixer->w2 && asked->depth == mixer->generator &&
               asked->columns == mixer->heads * mixer->d_v * mixer->taps &&
               asked->rows >= op->least && asked->rows <= mixer->batch->tokens;
    }
    if (op->kind == PREPARE_GATE_UP)
        of = compose_gate_up_product(&op->gate_up);
    return of.columns == asked->columns && of.depth == asked->depth && of.ld_x == asked->ld_x &&
           of.ld_out == asked->ld_out && of.weight == asked->weight && of.bias == asked->bias &&
           of.float_out == asked->float_out && asked->rows >= op->least && asked->rows <= of.rows;
}

static bool gemm_fuses(struct device *device, const struct gemm_op *op)
{
    (void)device;
    return op->rows <= fused_rows;
}

static bool gate_up_fuses(struct device *device, const struct gate_up_op *op)
{
    (void)device;
    return op->rows <= fused_rows;
}

/* A step may allocate nothing: what is between a norm or a sum and its product. */
enum { BETWEEN_MAX = 1 << 13 };
static _Thread_local float between[2][BETWEEN_MAX];

/* norm(x), which op's x becomes. */
static enum status norm_first(struct device *device, const float *weight, float epsilon, int rows,
                              int depth, const void **x)
{
    if (rows * depth > BETWEEN_MAX)
        return STATUS_INTERNAL;
    struct rms_norm_op norm = {.rows = rows,
                               .columns = depth,
                               .epsilon = epsilon,
                               .x = (void *)*x,
                               .weight = weight,
                               .out = between[0]};
    *x = between[0];
    return cpu()->rms_norm(device, &norm);
}

static enum status add_after(struct device *device, const struct gemm_op *op)
{
    struct gemm_op product = *op;
    product.add = false;
    product.out = between[1];
    if (op->rows * op->columns > BETWEEN_MAX)
        return STATUS_INTERNAL;
    enum status status = cpu()->gemm(device, &product);
    struct rms_norm_op sum = {
        .rows = op->rows, .columns = op->columns, .x = op->out, .delta = product.out};
    if (status == STATUS_OK)
        status = cpu()->rms_norm(device, &sum);
    return status;
}

static enum status gemm_fused(struct device *device, const struct gemm_op *op)
{
    struct gemm_op product = *op;
    enum status status = STATUS_OK;
    if (op->rows > fused_rows || (op->add && op->ld_out != op->columns))
        return STATUS_INTERNAL;
    if (op->norm != NULL)
        status = norm_first(device, op->norm, op->epsilon, op->rows, op->depth, &product.x);
    product.norm = NULL;
    if (status == STATUS_OK)
        status = op->add ? add_after(device, &product) : cpu()->gemm(device, &product);
    return status;
}

static enum status gemm(struct device *device, const struct gemm_op *op)
{
    bool fused = op->norm != NULL || op->add, known = fused;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < shown_count && !known; i++)
        known = shows(&shown[i], op);
    watcher.unshown += !known;
    watcher.fused += fused;
    pthread_mutex_unlock(&mutex);
    return fused ? gemm_fused(device, op) : cpu()->gemm(device, op);
}

/* Fused, it has no product that could be asked for. */
static enum status gate_up(struct device *device, const struct gate_up_op *op)
{
    struct gate_up_op product = *op;
    enum status status = STATUS_OK;
    if (op->rows > fused_rows)
        return op->norm == NULL ? compose_gate_up(&table, device, op) : STATUS_INTERNAL;
    if (op->norm != NULL)
        status = norm_first(device, op->norm, op->epsilon, op->rows, op->depth, &product.x);
    product.norm = NULL;
    if (status == STATUS_OK)
        status = cpu()->gate_up(device, &product);
    return status;
}

static enum status jet_mixer(struct device *device, const struct jet_mixer_op *op)
{
    return compose_jet_mixer(&table, device, op);
}

const struct backend *watcher_open(int rows)
{
    watcher = (struct watcher){0};
    shown_count = 0;
    fused_rows = rows;
    table = *cpu();
    table.gemm_prepare = gemm_prepare;
    table.gemm_fuses = gemm_fuses;
    table.gate_up_fuses = gate_up_fuses;
    table.gemm = gemm;
    table.gate_up = gate_up;
    table.jet_mixer = jet_mixer;
    return &table;
}
