#include "tests/kernels/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct harness h;

static uint64_t random_state;

/* SplitMix64. */
static uint64_t random_bits(void)
{
    uint64_t z = random_state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double random_unit(void)
{
    return (double)(random_bits() >> 11) * 0x1p-53;
}

int random_int(int low, int high)
{
    return low + (int)(random_bits() % (uint64_t)(high - low + 1));
}

static double random_normal(void)
{
    return sqrt(-2.0 * log(1.0 - random_unit())) * cos(6.283185307179586 * random_unit());
}

int harness_open(void **state)
{
    const char *name = getenv("JETD_TEST_DEVICE"), *seed = getenv("JETD_TEST_SEED");
    const char *threads = getenv("JETD_TEST_THREADS");
    struct device_options options = {.threads = threads != NULL ? atoi(threads) : 1,
                                     .max_tokens = 4096,
                                     .max_sequences = 64,
                                     .batch_invariant = getenv("JETD_TEST_FAST") == NULL};
    struct error error = {0};

    (void)state;
    random_state = seed != NULL ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL);
    printf("JETD_TEST_SEED=%llu\n", (unsigned long long)random_state);
    h.backend = backend_find(name != NULL ? name : "cpu");
    assert_non_null(h.backend);
    if (h.backend->open(&options, &h.device, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return -1;
    }
    h.exact = h.backend->activation == DTYPE_F32;
    h.invariant = h.exact || options.batch_invariant;
    return 0;
}

int harness_close(void **state)
{
    (void)state;
    h.backend->close(h.device);
    return 0;
}

int harness_sweep(void **state)
{
    (void)state;
    while (h.kept_count > 0)
        h.backend->release(h.device, h.kept[--h.kept_count]);
    while (h.host_count > 0)
        free(h.host[--h.host_count]);
    return 0;
}

void *host_memory(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);

    assert_non_null(memory);
    assert_true(h.host_count < (int)(sizeof(h.host) / sizeof(h.host[0])));
    return h.host[h.host_count++] = memory;
}

static void *device_memory(size_t bytes)
{
    void *memory;

    MUST(h.backend->allocate(h.device, bytes, &memory));
    assert_true((uintptr_t)memory % 256 == 0);
    assert_true(h.kept_count < (int)(sizeof(h.kept) / sizeof(h.kept[0])));
    return h.kept[h.kept_count++] = memory;
}

/* ---- bf16 ---- */

