#include <math.h>
#include <stdlib.h>
#include <sys/random.h>

#include "daemon/rpc_validate.h"

/* Temperatures below this are raised to it: nobody can tell them from greedy, and logits divided by
 * less would leave fp32's range. */
static const float temperature_min = 1e-4F;

struct range {
    const char *field;
    float low, high;
    bool open; /* low itself is not in */
};

static enum status check_range(struct range range, float value, struct error *error)
{
    if (isfinite(value) && value <= range.high &&
        (range.open ? value > range.low : value >= range.low))
        return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "sampling.%s: %g is not in %c%g, %g]",
                     range.field, (double)value, range.open ? '(' : '[', (double)range.low,
                     (double)range.high);
}

static enum status take_floats(const Jet__V1__SamplingParams *message, struct sampling *sampling,
                               struct error *error)
{
    const struct {
        struct range range;
        bool set;
        float value;
        float *to;
    } fields[] = {
        {{"temperature", 0, 100, false},
         message->temperature_presence_case != 0,
         message->temperature,
         &sampling->temperature},
        {{"top_p", 0, 1, true},
         message->top_p_presence_case != 0,
         message->top_p,
         &sampling->top_p},
        {{"min_p", 0, 1, false},
         message->min_p_presence_case != 0,
         message->min_p,
         &sampling->min_p},
        {{"repetition_penalty", 0.01F, 100, false},
         message->repetition_penalty_presence_case != 0,
         message->repetition_penalty,
         &sampling->repetition},
        {{"presence_penalty", -2, 2, false},
         message->presence_penalty_presence_case != 0,
         message->presence_penalty,
         &sampling->presence},
        {{"frequency_penalty", -2, 2, false},
         message->frequency_penalty_presence_case != 0,
         message->frequency_penalty,
         &sampling->frequency},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!fields[i].set)
            continue;
        enum status status = check_range(fields[i].range, fields[i].value, error);
        if (status != STATUS_OK)
            return status;
        *fields[i].to = fields[i].value;
    }
    return STATUS_OK;
}

struct ranked_bias {
    struct logit_bias bias;
    size_t order;
};

static int compare_biases(const void *a, const void *b)
{
    const struct ranked_bias *x = a, *y = b;
    if (x->bias.id != y->bias.id)
        return x->bias.id < y->bias.id ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

/* A map on the wire may repeat a key: its last value counts. */
static enum status take_biases(const struct rpc_model *model,
                               const Jet__V1__SamplingParams *message, struct arena *arena,
                               struct sampling *sampling, struct error *error)
{
    size_t n = message->n_logit_bias;
    if (n > REQUEST_BIASES_MAX)
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "sampling.logit_bias: %zu entries, at most %d", n, REQUEST_BIASES_MAX);
    if (!n)
        return STATUS_OK;
    struct ranked_bias *ranked = arena_allocate(arena, n, sizeof *ranked);
    struct logit_bias *biases = arena_allocate(arena, n, sizeof *biases);
    if (!ranked || !biases)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "sampling.logit_bias: out of memory");
    for (size_t i = 0; i < n; i++) {
        const Jet__V1__SamplingParams__LogitBiasEntry *entry = message->logit_bias[i];
        if (entry->key >= (uint32_t)model->vocab)
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "sampling.logit_bias: id %u is not below the vocabulary size %d",
                             entry->key, model->vocab);
        if (!isfinite(entry->value) || entry->value < -100 || entry->value > 100)
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "sampling.logit_bias[%u]: %g is not in [-100, 100]", entry->key,
                             (double)entry->value);
        ranked[i].bias = (struct logit_bias){.id = (int32_t)entry->key, .value = entry->value};
        ranked[i].order = i;
    }
    qsort(ranked, n, sizeof *ranked, compare_biases);
    int kept = 0;
    for (size_t i = 0; i < n; i++)
        if (i + 1 == n || ranked[i].bias.id != ranked[i + 1].bias.id)
            biases[kept++] = ranked[i].bias;
    sampling->bias = biases;
    sampling->biases = kept;
    return STATUS_OK;
}

enum status rpc_validate_sampling(const struct rpc_model *model,
                                  const Jet__V1__SamplingParams *message, struct arena *arena,
                                  struct sampling *sampling, struct error *error)
{
    *sampling = model->sampling;
    if (!message || !message->seed_presence_case) {
        if (getrandom(&sampling->seed, sizeof sampling->seed, 0) != sizeof sampling->seed)
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "sampling.seed: no randomness");
    } else {
        sampling->seed = message->seed;
    }
    enum status status = message ? take_floats(message, sampling, error) : STATUS_OK;
    if (sampling->temperature > 0 && sampling->temperature < temperature_min)
        sampling->temperature = temperature_min;
    if (!message || status != STATUS_OK)
        return status;
    if (message->top_k_presence_case) {
        if (message->top_k > INT32_MAX)
            return error_set(error, STATUS_INVALID_ARGUMENT, "sampling.top_k: %u is not below 2^31",
                             message->top_k);
        sampling->top_k = (int32_t)message->top_k;
    }
    return take_biases(model, message, arena, sampling, error);
}
