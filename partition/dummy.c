/* A checkpoint without files: each element is a pure function of (seed, tensor name, index), so
 * that every mesh, and every slice of a tensor, sees the same model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "partition/checkpoint_parts.h"
#include "partition/convert.h"

/* 64 random bits of element `index` (the finaliser of splitmix64, Steele et al. 2014). */
static uint64_t random_bits(uint64_t key, uint64_t index)
{
    uint64_t x = key + index * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Four 16-bit uniforms make nearly a normal number: mean 0, deviation 1, |x| < 3.5. */
static float random_normal(uint64_t bits)
{
    uint32_t sum = (uint32_t)(bits & 0xffff) + (uint32_t)(bits >> 16 & 0xffff) +
                   (uint32_t)(bits >> 32 & 0xffff) + (uint32_t)(bits >> 48);
    return ((float)sum - 131070.0f) * (1.7320508f / 65536.0f);
}

/* [0, 1) */
static double random_unit(uint64_t bits)
{
    return (double)(bits >> 11) * 0x1p-53;
}

static float element(enum weight_kind kind, uint64_t bits)
{
    switch (kind) {
    case WEIGHT_MATRIX:
    case WEIGHT_BIAS:
        return 0.02f * random_normal(bits);
    case WEIGHT_TAPS_BIAS: /* strong enough that the convolution passes a signal on */
        return 0.25f * random_normal(bits);
    case WEIGHT_NORM:
        return 1;
    case WEIGHT_A_LOG:
        return (float)log(1 + 15 * random_unit(bits));
    case WEIGHT_DT_BIAS: { /* the inverse softplus of a step between 0.001 and 0.1 */
        double step = 0.001 * pow(100, random_unit(bits));
        return (float)log(expm1(step));
    }
    }
    return 0;
}

static float round_bf16(float value)
{
    return f32_from_bf16(bf16_from_f32(value));
}

void dummy_elements(const struct dummy_tensor *tensor, uint64_t first, size_t count, float *out)
{
    uint64_t key = tensor->key;
    if (tensor->kind == WEIGHT_MATRIX) /* nearly all of the bytes: a loop without branches */
        for (size_t i = 0; i < count; i++)
            out[i] = round_bf16(0.02f * random_normal(random_bits(key, first + i)));
    else
        for (size_t i = 0; i < count; i++)
            out[i] = round_bf16(element(tensor->kind, random_bits(key, first + i)));
}

static size_t count_weights(const struct model_config *config)
{
    struct weights weights = weights_begin(config);
    struct weight weight;
    size_t count = 0;
    while (weights_next(&weights, &weight))
        count += !weight.ignored;
    return count;
}

static enum status add_weights(struct checkpoint *c, const struct model_config *config)
{
    struct weights weights = weights_begin(config);
    struct weight weight;
    while (weights_next(&weights, &weight)) {
        if (weight.ignored)
            continue;
        char *name = arena_string(c->arena, weight.name, strlen(weight.name));
        if (name == NULL)
            return STATUS_NO_MEMORY;
        struct tensor_entry *entry = &c->entry[c->count++];
        *entry = (struct tensor_entry){
            .name = name, .dtype = DTYPE_BF16, .dims = weight.dims, .file = "dummy"};
        memcpy(entry->shape, weight.shape, sizeof weight.shape);
        entry->bytes = weight.shape[0] * weight.shape[1] * dtype_size(DTYPE_BF16);
        entry->shard = (int)weight.kind; /* rides along while the entries are sorted */
    }
    return STATUS_OK;
}

enum status checkpoint_dummy(const struct model_config *config, uint64_t seed,
                             struct checkpoint **checkpoint, struct error *error)
{
    size_t count = count_weights(config);
    struct checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory for a dummy checkpoint");
    c->entry = calloc(count, sizeof *c->entry);
    c->dummy = calloc(count, sizeof *c->dummy);
    c->arena = arena_create(count * 256 + (1 << 20));
    if (c->entry == NULL || c->dummy == NULL || c->arena == NULL ||
        add_weights(c, config) != STATUS_OK) {
        checkpoint_close(c);
        return error_set(error, STATUS_NO_MEMORY, "no memory for a dummy checkpoint");
    }
    checkpoint_finish(c, seed);
    for (size_t i = 0; i < count; i++) {
        struct tensor_entry *entry = &c->entry[i];
        c->dummy[i] = (struct dummy_tensor){
            .key = XXH3_64bits_withSeed(entry->name, strlen(entry->name), seed),
            .kind = (enum weight_kind)entry->shard};
        entry->shard = -1;
    }
    *checkpoint = c;
    return STATUS_OK;
}
