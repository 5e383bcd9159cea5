/* Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
 * as 1, 2, 3", SC'11: 128 random bits from a counter and a key, no state. In a header of its own
 * so that every back end and the tests run the same lines. */
#ifndef JETD_KERNELS_PHILOX_H
#define JETD_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FUNCTION static inline __host__ __device__
#else
#define PHILOX_FUNCTION static inline
#endif

struct philox {
    uint32_t word[4];
};

PHILOX_FUNCTION struct philox philox(struct philox counter, uint32_t key0, uint32_t key1)
{
    struct philox c = counter;

    for (int round = 0; round < 10; round++) {
        uint64_t low = (uint64_t)c.word[0] * UINT32_C(0xD2511F53);
        uint64_t high = (uint64_t)c.word[2] * UINT32_C(0xCD9E8D57);
        struct philox next = {{(uint32_t)(high >> 32) ^ c.word[1] ^ key0, (uint32_t)high,
                               (uint32_t)(low >> 32) ^ c.word[3] ^ key1, (uint32_t)low}};
        c = next;
        key0 += UINT32_C(0x9E3779B9);
        key1 += UINT32_C(0xBB67AE85);
    }
    return c;
}

/* The 32 bits behind sample_uniform(): key = seed, counter = (draw, id, 0). */
PHILOX_FUNCTION uint32_t philox_draw(uint64_t seed, uint64_t draw, uint32_t id)
{
    struct philox counter = {{(uint32_t)draw, (uint32_t)(draw >> 32), id, 0}};

    return philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32)).word[0];
}

#endif
