/* Conversion of weights, the list of weights, and the dummy checkpoint. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/convert.h"
#include "partition/weights.h"

/* ---- conversion --------------------------------------------------------------------------- */

/* The value of a half by its definition: sign, exponent, fraction. */
static double half_value(unsigned bits, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    double fraction = (bits & ((1u << fraction_bits) - 1)) / (double)(1 << fraction_bits);
    double sign = bits >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1)
        return fraction == 0 ? sign * INFINITY : NAN;
    return sign *
           (exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1 + fraction, exponent - bias));
}

static void test_halves(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 65536; bits++) {
        double f16 = half_value(bits, 5, 10), bf16 = half_value(bits, 8, 7);
        float a = f32_from_f16((uint16_t)bits), b = f32_from_bf16((uint16_t)bits);
        assert_true(isnan(f16) ? isnan(a) : a == f16);
        assert_true(isnan(bf16) ? isnan(b) : b == bf16);
        if (!isnan(bf16))
            assert_int_equal(bf16_from_f32(b), bits);
        else
            assert_true((bf16_from_f32(b) & 0x7fff) > 0x7f80);
    }
}

/* Between two neighbours the nearer wins, in the middle the even one. */
static void test_rounding(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x7f7f; bits += 7) {
        double low = half_value(bits, 8, 7), high = half_value(bits + 1, 8, 7);
        float middle = (float)((low + high) / 2);
        assert_int_equal(bf16_from_f32(middle), bits % 2 ? bits + 1 : bits);
        assert_int_equal(bf16_from_f32(nextafterf(middle, 0)), bits);
        assert_int_equal(bf16_from_f32(nextafterf(middle, INFINITY)), bits + 1);
        assert_int_equal(bf16_from_f32(-middle), 0x8000 | (bits % 2 ? bits + 1 : bits));
    }
}

static void test_elements(void **state)
{
    (void)state;
    uint16_t half[9] = {0x3c00, 0xc000, 0, 0x0001, 0x7bff, 0x3555, 0x7c00, 0x7e00, 0};
    float whole[9];
    assert_int_equal(convert_elements(DTYPE_F16, half, DTYPE_F32, whole, 6), 6);
    assert_true(whole[0] == 1 && whole[1] == -2 && whole[3] == 0x1p-24f && whole[4] == 65504);
    assert_int_equal(convert_elements(DTYPE_F16, half, DTYPE_F32, whole, 9), 6);
    uint16_t out[9];
    assert_int_equal(convert_elements(DTYPE_F16, half + 7, DTYPE_BF16, out, 2), 0);
    assert_int_equal(convert_elements(DTYPE_F32, whole, DTYPE_BF16, out, 6), 6);
    assert_int_equal(out[0], 0x3f80);
    uint16_t copy[9];
    assert_int_equal(convert_elements(DTYPE_BF16, out, DTYPE_BF16, copy, 6), 6);
    assert_memory_equal(out, copy, 6 * sizeof *out);
    assert_int_equal(convert_elements(DTYPE_BF16, out, DTYPE_F32, whole, 0), 0);
}

/* ---- list --------------------------------------------------------------------------------- */

static uint64_t parameters(const char *name)
{
    struct model_config config;
    struct error error = {0};
    assert_int_equal(model_config_builtin(name, &config, &error), STATUS_OK);
    struct weights weights = weights_begin(&config);
    struct weight weight;
    uint64_t sum = 0;
    while (weights_next(&weights, &weight))
        if (!weight.ignored)
            sum += weight.shape[0] * weight.shape[1];
    return sum;
}

/* Published: 1.731 B + 0.233 B and 3.649 B + 0.311 B. */
static void test_parameters(void **state)
{
    (void)state;
    assert_true(fabs((double)parameters("jet-nemotron-2b") - 1.964e9) < 1.5e6);
    assert_true(fabs((double)parameters("jet-nemotron-4b") - 3.960e9) < 1.5e6);
}

/* ---- dummy -------------------------------------------------------------------------------- */

static struct model_config config;

static struct checkpoint *dummy(uint64_t seed)
{
    struct checkpoint *checkpoint = NULL;
    struct error error = {0};
    assert_int_equal(model_config_builtin("jet-nemotron-2b", &config, &error), STATUS_OK);
    assert_int_equal(checkpoint_dummy(&config, seed, &checkpoint, &error), STATUS_OK);
    return checkpoint;
}

