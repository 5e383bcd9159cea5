/* Prefill attention: scores to weights, in the registers of a warpgroup that holds [64, 128] of
 * them as wgmma leaves them. */
#ifndef JETD_KERNELS_CUDA_ATTENTION_SOFTMAX_CUH
#define JETD_KERNELS_CUDA_ATTENTION_SOFTMAX_CUH

#include "kernels/cuda/attention_tile.cuh"

/* Weights of a row are brought down when a thread's share of a tile exceeds this: far below what
 * overflows a sum, far above what a good maximum gives. */
#define MASS_LIMIT 0x1p30f

/* Two rows of a thread: its warp's lane/4 and 8 further. */
struct softmax_rows {
    float maximum[2], mass[2]; /* in powers of two; mass: this thread's columns only */
};

/* What rows of this thread see: columns (limit - reach, limit], from its first column on. */
struct seen {
    int limit[2], reach;
};

__device__ static inline bool column_seen(const struct seen &seen, int row, int column)
{
    return column <= seen.limit[row] && column > seen.limit[row] - seen.reach;
}

__device__ static inline void scores_mask(float (&scores)[64], const struct seen &seen)
{
#pragma unroll
    for (int i = 0; i < 64; i++)
        scores[i] = column_seen(seen, i % 4 / 2, i / 4 * 8 + i % 2) ? scores[i] : -INFINITY;
}

/* A warp's scores of 8 keys again, with mma: for rows whose weights overflowed. */
__device__ static inline void scores_again(float (&scores)[4], uint32_t queries, uint32_t keys,
                                           int block)
{
    const int lane = threadIdx.x % 32;
    const int query = lane % 16, key = block * 8 + lane % 8;
    scores[0] = scores[1] = scores[2] = scores[3] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < DIM / 16; i += 2) {
        uint32_t a[4], b[4];
        int piece = i * 2 + lane / 8;
        load_matrices(b, keys + (uint32_t)piece_at(key, piece));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            piece = (i + half) * 2 + lane / 16;
            load_matrices(a, queries + (uint32_t)piece_at(query, piece));
            mma_bf16(scores, a, b[2 * half], b[2 * half + 1]);
        }
    }
}

__device__ static inline float quad_max(float value)
{
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

/* Brings weights of rows with a large mass back near 1: exactly, by a power of two; from scores
 * anew, with the maximum they should have had, where a weight overflowed. */
__device__ static inline void weights_lower(float (&weights)[64], struct softmax_rows *rows,
                                            float (&mass)[2], float (&shrink)[2], float scale,
                                            const struct seen &seen, uint32_t queries,
                                            uint32_t keys)
{
    bool lost[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float most = quad_max(mass[row]);
        lost[row] = most == INFINITY;
        if (most > MASS_LIMIT && !lost[row]) {
            int power = (__float_as_int(most) >> 23) - 127;
            power = power < 126 ? power : 126;
            shrink[row] = __int_as_float((127 - power) << 23);
            rows->maximum[row] += (float)power;
            mass[row] *= shrink[row];
#pragma unroll
            for (int i = 0; i < 64; i++)
                if (i % 4 / 2 == row)
                    weights[i] *= shrink[row];
        }
    }
    if (!__any_sync(0xffffffffu, lost[0] || lost[1]))
        return;
    float again[4], most[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
    for (int block = 0; block < KEYS / 8; block++) {
        scores_again(again, queries, keys, block);
        for (int i = 0; i < 4; i++)
            if (column_seen(seen, i / 2, block * 8 + i % 2))
                most[i / 2] = fmaxf(most[i / 2], again[i] * scale);
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        most[row] = quad_max(most[row]);
        if (lost[row]) {
            shrink[row] = power_of_two(rows->maximum[row] - most[row]);
            rows->maximum[row] = most[row];
            mass[row] = 0.0f;
        }
    }
#pragma unroll
    for (int block = 0; block < KEYS / 8; block++) {
        scores_again(again, queries, keys, block);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (lost[i / 2]) {
                bool inside = column_seen(seen, i / 2, block * 8 + i % 2);
                weights[block * 4 + i] =
                    inside ? power_of_two(again[i] * scale - most[i / 2]) : 0.0f;
                mass[i / 2] += weights[block * 4 + i];
            }
    }
}

/* Scores become weights, relative to the maximum of the first tile in which a row saw anything: a
 * later maximum matters only where weights grow out of bounds, which is rare, so that it is cheaper
 * to look at the mass than to look for maxima. True: earlier sums are to be multiplied by
 * `shrink`. */
__device__ static inline bool scores_weigh(float (&scores)[64], struct softmax_rows *rows,
                                           float scale, float (&shrink)[2], const struct seen &seen,
                                           uint32_t queries, uint32_t keys)
{
    if (__any_sync(0xffffffffu, rows->maximum[0] == -INFINITY || rows->maximum[1] == -INFINITY)) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float most = scores[2 * row];
#pragma unroll
            for (int i = 0; i < 64; i++)
                if (i % 4 / 2 == row)
                    most = fmaxf(most, scores[i]);
            most = quad_max(most) * scale;
            if (rows->maximum[row] == -INFINITY)
                rows->maximum[row] = most;
        }
    }
    float mass[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float base = rows->maximum[row];
        base = base == -INFINITY ? 0.0f : base; /* nothing seen yet */
        mass[row] = 0.0f;
#pragma unroll
        for (int i = 0; i < 64; i++)
            if (i % 4 / 2 == row) {
                scores[i] = power_of_two(fmaf(scores[i], scale, -base));
                mass[row] += scores[i];
            }
    }
    shrink[0] = shrink[1] = 1.0f;
    bool large = __any_sync(0xffffffffu, mass[0] > MASS_LIMIT || mass[1] > MASS_LIMIT);
    if (large)
        weights_lower(scores, rows, mass, shrink, scale, seen, queries, keys);
    rows->mass[0] = rows->mass[0] * shrink[0] + mass[0];
    rows->mass[1] = rows->mass[1] * shrink[1] + mass[1];
    return large;
}

__device__ static inline void sums_shrink(float (&sums)[64], const float (&shrink)[2])
{
#pragma unroll
    for (int i = 0; i < 64; i++)
        sums[i] *= shrink[i % 4 / 2];
}

#endif
