/* Steps as flat bytes: what is built is what is read, and every field that lies is refused by
 * name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/batch.h"

static const struct step_shape shape = {.max_sequences = 4,
                                        .max_tokens = 32,
                                        .max_rows = 8,
                                        .max_blocks = 8,
                                        .max_biases = 6,
                                        .max_bans = 6,
                                        .slots = 4,
                                        .vocab = 100,
                                        .kv_blocks = 50,
                                        .block_tokens = 16,
                                        .max_model_len = 64};

static struct sample_row sample_of(int slot)
{
    return (struct sample_row){
        .slot = slot, .target = -1, .top_p = 1, .repetition = 1, .temperature = 0.5f, .seed = 9};
}

/* Two decodes and a chunk of five tokens; three rows, with biases and bans. */
static const void *step_build(struct step_builder *builder, size_t *length)
{
    static const struct logit_bias biases[] = {{5, 1.5f}, {99, -2.0f}};
    static const int32_t bans[] = {7, 8, 9}, blocks[] = {3, 49};
    static const int32_t chunk[] = {10, 11, 12, 13, 99};
    int32_t newest = -1 - 2, literal = 42;
    step_begin(builder, UINT64_C(0x123456789abc));
    struct step_sequence a = {.slot = 2, .tokens = 1, .context = 20, .counted = 1};
    struct step_sequence b = {.slot = 0, .tokens = 1, .context = 16, .new_blocks = 1};
    struct step_sequence c = {.slot = 3, .tokens = 5, .context = 0, .new_blocks = 1};
    assert_int_equal(step_add_sequence(builder, &a, &newest, NULL), STATUS_OK);
    assert_int_equal(step_add_sequence(builder, &b, &literal, blocks), STATUS_OK);
    assert_int_equal(step_add_sequence(builder, &c, chunk, blocks + 1), STATUS_OK);
    struct step_row row = {.token = 0, .sample = sample_of(2)};
    row.sample.flags = SAMPLE_COUNTED;
    row.sample.bias_count = 2;
    assert_int_equal(step_add_row(builder, row, biases, NULL), STATUS_OK);
    row = (struct step_row){.token = 1, .sample = sample_of(0)};
    row.sample.ban_count = 3;
    assert_int_equal(step_add_row(builder, row, NULL, bans), STATUS_OK);
    row = (struct step_row){.token = 6, .sample = sample_of(3)};
    row.sample.target = 99;
    row.sample.tops = 20;
    assert_int_equal(step_add_row(builder, row, NULL, NULL), STATUS_OK);
    assert_int_equal(step_tokens(builder), 7);
    return step_finish(builder, length);
}

static void what_is_built_is_read(void **state)
{
    struct step_builder *builder = step_builder_create(&shape);
    struct step step;
    struct error error = {0};
    size_t length = 0;
    (void)state;
    for (int turn = 0; turn < 2; turn++) { /* a builder is used again and again */
        const void *bytes = step_build(builder, &length);
        assert_true(length <= step_bytes_max(&shape));
        assert_int_equal(step_decode(&shape, bytes, length, &step, &error), STATUS_OK);
        assert_true(step.number == UINT64_C(0x123456789abc));
        assert_int_equal(step.sequences, 3);
        assert_int_equal(step.tokens, 7);
        assert_int_equal(step.rows, 3);
        assert_int_equal(step.blocks, 2);
        assert_int_equal(step.biases, 2);
        assert_int_equal(step.bans, 3);
        assert_int_equal(step.sequence[0].slot, 2);
        assert_int_equal(step.sequence[0].counted, 1);
        assert_int_equal(step.sequence[1].context, 16);
        assert_int_equal(step.sequence[2].tokens, 5);
        assert_int_equal(step.token[0], -3);
        assert_int_equal(step.token[1], 42);
        assert_int_equal(step.token[6], 99);
        assert_int_equal(step.block[0], 3);
        assert_int_equal(step.block[1], 49);
        assert_int_equal(step.row[0].sample.bias_begin, 0);
        assert_int_equal(step.row[1].sample.ban_begin, 0);
        assert_int_equal(step.row[1].sample.bias_begin, 2);
        assert_int_equal(step.row[2].token, 6);
        assert_int_equal(step.row[2].sample.target, 99);
        assert_int_equal(step.bias[1].id, 99);
        assert_int_equal(step.ban[2], 9);
    }
    step_builder_destroy(builder);
}