static void read_piece(const struct checkpoint *checkpoint, const char *name, uint64_t row,
                       uint64_t rows, uint64_t column, uint64_t columns, float *out)
{
    struct error error = {0};
    const struct tensor_entry *tensor = checkpoint_find(checkpoint, name);
    assert_non_null(tensor);
    if (checkpoint_read(checkpoint, tensor, row, rows, column, columns, DTYPE_F32, out, columns,
                        &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

/* Columns and rows of wide rows (down_proj: 8960) and short ones (w2: 384). */
static void test_slices(void **state)
{
    (void)state;
    static const char *const names[] = {
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.3.self_attn.dynamic_conv1d.kernel_generator.w2.weight"};
    struct checkpoint *checkpoint = dummy(1), *again = dummy(1);
    enum { ROWS = 101, WIDTH_MAX = 8960 };
    float *whole = malloc(sizeof(float[ROWS * WIDTH_MAX]));
    float *piece = malloc(sizeof(float[ROWS * WIDTH_MAX]));
    for (int n = 0; n < 2; n++) {
        uint64_t width = n == 0 ? 8960 : 384, columns = width / 3;
        read_piece(checkpoint, names[n], 0, ROWS, 0, width, whole);
        read_piece(again, names[n], 1, ROWS - 1, 7, columns, piece);
        for (uint64_t r = 1; r < ROWS; r++)
            assert_memory_equal(piece + (r - 1) * columns, whole + r * width + 7,
                                columns * sizeof *whole);
    }
    free(whole);
    free(piece);
    checkpoint_close(checkpoint);
    checkpoint_close(again);
}

static void moments(const struct checkpoint *checkpoint, const char *name, uint64_t rows,
                    uint64_t columns, double *mean, double *deviation)
{
    float *values = malloc(rows * columns * sizeof *values);
    double sum = 0, squares = 0, count = (double)(rows * columns);
    read_piece(checkpoint, name, 0, rows, 0, columns, values);
    for (uint64_t i = 0; i < rows * columns; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    free(values);
    *mean = sum / count;
    *deviation = sqrt(squares / count - *mean * *mean);
}

static void test_spread(void **state)
{
    (void)state;
    struct checkpoint *checkpoint = dummy(5);
    double mean, deviation;
    moments(checkpoint, "model.embed_tokens.weight", 200, 1536, &mean, &deviation);
    assert_true(fabs(mean) < 3e-4 && fabs(deviation - 0.02) < 3e-4);
    moments(checkpoint, "model.norm.weight", 1536, 1, &mean, &deviation);
    assert_true(mean == 1 && deviation < 1e-6);
    float a[12], dt[12];
    read_piece(checkpoint, "model.layers.0.self_attn.A_log", 0, 12, 0, 1, a);
    read_piece(checkpoint, "model.layers.0.self_attn.dt_bias", 0, 12, 0, 1, dt);
    for (int i = 0; i < 12; i++) { /* decays between exp(-1.6) and just under 1 */
        double g = -exp(a[i]) * log1p(exp(dt[i]));
        assert_true(g < -5e-4 && g > -2);
    }
    assert_null(checkpoint_find(checkpoint, "lm_head.weight"));
    checkpoint_close(checkpoint);
}

/* Other seeds and other tensors give other numbers; bf16 readers see the f32 readers' model. */
static void test_pure(void **state)
{
    (void)state;
    struct checkpoint *one = dummy(1), *two = dummy(2);
    float a[64], b[64];
    uint16_t half[64];
    struct error error = {0};
    read_piece(one, "model.layers.0.mlp.up_proj.weight", 5, 1, 0, 64, a);
    read_piece(two, "model.layers.0.mlp.up_proj.weight", 5, 1, 0, 64, b);
    assert_memory_not_equal(a, b, sizeof a);
    read_piece(one, "model.layers.1.mlp.up_proj.weight", 5, 1, 0, 64, b);
    assert_memory_not_equal(a, b, sizeof a);
    const struct tensor_entry *tensor = checkpoint_find(one, "model.layers.0.mlp.up_proj.weight");
    assert_int_equal(checkpoint_read(one, tensor, 5, 1, 0, 64, DTYPE_BF16, half, 64, &error),
                     STATUS_OK);
    for (int i = 0; i < 64; i++)
        assert_true(f32_from_bf16(half[i]) == a[i]);
    assert_true(checkpoint_digest(one) != checkpoint_digest(two));
    checkpoint_close(two);
    two = dummy(1);
    assert_true(checkpoint_digest(one) == checkpoint_digest(two));
    checkpoint_close(one);
    checkpoint_close(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves),   cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_elements), cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_slices),   cmocka_unit_test(test_spread),
        cmocka_unit_test(test_pure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
