/* What all back ends share: finding a table, and arithmetic on single numbers. */
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

#include "kernels/philox.h"

extern const struct backend backend_cpu;
extern const struct backend backend_cuda;

const struct backend *backend_find(const char *name)
{
    static const struct backend *const tables[] = {&backend_cpu, &backend_cuda};

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
        if (strcmp(tables[i]->name, name) == 0)
            return tables[i];
    return NULL;
}

size_t dtype_size(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

const char *dtype_name(enum dtype dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16"};

    return names[dtype];
}

/* Lowest id among equals; -1 is "none". */
static int32_t lower_id(int32_t a, int32_t b)
{
    if (a < 0)
        return b;
    return b >= 0 && b < a ? b : a;
}

void logit_summary_merge(struct logit_summary *into, const struct logit_summary *from)
{
    into->bad |= from->bad;
    if (from->max > into->max) {
        into->sum = into->sum * exp((double)into->max - from->max) + from->sum;
        into->max = from->max;
        into->argmax = from->argmax;
    } else if (from->max == into->max) {
        into->sum += from->sum;
        into->argmax = lower_id(into->argmax, from->argmax);
    } else {
        into->sum += from->sum * exp((double)from->max - into->max);
    }
}

uint32_t logit_key(float value)
{
    float canonical = value + 0.0f; /* -0 and 0 are equal: one key */
    uint32_t bits;

    memcpy(&bits, &canonical, sizeof(bits));
    return bits & UINT32_C(0x80000000) ? ~bits : bits | UINT32_C(0x80000000);
}

double sample_uniform(uint64_t seed, uint64_t draw, uint32_t id)
{
    return (philox_draw(seed, draw, id) + 0.5) * 0x1p-32;
}
