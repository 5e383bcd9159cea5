/* Sixteen fp32 lanes, whatever the instruction set: a sum over a row goes into lane i % 16 and the
 * lanes are added in one fixed tree, so a result is a function of the row alone. Included by the
 * files that are built once per instruction set. */
#ifndef JETD_KERNELS_CPU_LANES_H
#define JETD_KERNELS_CPU_LANES_H

#include <string.h>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

enum { LANES = 16 };

typedef float vec4 __attribute__((vector_size(16)));

#if defined(__AVX512F__)
enum { LANE_PARTS = 1, TILE_ROWS = 4, TILE_COLUMNS = 4 };
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec __attribute__((vector_size(64)));
#elif defined(__FMA__)
enum { LANE_PARTS = 2, TILE_ROWS = 3, TILE_COLUMNS = 2 };
typedef float vec8 __attribute__((vector_size(32)));
typedef vec8 vec;
#else
enum { LANE_PARTS = 4, TILE_ROWS = 2, TILE_COLUMNS = 1 };
typedef vec4 vec;
#endif

struct lanes {
    vec part[LANE_PARTS];
};

#if defined(CPU_KEEP_LOOPS)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE struct lanes lanes_load(const float *from)
{
    struct lanes x;

    memcpy(&x, from, sizeof(x));
    return x;
}

/* The first `count` lanes, zeros behind. */
ALWAYS_INLINE struct lanes lanes_load_some(const float *from, int count)
{
    float buffer[LANES] = {0};

    memcpy(buffer, from, (size_t)count * sizeof(float));
    return lanes_load(buffer);
}

/* sum + a * b, in one rounding where the instruction exists. */
ALWAYS_INLINE vec vec_fma(vec sum, vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

ALWAYS_INLINE float vec4_sum(vec4 x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/* Lane i + 8, then i + 4, then i + 2, then i + 1. */
ALWAYS_INLINE float lanes_sum(struct lanes x)
{
#if defined(__AVX512F__)
    vec a = x.part[0];
    vec8 h = __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15);
    return vec4_sum(__builtin_shufflevector(h, h, 0, 1, 2, 3) +
                    __builtin_shufflevector(h, h, 4, 5, 6, 7));
#elif defined(__FMA__)
    vec8 h = x.part[0] + x.part[1];
    return vec4_sum(__builtin_shufflevector(h, h, 0, 1, 2, 3) +
                    __builtin_shufflevector(h, h, 4, 5, 6, 7));
#else
    return vec4_sum((x.part[0] + x.part[2]) + (x.part[1] + x.part[3]));
#endif
}

ALWAYS_INLINE float dot(const float *a, const float *b, int count)
{
    struct lanes sum = {0};
    int i = 0;

    for (; i + LANES <= count; i += LANES) {
        struct lanes x = lanes_load(a + i), y = lanes_load(b + i);
        UNROLL for (int p = 0; p < LANE_PARTS; p++) sum.part[p] =
            vec_fma(sum.part[p], x.part[p], y.part[p]);
    }
    if (i < count) {
        struct lanes x = lanes_load_some(a + i, count - i), y = lanes_load_some(b + i, count - i);
        UNROLL for (int p = 0; p < LANE_PARTS; p++) sum.part[p] =
            vec_fma(sum.part[p], x.part[p], y.part[p]);
    }
    return lanes_sum(sum);
}

#endif
