#include "tests/perf/kernels_bench_case.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 7 };

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void bench_must(struct bench *b, enum status status)
{
    if (b->status == STATUS_OK)
        b->status = status;
}

/* ---- memory ---- */

void bench_noise_fill(unsigned char *noise)
{
    uint64_t state = 88172645463325252u;
    uint16_t *values = (uint16_t *)noise;

    for (size_t i = 0; i < BENCH_NOISE / 2; i++) {
        float sum = -2.0f; /* of four uniforms: near enough to normal */
        uint32_t bits;
        for (int j = 0; j < 4; j++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (float)(state >> 40) * 0x1p-24f;
        }
        memcpy(&bits, &sum, sizeof(bits));
        values[i] = (uint16_t)(bits >> 16);
    }
}

void *bench_zeros(struct bench *b, size_t bytes)
{
    void *memory = NULL;

    if (b->status == STATUS_OK)
        bench_must(b, b->backend->allocate(b->device, bytes, &memory));
    if (memory != NULL && b->kept_count < BENCH_KEPT_MAX)
        b->kept[b->kept_count++] = memory;
    return memory;
}

void *bench_noise(struct bench *b, size_t bytes)
{
    char *memory = bench_zeros(b, bytes);
    size_t done = bytes < BENCH_NOISE ? bytes : BENCH_NOISE;

    if (memory == NULL)
        return NULL;
    bench_must(b, b->backend->upload(b->device, memory, b->noise, done));
    while (done < bytes && b->status == STATUS_OK) {
        size_t part = bytes - done < done ? bytes - done : done;
        bench_must(b, b->backend->copy(b->device, memory + done, memory, part));
        done += part;
    }
    return memory;
}

void *bench_uploaded(struct bench *b, const void *from, size_t bytes)
{
    void *memory = bench_zeros(b, bytes);

    if (memory != NULL)
        bench_must(b, b->backend->upload(b->device, memory, from, bytes));
    return memory;
}

float *bench_constant(struct bench *b, size_t count, float value)
{
    float *values = malloc(count * sizeof(float));
    float *memory;

    if (values == NULL) {
        bench_must(b, STATUS_NO_MEMORY);
        return NULL;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = value * (float)(1 + i % 7) / 4.0f;
    memory = bench_uploaded(b, values, count * sizeof(float));
    free(values);
    return memory;
}

void bench_sweep(struct bench *b)
{
    while (b->kept_count > 0)
        b->backend->release(b->device, b->kept[--b->kept_count]);
    free(b->host);
    b->host = NULL;
}

/* ---- time ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static enum status calls_run(const struct bench *b, entry_call call, const void *op, int calls)
{
    enum status status = STATUS_OK;

    for (int i = 0; i < calls && status == STATUS_OK; i++)
        status = call(b, op, i);
    return status;
}

double bench_time(struct bench *b, entry_call call, const void *op, int calls, bool recorded)
{
    struct recording *recording = NULL;
    double times[ROUNDS];

    if (b->status != STATUS_OK)
        return 0.0;
    bench_must(b, calls_run(b, call, op, 1)); /* plans, modules */
    bench_must(b, b->backend->synchronize(b->device));
    if (recorded && b->backend->record_begin != NULL && b->status == STATUS_OK) {
        bench_must(b, b->backend->record_begin(b->device));
        bench_must(b, calls_run(b, call, op, calls));
        bench_must(b, b->backend->record_end(b->device, &recording));
    }
    for (int round = -1; round < ROUNDS && b->status == STATUS_OK; round++) {
        double begin = seconds_now();
        bench_must(b, recording != NULL ? b->backend->replay(b->device, recording)
                                        : calls_run(b, call, op, calls));
        bench_must(b, b->backend->synchronize(b->device));
        if (round >= 0)
            times[round] = (seconds_now() - begin) / calls;
    }
    if (recording != NULL)
        b->backend->recording_free(b->device, recording);
    if (b->status != STATUS_OK)
        return 0.0;
    qsort(times, ROUNDS, sizeof(times[0]), compare_doubles);
    return times[ROUNDS / 2];
}

bool bench_wanted(const struct bench *b, const char *name)
{
    return b->status == STATUS_OK &&
           (b->options->only == NULL || strstr(name, b->options->only) != NULL);
}

void bench_report(struct bench *b, const char *name, double seconds, double bytes, double flops)
{
    double gigabytes = bytes / seconds * 1e-9, teraflops = flops / seconds * 1e-12;
    double memory_share = b->copy_rate > 0.0 ? gigabytes / b->copy_rate : 0.0;
    double product_share = b->product_rate > 0.0 ? teraflops / b->product_rate : 0.0;
    bool memory = memory_share >= product_share;

    if (b->status != STATUS_OK)
        return;
    if (b->options->json)
        fprintf(b->options->out,
                "{\"kernel\": \"%s\", \"us\": %.2f, \"bytes\": %.0f, \"flops\": %.0f, "
                "\"share\": %.4f, \"bound\": \"%s\"}\n",
                name, seconds * 1e6, bytes, flops, memory ? memory_share : product_share,
                memory ? "copy" : "product");
    else
        fprintf(b->options->out, "%-52s %10.1f us %8.1f %-7s %5.1f %% of %s\n", name, seconds * 1e6,
                memory ? gigabytes : teraflops, memory ? "GB/s" : "TFLOP/s",
                100.0 * (memory ? memory_share : product_share),
                memory ? "copy" : "matrix product");
    fflush(b->options->out);
}

/* ---- batches ---- */

struct ragged bench_batch(struct bench *b, int sequences, int fresh, int context)
{
    size_t tokens = (size_t)sequences * (size_t)fresh;
    int32_t *ints = malloc(((size_t)sequences * 3 + 1 + tokens * 2) * sizeof(int32_t));
    struct ragged batch = {.sequences = sequences,
                           .tokens = (int)tokens,
                           .decodes = fresh == 1 ? sequences : 0,
                           .max_tokens = fresh,
                           .max_context = context + fresh};
    int32_t *starts = ints, *slots = ints + sequences + 1, *contexts = slots + sequences;
    int32_t *sequence = contexts + sequences, *position = sequence + tokens;

    if (ints == NULL) {
        bench_must(b, STATUS_NO_MEMORY);
        return batch;
    }
    for (int s = 0; s <= sequences; s++)
        starts[s] = s * fresh;
    for (int s = 0; s < sequences; s++) {
        slots[s] = s;
        contexts[s] = context;
    }
    for (size_t t = 0; t < tokens; t++) {
        sequence[t] = (int32_t)(t / (size_t)fresh);
        position[t] = context + (int32_t)(t % (size_t)fresh);
    }
    batch.starts = bench_uploaded(b, starts, ((size_t)sequences + 1) * 4);
    batch.slots = bench_uploaded(b, slots, (size_t)sequences * 4);
    batch.contexts = bench_uploaded(b, contexts, (size_t)sequences * 4);
    batch.token_sequence = bench_uploaded(b, sequence, tokens * 4);
    batch.token_position = bench_uploaded(b, position, tokens * 4);
    batch.host_starts = starts;
    batch.host_slots = slots;
    batch.host_contexts = contexts;
    free(b->host);
    b->host = ints;
    return batch;
}
