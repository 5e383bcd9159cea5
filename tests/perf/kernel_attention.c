/* kernel_attention: times attention of new tokens, whole prompts and chunks, at the two models'
 * shapes, beside the rate of a large matrix product on the same device. kernel_attention [LONGEST]
 */
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "kernels/kernels.h"
#include "tests/perf/bench.h"
#include "tests/perf/samples.h"

enum { DIM = 128, KV_HEADS = 2, BLOCK = 64 };

struct shape {
    int heads, context, tokens, window; /* window > 0: a ring of as many positions */
};

static const struct shape shapes[] = {
    {16, 0, 4096, 0},       {16, 0, 32768, 0},    {16, 0, 65536, 0},      {16, 0, 262144, 0},
    {12, 0, 4096, 0},       {12, 0, 32768, 0},    {12, 0, 65536, 0},      {12, 0, 262144, 0},
    {16, 63488, 2048, 0},   {16, 57344, 8192, 0}, {16, 245760, 16384, 0}, {16, 8192, 8192, 2048},
    {12, 8192, 8192, 1152},
};

struct rig {
    const struct backend *backend;
    struct device *device;
    void *held[16];
    int count;
};

static void must(enum status status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernel_attention: %s\n", status_name(status));
    exit(1);
}

static void *hold(struct rig *rig, size_t bytes)
{
    must(rig->backend->allocate(rig->device, bytes, &rig->held[rig->count]));
    return rig->held[rig->count++];
}

/* Activations about 1/2 .. 2 of either sign. */
static void *hold_random(struct rig *rig, size_t count)
{
    enum { PIECE = 8 << 20 };
    static uint16_t host[PIECE / 2];
    uint32_t random = 1;
    unsigned char *made = hold(rig, count * 2);
    for (size_t i = 0; i < PIECE / 2; i++) {
        random = random * 1664525u + 1013904223u;
        host[i] = (uint16_t)(0x3f00 | ((random >> 16) & 0x80ff));
    }
    for (size_t at = 0; at < count * 2; at += PIECE)
        must(rig->backend->upload(rig->device, made + at, host,
                                  count * 2 - at < PIECE ? count * 2 - at : PIECE));
    return made;
}

static int32_t *hold_ints(struct rig *rig, const int32_t *values, int count)
{
    int32_t *made = hold(rig, (size_t)count * sizeof *values);
    must(rig->backend->upload(rig->device, made, values, (size_t)count * sizeof *values));
    return made;
}

/* Pages in an order that is not the sequence's. */
static int32_t *hold_table(struct rig *rig, int blocks)
{
    int32_t *table = calloc((size_t)blocks, sizeof *table);
    for (int i = 0; i < blocks && table != NULL; i++)
        table[i] = (int32_t)((int64_t)i * 7919 % blocks);
    int32_t *made = table != NULL ? hold_ints(rig, table, blocks) : NULL;
    free(table);
    return made;
}

static double keys_seen(const struct shape *s)
{
    double keys = 0;
    for (int i = 0; i < s->tokens; i++) {
        int seen = s->context + i + 1;
        keys += s->window > 0 && seen > s->window ? s->window : seen;
    }
    return keys;
}

/* Seconds of one call. */
static double measure(struct rig *rig, const struct attention_op *op)
{
    struct samples samples = {0};
    double first = 0;
    for (int i = 0; i < 6 && (i < 2 || first < 0.3); i++) {
        int repeats = i == 0 ? 1 : (int)(0.02 / first) + 1;
        must(rig->backend->synchronize(rig->device));
        int64_t start = clock_now();
        for (int k = 0; k < repeats; k++)
            must(rig->backend->attention(rig->device, op));
        must(rig->backend->synchronize(rig->device));
        double each = clock_seconds(clock_now() - start) / repeats;
        if (i == 0)
            first = each;
        else
            samples_add(&samples, each);
    }
    double median = samples_quantile(&samples, 0.5);
    samples_free(&samples);
    return median;
}

static void run(struct rig *rig, const struct shape *s, double gemm)
{
    const int32_t starts[2] = {0, s->tokens}, slot = 0, context = s->context;
    const int width = (s->heads + 2 * KV_HEADS) * DIM, total = s->context + s->tokens;
    const int blocks = (total + BLOCK - 1) / BLOCK;
    const size_t row = 2 * KV_HEADS * DIM;
    const struct ragged batch = {.sequences = 1,
                                 .tokens = s->tokens,
                                 .max_tokens = s->tokens,
                                 .max_context = total,
                                 .starts = hold_ints(rig, starts, 2),
                                 .slots = hold_ints(rig, &slot, 1),
                                 .contexts = hold_ints(rig, &context, 1),
                                 .host_starts = starts,
                                 .host_slots = &slot,
                                 .host_contexts = &context};
    unsigned char *projected = hold_random(rig, (size_t)s->tokens * (size_t)width);
    const struct attention_op op = {
        .batch = &batch,
        .heads = s->heads,
        .group = s->heads / KV_HEADS,
        .ld_q = width,
        .ld_kv = width,
        .scale = 0.088388348f,
        .window = s->window,
        .q = projected,
        .k = projected + (size_t)s->heads * DIM * 2,
        .v = projected + (size_t)(s->heads + KV_HEADS) * DIM * 2,
        .cache = {.data =
                      hold_random(rig, (size_t)(s->window > 0 ? s->window : blocks * BLOCK) * row),
                  .kv_heads = KV_HEADS,
                  .head_dim = DIM,
                  .block_tokens = BLOCK,
                  .table = hold_table(rig, blocks),
                  .ld_table = blocks,
                  .ring = s->window},
        .out = hold(rig, (size_t)s->tokens * (size_t)s->heads * DIM * 2)};
    double seconds = measure(rig, &op);
    double rate = 4.0 * s->heads * DIM * keys_seen(s) / seconds;
    printf("attention %2d/%d heads, context %6d, tokens %6d, window %4d: %9.3f ms, %5.1f TFLOP/s, "
           "%4.1f %% of gemm %.1f\n",
           s->heads, KV_HEADS, s->context, s->tokens, s->window, seconds * 1e3, rate * 1e-12,
           100 * rate / gemm, gemm * 1e-12);
    while (rig->count > 0)
        rig->backend->release(rig->device, rig->held[--rig->count]);
}

int main(int argc, char **argv)
{
    const struct device_options options = {.threads = 1, .max_tokens = 4096, .max_sequences = 8};
    int longest = argc > 1 ? atoi(argv[1]) : 262144;
    struct rig rig = {.backend = backend_find("cuda")};
    struct ceilings ceilings = {0};
    struct error error = {0};
    log_configure(LOG_WARNING, -1, false);
    if (rig.backend->open(&options, &rig.device, &error) != STATUS_OK) {
        fprintf(stderr, "kernel_attention: %s\n", error.text);
        return 1;
    }
    must(ceilings_measure(rig.backend, rig.device, &ceilings));
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (shapes[i].context + shapes[i].tokens <= longest)
            run(&rig, &shapes[i], ceilings.gemm);
    rig.backend->close(rig.device);
    return 0;
}