static uint16_t bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (isnan(value))
        return 0x7fff;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float float_of(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

float *random_floats(size_t count, double spread)
{
    float *values = host_memory(count, sizeof(float));

    for (size_t i = 0; i < count; i++)
        values[i] = (float)(spread * random_normal());
    return values;
}

void round_activations(float *values, size_t count)
{
    if (h.backend->activation == DTYPE_BF16)
        for (size_t i = 0; i < count; i++)
            values[i] = float_of(bf16_of(values[i]));
}

float *random_activations(size_t count, double spread)
{
    float *values = random_floats(count, spread);

    round_activations(values, count);
    return values;
}

void random_shuffle(int32_t *values, int count)
{
    for (int i = count - 1; i > 0; i--) {
        int j = random_int(0, i);
        int32_t kept = values[i];
        values[i] = values[j];
        values[j] = kept;
    }
}

/* ---- to the device and back ---- */

void *put_raw(const void *from, size_t bytes)
{
    void *memory = device_memory(bytes);

    MUST(h.backend->upload(h.device, memory, from, bytes));
    return memory;
}

void *put(const float *values, size_t count)
{
    if (h.backend->activation == DTYPE_F32)
        return put_raw(values, count * sizeof(float));
    uint16_t *narrow = host_memory(count, sizeof(uint16_t));
    for (size_t i = 0; i < count; i++)
        narrow[i] = bf16_of(values[i]);
    return put_raw(narrow, count * sizeof(uint16_t));
}

float *put_floats(const float *values, size_t count)
{
    return put_raw(values, count * sizeof(float));
}

int32_t *put_ints(const int32_t *values, size_t count)
{
    return put_raw(values, count * sizeof(int32_t));
}

void *poison_raw(size_t bytes)
{
    void *ones = host_memory(bytes, 1);

    memset(ones, 0xff, bytes);
    return put_raw(ones, bytes);
}

void *poison(size_t count)
{
    return poison_raw(count * dtype_size(h.backend->activation));
}

void *get_raw(const void *from, size_t bytes)
{
    void *values = host_memory(bytes, 1);

    MUST(h.backend->download(h.device, values, from, bytes));
    return values;
}

float *get_floats(const float *from, size_t count)
{
    return get_raw(from, count * sizeof(float));
}

float *get(const void *from, size_t count)
{
    if (h.backend->activation == DTYPE_F32)
        return get_raw(from, count * sizeof(float));
    uint16_t *narrow = get_raw(from, count * sizeof(uint16_t));
    float *values = host_memory(count, sizeof(float));
    for (size_t i = 0; i < count; i++)
        values[i] = float_of(narrow[i]);
    return values;
}

/* ---- closeness ---- */

void assert_close(const char *what, const float *got, const double *want, size_t count,
                  double bound, double loose)
{
    double size = 0.0;

    for (size_t i = 0; i < count; i++)
        size += want[i] * want[i];
    assert_close_for(what, got, want, count, sqrt(size), bound, loose);
}

void assert_close_for(const char *what, const float *got, const double *want, size_t count,
                      double size, double bound, double loose)
{
    double off = 0.0;

    for (size_t i = 0; i < count; i++) {
        double difference = got[i] - want[i];
        off += difference * difference;
    }
    double error = sqrt(off) / (size > 0.0 ? size : 1.0);
    double limit = h.exact ? bound : loose;
    if (!(error <= limit))
        fail_msg("%s: relative error %.3e, bound %.1e", what, error, limit);
}

void assert_same_bits(const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0)
            fail_msg("element %zu of %zu: %.9g and %.9g", i, count, (double)a[i], (double)b[i]);
}

/* ---- ragged batches ---- */

static void batch_fill(struct ragged *batch, const struct sequence *sequence, int32_t *starts,
                       int32_t *contexts)
{
    for (int s = 0; s < batch->sequences; s++) {
        int tokens = sequence[s].tokens, end = sequence[s].context + tokens;
        starts[s + 1] = starts[s] + tokens;
        contexts[s] = sequence[s].context;
        if (tokens == 1 && batch->decodes == s)
            batch->decodes++;
        batch->max_tokens = tokens > batch->max_tokens ? tokens : batch->max_tokens;
        batch->max_context = end > batch->max_context ? end : batch->max_context;
    }
    batch->tokens = starts[batch->sequences];
}

struct ragged *make_batch_at(const struct sequence *sequence, int sequences, const int32_t *slot)
{
    struct ragged *batch = host_memory(1, sizeof(*batch));
    size_t count = (size_t)sequences;
    int32_t *starts = host_memory(count + 1, 4), *contexts = host_memory(count, 4);
    int32_t *slots = host_memory(count, 4);

    batch->sequences = sequences;
    batch_fill(batch, sequence, starts, contexts);
    memcpy(slots, slot, count * 4);
    int32_t *owner = host_memory((size_t)batch->tokens, 4);
    int32_t *position = host_memory((size_t)batch->tokens, 4);
    for (int s = 0; s < sequences; s++) {
        for (int t = starts[s]; t < starts[s + 1]; t++) {
            owner[t] = s;
            position[t] = contexts[s] + t - starts[s];
        }
    }
    batch->starts = put_ints(starts, count + 1);
    batch->slots = put_ints(slots, count);
    batch->contexts = put_ints(contexts, count);
    batch->token_sequence = put_ints(owner, (size_t)batch->tokens);
    batch->token_position = put_ints(position, (size_t)batch->tokens);
    batch->host_starts = starts;
    batch->host_slots = slots;
    batch->host_contexts = contexts;
    return batch;
}

struct ragged *make_batch(const struct sequence *sequence, int sequences, int slots)
{
    int32_t *order = host_memory((size_t)slots, 4);

    assert_true(sequences <= slots);
    for (int i = 0; i < slots; i++)
        order[i] = i;
    random_shuffle(order, slots);
    return make_batch_at(sequence, sequences, order);
}
