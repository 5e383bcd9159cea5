#include "partition/convert.h"

#include <assert.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little-endian");

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float f32_from_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0x1f)
        return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) { /* subnormal: fraction * 2^-24 is exact in f32 */
        float magnitude = (float)fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

/* The loops carry no early exit so that they vectorise; a bad element is looked for only when the
 * sum of them says there is one. */
static void to_f32(enum dtype from, const void *in, float *out, size_t count)
{
    const uint16_t *half = in;
    switch (from) {
    case DTYPE_F32:
        memcpy(out, in, count * sizeof *out);
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < count; i++)
            out[i] = f32_from_bf16(half[i]);
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++)
            out[i] = f32_from_f16(half[i]);
        break;
    }
}

static void to_bf16(enum dtype from, const void *in, uint16_t *out, size_t count)
{
    const float *whole = in;
    const uint16_t *half = in;
    switch (from) {
    case DTYPE_F32:
        for (size_t i = 0; i < count; i++)
            out[i] = bf16_from_f32(whole[i]);
        break;
    case DTYPE_BF16:
        memcpy(out, in, count * sizeof *out);
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++)
            out[i] = bf16_from_f32(f32_from_f16(half[i]));
        break;
    }
}

static size_t first_bad_f32(const float *values, size_t count)
{
    unsigned bad = 0;
    for (size_t i = 0; i < count; i++)
        bad |= (bits_of(values[i]) & 0x7f800000) == 0x7f800000;
    if (!bad)
        return count;
    size_t i = 0;
    while ((bits_of(values[i]) & 0x7f800000) != 0x7f800000)
        i++;
    return i;
}

static size_t first_bad_bf16(const uint16_t *values, size_t count)
{
    unsigned bad = 0;
    for (size_t i = 0; i < count; i++)
        bad |= (values[i] & 0x7f80) == 0x7f80;
    if (!bad)
        return count;
    size_t i = 0;
    while ((values[i] & 0x7f80) != 0x7f80)
        i++;
    return i;
}

size_t convert_elements(enum dtype from, const void *in, enum dtype to, void *out, size_t count)
{
    assert(to == DTYPE_F32 || to == DTYPE_BF16);
    if (to == DTYPE_F32) {
        to_f32(from, in, out, count);
        return first_bad_f32(out, count);
    }
    to_bf16(from, in, out, count);
    return first_bad_bf16(out, count);
}
