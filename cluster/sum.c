#include "cluster/sum.h"

#include <string.h>

#include "kernels/bf16.h"

enum { BLOCK = 256 }; /* elements kept in the accumulator */

static void sum_f32(const void *const *pieces, int members, size_t count, float *out)
{
    float sums[BLOCK];
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t width = count - at < BLOCK ? count - at : BLOCK;
        memcpy(sums, (const float *)pieces[0] + at, width * sizeof *sums);
        for (int i = 1; i < members; i++) {
            const float *piece = (const float *)pieces[i] + at;
            for (size_t e = 0; e < width; e++)
                sums[e] += piece[e];
        }
        memcpy(out + at, sums, width * sizeof *sums);
    }
}

static void sum_bf16(const void *const *pieces, int members, size_t count, uint16_t *out)
{
    float sums[BLOCK];
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t width = count - at < BLOCK ? count - at : BLOCK;
        const uint16_t *first = (const uint16_t *)pieces[0] + at;
        for (size_t e = 0; e < width; e++)
            sums[e] = f32_from_bf16(first[e]);
        for (int i = 1; i < members; i++) {
            const uint16_t *piece = (const uint16_t *)pieces[i] + at;
            for (size_t e = 0; e < width; e++)
                sums[e] += f32_from_bf16(piece[e]);
        }
        for (size_t e = 0; e < width; e++)
            out[at + e] = bf16_from_f32(sums[e]);
    }
}

void sum_in_order(enum dtype dtype, const void *const *pieces, int members, size_t count, void *out)
{
    if (dtype == DTYPE_F32)
        sum_f32(pieces, members, count, out);
    else
        sum_bf16(pieces, members, count, out);
}
