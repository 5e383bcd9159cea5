/* Checked size arithmetic: every length, offset and count that comes from a file or a peer goes
 * through here before it is used. Each returns false on overflow and leaves *result untouched. */
#ifndef JETD_BASE_CHECKED_H
#define JETD_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *result)
{
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *result = sum;
    return true;
}

static inline bool checked_multiply(uint64_t a, uint64_t b, uint64_t *result)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *result = product;
    return true;
}

/* The same held at UINT64_MAX instead: for sums that only ask whether they stay below a limit. */
static inline uint64_t saturated_add(uint64_t a, uint64_t b)
{
    uint64_t sum = UINT64_MAX;
    checked_add(a, b, &sum);
    return sum;
}

static inline uint64_t saturated_multiply(uint64_t a, uint64_t b)
{
    uint64_t product = UINT64_MAX;
    checked_multiply(a, b, &product);
    return product;
}

/* Rounds up to a multiple of `unit` (> 0). */
static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline uint64_t divide_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit;
}

#endif