static void a_full_builder_stays_as_it_is(void **state)
{
    struct step_builder *builder = step_builder_create(&shape);
    int32_t tokens[32] = {0}, blocks[16] = {0};
    size_t before = 0, after = 0;
    (void)state;
    (void)step_build(builder, &before);
    struct step_sequence many = {.slot = 1, .tokens = 26};
    assert_int_equal(step_add_sequence(builder, &many, tokens, NULL), STATUS_RESOURCE_EXHAUSTED);
    struct step_sequence blocky = {.slot = 1, .tokens = 2, .new_blocks = 7};
    assert_int_equal(step_add_sequence(builder, &blocky, tokens, blocks),
                     STATUS_RESOURCE_EXHAUSTED);
    struct step_row row = {.token = 0, .sample = sample_of(2)};
    row.sample.bias_count = 5;
    assert_int_equal(step_add_row(builder, row, NULL, NULL), STATUS_RESOURCE_EXHAUSTED);
    row.sample.bias_count = 0;
    row.sample.ban_count = 4;
    assert_int_equal(step_add_row(builder, row, NULL, NULL), STATUS_RESOURCE_EXHAUSTED);
    /* what no engine may ask for */
    struct step_sequence late = {.slot = 1, .tokens = 1};
    assert_int_equal(step_add_sequence(builder, &late, tokens, NULL), STATUS_INTERNAL);
    row.sample.ban_count = 0;
    row.token = 7;
    assert_int_equal(step_add_row(builder, row, NULL, NULL), STATUS_INTERNAL);
    (void)step_finish(builder, &after);
    assert_int_equal(before, after);
    step_builder_destroy(builder);
}

/* ---- lies ---------------------------------------------------------------------------------- */

enum section { HEADER, SEQUENCE, TOKEN, BLOCK, ROW, BIAS, BAN };

struct lie {
    enum section section;
    int index;
    size_t offset;
    int32_t value; /* or the bits of a float */
    const char *says;
};

static int32_t bits(float value)
{
    int32_t out;
    memcpy(&out, &value, sizeof out);
    return out;
}

static size_t section_at(const struct step_layout *at, enum section section, int index)
{
    size_t i = (size_t)index;
    switch (section) {
    case HEADER:
        return 0;
    case SEQUENCE:
        return at->sequence + i * sizeof(struct step_sequence);
    case TOKEN:
        return at->token + 4 * i;
    case BLOCK:
        return at->block + 4 * i;
    case ROW:
        return at->row + i * sizeof(struct step_row);
    case BIAS:
        return at->bias + i * sizeof(struct logit_bias);
    case BAN:
        return at->ban + 4 * i;
    }
    return 0;
}

#define IN_HEADER(field) HEADER, 0, offsetof(struct step_header, field)
#define IN_SEQUENCE(i, field) SEQUENCE, i, offsetof(struct step_sequence, field)
#define IN_ROW(i, field) ROW, i, offsetof(struct step_row, sample.field)

static void every_lie_is_named(void **state)
{
    const struct lie lies[] = {
        {IN_HEADER(magic), 0, "magic"},
        {IN_HEADER(unused), 1, "unused"},
        {IN_HEADER(sequences), -1, "sequences = -1"},
        {IN_HEADER(sequences), 5, "sequences = 5"},
        {IN_HEADER(sequences), INT32_MAX, "sequences"},
        {IN_HEADER(tokens), 33, "tokens = 33"},
        {IN_HEADER(tokens), INT32_MIN, "tokens"},
        {IN_HEADER(tokens), 6, "length"},
        {IN_HEADER(rows), 9, "rows = 9"},
        {IN_HEADER(rows), 2, "length"},
        {IN_HEADER(blocks), 9, "blocks = 9"},
        {IN_HEADER(biases), 7, "biases = 7"},
        {IN_HEADER(bans), 7, "bans = 7"},
        {IN_SEQUENCE(0, slot), -1, "sequence 0: slot -1"},
        {IN_SEQUENCE(0, slot), 4, "sequence 0: slot 4"},
        {IN_SEQUENCE(0, slot), 3, "slot 3 occurs twice"},
        {IN_SEQUENCE(0, tokens), 0, "sequence 0: tokens = 0"},
        {IN_SEQUENCE(0, tokens), -7, "sequence 0: tokens = -7"},
        {IN_SEQUENCE(2, tokens), 4, "have 6 tokens"},
        {IN_SEQUENCE(0, tokens), 2, "one token after longer"},
        {IN_SEQUENCE(0, context), -1, "context -1"},
        {IN_SEQUENCE(0, context), 64, "max_model_len 64"},
        {IN_SEQUENCE(2, context), 60, "max_model_len 64"},
        {IN_SEQUENCE(0, context), INT32_MAX, "max_model_len 64"},
        {IN_SEQUENCE(1, new_blocks), -1, "new_blocks = -1"},
        {IN_SEQUENCE(1, new_blocks), 2, "have 3 new blocks"},
        {IN_SEQUENCE(1, counted), 2, "counted = 2"},
        {TOKEN, 1, 0, 100, "token 1: 100"},
        {TOKEN, 0, 0, -5, "token 0: -5"},
        {TOKEN, 6, 0, INT32_MIN, "token 6"},
        {BLOCK, 1, 0, 50, "block 1: 50"},
        {BLOCK, 0, 0, -1, "block 0: -1"},
        {ROW, 1, offsetof(struct step_row, token), 7, "row 1: token 7"},
        {ROW, 1, offsetof(struct step_row, token), -1, "row 1: token -1"},
        {IN_ROW(1, slot), 4, "row 1: slot 4"},
        {IN_ROW(1, slot), -1, "row 1: slot -1"},
        {IN_ROW(2, target), 100, "row 2: target 100"},
        {IN_ROW(2, target), -2, "row 2: target -2"},
        {IN_ROW(0, bias_begin), -1, "row 0: biases"},
        {IN_ROW(0, bias_begin), 1, "row 0: biases 1 + 2"},
        {IN_ROW(0, bias_begin), INT32_MAX, "row 0: biases"},
        {IN_ROW(0, bias_count), 3, "row 0: biases"},
        {IN_ROW(0, bias_count), -1, "row 0: biases"},
        {IN_ROW(1, ban_begin), 1, "row 1: bans 1 + 3"},
        {IN_ROW(1, ban_count), INT32_MAX, "row 1: bans"},
        {IN_ROW(2, tops), 21, "row 2: tops = 21"},
        {IN_ROW(2, tops), -1, "row 2: tops = -1"},
        {IN_ROW(0, flags), 3, "row 0: flags"},
        {IN_ROW(0, temperature), bits(-1.0f), "row 0: temperature"},
        {IN_ROW(0, temperature), bits(NAN), "row 0: temperature"},
        {IN_ROW(0, temperature), bits(INFINITY), "row 0: temperature"},
        {IN_ROW(0, top_p), bits(0.0f), "row 0: top_p"},
        {IN_ROW(0, top_p), bits(1.5f), "row 0: top_p"},
        {IN_ROW(0, min_p), bits(-0.5f), "row 0: min_p"},
        {IN_ROW(0, min_p), bits(NAN), "row 0: min_p"},
        {IN_ROW(0, top_k), -1, "row 0: top_k"},
        {IN_ROW(0, repetition), bits(0.0f), "row 0: repetition"},
        {IN_ROW(0, presence), bits(NAN), "row 0: presence"},
        {IN_ROW(0, frequency), bits(-INFINITY), "row 0: frequency"},
        {BIAS, 1, offsetof(struct logit_bias, id), 100, "bias 1: id 100"},
        {BIAS, 0, offsetof(struct logit_bias, id), -1, "bias 0: id -1"},
        {BIAS, 0, offsetof(struct logit_bias, value), bits(NAN), "bias 0: value"},
        {BAN, 2, 0, 100, "ban 2: 100"},
        {BAN, 2, 0, -1, "ban 2: -1"},
    };
    struct step_builder *builder = step_builder_create(&shape);
    size_t length = 0;
    const void *bytes = step_build(builder, &length);
    struct step_header header;
    unsigned char *copy = malloc(length);
    (void)state;
    memcpy(&header, bytes, sizeof header);
    struct step_layout at = step_layout_of(&header);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const struct lie *lie = &lies[i];
        struct step step;
        struct error error = {0};
        memcpy(copy, bytes, length);
        memcpy(copy + section_at(&at, lie->section, lie->index) + lie->offset, &lie->value, 4);
        assert_int_equal(step_decode(&shape, copy, length, &step, &error), STATUS_PEER_MISMATCH);
        if (strstr(error.text, lie->says) == NULL)
            fail_msg("lie %zu: '%s' does not say '%s'", i, error.text, lie->says);
    }
    free(copy);
    step_builder_destroy(builder);
}

static void wrong_lengths_are_refused(void **state)
{
    struct step_builder *builder = step_builder_create(&shape);
    size_t length = 0;
    const void *bytes = step_build(builder, &length);
    unsigned char *copy = calloc(1, length + 8);
    (void)state;
    memcpy(copy, bytes, length);
    for (size_t i = 0; i <= length + 8; i++) {
        struct step step;
        enum status status = step_decode(&shape, copy, i, &step, NULL);
        assert_int_equal(status, i == length ? STATUS_OK : STATUS_PEER_MISMATCH);
    }
    free(copy);
    step_builder_destroy(builder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_built_is_read),
        cmocka_unit_test(a_full_builder_stays_as_it_is),
        cmocka_unit_test(every_lie_is_named),
        cmocka_unit_test(wrong_lengths_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
