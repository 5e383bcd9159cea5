/* Folders of shards: what the model needs, what the index says, what a piece reads. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "partition/weights.h"

/* ---- a folder made to order --------------------------------------------------------------- */

static char folder[64];

static const char config_text[] =
    "{\"vocab_size\": 8, \"hidden_size\": 4, \"intermediate_size\": 6, \"num_hidden_layers\": 2, "
    "\"layer_types\": [\"jet\", \"attn\"], \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
    "\"rms_norm_eps\": 1e-6, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true, "
    "\"efficient_attention_config\": {\"jet\": {\"conv_size\": 4, \"dconv_generator_reduction\": "
    "2, \"expand_v\": 2, \"head_dim\": 2, \"norm_eps\": \"1e-5\", \"num_heads\": 2}}}";

static struct model_config config;

static int make_folder(void **state)
{
    (void)state;
    struct error error = {0};
    strcpy(folder, "/tmp/jetd-checkpoint-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    return (int)model_config_parse("config.json", config_text, sizeof config_text - 1, &config,
                                   &error);
}

static const char *inside(const char *name)
{
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int clean(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "a.safetensors", "b.safetensors"};
    for (size_t i = 0; i < 4; i++)
        unlink(inside(names[i]));
    return 0;
}

static int remove_folder(void **state)
{
    clean(state);
    return rmdir(folder);
}

/* One tensor of a file to be written, f32. */
struct item {
    char name[WEIGHT_NAME_MAX];
    int dims;
    uint64_t shape[2];
};

struct items {
    struct item item[64];
    int count;
};

/* What the config needs, without lm_head. */
static void fill(struct items *items)
{
    struct weights weights = weights_begin(&config);
    struct weight weight;
    items->count = 0;
    while (weights_next(&weights, &weight)) {
        if (weight.ignored)
            continue;
        struct item *item = &items->item[items->count++];
        strcpy(item->name, weight.name);
        item->dims = weight.dims;
        memcpy(item->shape, weight.shape, sizeof item->shape);
    }
}

static struct item *item_of(struct items *items, const char *name)
{
    for (int i = 0; i < items->count; i++)
        if (strcmp(items->item[i].name, name) == 0)
            return &items->item[i];
    fail_msg("no item %s", name);
    return NULL;
}

static void add(struct items *items, const char *name, uint64_t rows, uint64_t columns)
{
    struct item *item = &items->item[items->count++];
    strcpy(item->name, name);
    item->dims = 2;
    item->shape[0] = rows;
    item->shape[1] = columns;
}

static void drop(struct items *items, const char *name)
{
    *item_of(items, name) = items->item[--items->count];
}

/* Element k of the file is k. */
static void write_items(const char *path, const struct items *items)
{
    char header[16384];
    size_t used = (size_t)sprintf(header, "{"), end = 0;
    for (int i = 0; i < items->count; i++) {
        const struct item *item = &items->item[i];
        size_t size = 4 * item->shape[0] * item->shape[1];
        char shape[64];
        snprintf(shape, sizeof shape, item->dims == 1 ? "%d" : "%d, %d", (int)item->shape[0],
                 (int)item->shape[1]);
        used += (size_t)sprintf(header + used,
                                "%s\"%s\": {\"dtype\": \"F32\", \"shape\": [%s], "
                                "\"data_offsets\": [%zu, %zu]}",
                                i ? ", " : "", item->name, shape, end, end + size);
        end += size;
    }
    used += (size_t)sprintf(header + used, "}");
    uint64_t length = used;
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fwrite(&length, 8, 1, file);
    fwrite(header, 1, used, file);
    for (size_t k = 0; k < end / 4; k++) {
        float value = (float)k;
        fwrite(&value, 4, 1, file);
    }
    assert_int_equal(fclose(file), 0);
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void expect(const char *named, const char *also)
{
    struct checkpoint *checkpoint = NULL;
    struct error error = {0};
    enum status status = checkpoint_open(folder, &config, &checkpoint, &error);
    checkpoint_close(checkpoint);
    if (status != STATUS_CORRUPT || strstr(error.text, named) == NULL ||
        strstr(error.text, also) == NULL)
        fail_msg("%s: %s (wanted: %s and %s)", status_name(status), error.text, named, also);
}

static struct checkpoint *must_open(const char *where, const struct model_config *model)
{
    struct checkpoint *checkpoint = NULL;
    struct error error = {0};
    if (checkpoint_open(where, model, &checkpoint, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return checkpoint;
}

/* ---- one file ----------------------------------------------------------------------------- */

static void test_needed(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_items(inside("model.safetensors"), &items);
    checkpoint_close(must_open(folder, &config));

    drop(&items, "model.layers.0.self_attn.A_log");
    write_items(inside("model.safetensors"), &items);
    expect("tensor model.layers.0.self_attn.A_log is missing", folder);

    fill(&items);
    add(&items, "model.layers.2.mlp.up_proj.weight", 6, 4);
    write_items(inside("model.safetensors"), &items);
    expect("model.safetensors: tensor model.layers.2.mlp.up_proj.weight at offset", "none that");

    fill(&items);
    item_of(&items, "model.layers.1.mlp.down_proj.weight")->shape[0] = 6;
    item_of(&items, "model.layers.1.mlp.down_proj.weight")->shape[1] = 4;
    write_items(inside("model.safetensors"), &items);
    expect("tensor model.layers.1.mlp.down_proj.weight at offset",
           "[6, 4], config.json needs [4, 6]");

    fill(&items);
    item_of(&items, "model.norm.weight")->dims = 2;
    write_items(inside("model.safetensors"), &items);
    expect("tensor model.norm.weight at offset", "[4, 1], config.json needs [4]");
}

static void test_head(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    add(&items, "lm_head.weight", 8, 4); /* may be there when tied, and is not used */
    write_items(inside("model.safetensors"), &items);
    struct checkpoint *checkpoint = must_open(folder, &config);
    assert_null(checkpoint_find(checkpoint, "lm_head.weight"));
    assert_non_null(checkpoint_find(checkpoint, "model.embed_tokens.weight"));
    checkpoint_close(checkpoint);

    item_of(&items, "lm_head.weight")->shape[0] = 7;
    write_items(inside("model.safetensors"), &items);
    expect("tensor lm_head.weight at offset", "[7, 4]");

    fill(&items);
    write_items(inside("model.safetensors"), &items);
    config.tied = false;
    expect("tensor lm_head.weight is missing", folder);
    config.tied = true;
}

static void test_absent(void **state)
{
    (void)state;
    struct checkpoint *checkpoint = NULL;
    struct error error = {0};
    assert_int_equal(checkpoint_open(folder, &config, &checkpoint, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "neither model.safetensors nor"));
}

/* ---- shards ------------------------------------------------------------------------------- */

/* An index that puts the first `split` tensors into a, the others into b; `odd`, if not NULL, is
 * put into `place`. */
static void write_index(const struct items *items, int split, const char *odd, const char *place)
{
    FILE *file = fopen(inside("model.safetensors.index.json"), "wb");
    assert_non_null(file);
    fprintf(file, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (int i = 0; i < items->count; i++) {
        const char *name = items->item[i].name;
        const char *shard = i < split ? "a.safetensors" : "b.safetensors";
        if (odd != NULL && strcmp(odd, name) == 0)
            shard = place;
        fprintf(file, "%s\"%s\": \"%s\"", i ? ", " : "", name, shard);
    }
    fprintf(file, "}}");
    assert_int_equal(fclose(file), 0);
}

static void write_shards(const struct items *items, int split)
{
    struct items first = *items, second = {.count = items->count - split};
    first.count = split;
    memcpy(second.item, items->item + split, (size_t)second.count * sizeof *second.item);
    write_items(inside("a.safetensors"), &first);
    write_items(inside("b.safetensors"), &second);
}

static void test_shards(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_shards(&items, 5);
    write_index(&items, 5, NULL, NULL);
    checkpoint_close(must_open(folder, &config));

    const char *odd = items.item[2].name;
    write_index(&items, 5, odd, "b.safetensors");
    expect("a.safetensors: tensor", "the index puts it in b.safetensors");
    static const char *const bad[] = {"../x.safetensors", "/etc/x.safetensors", "x/y.safetensors",
                                      "..", "..safetensors.."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index(&items, 5, odd, bad[i]);
        expect("index.json: tensor", "is not a plain file name");
        expect(bad[i], odd);
    }
    write_index(&items, 5, odd, "a.bin");
    expect("index.json: tensor", "is not named *.safetensors");
    write_index(&items, 5, odd, "");
    expect("index.json: tensor", "is not named *.safetensors");

    struct items more = items; /* in the index, in no file */
    add(&more, "ghost", 1, 1);
    write_index(&more, 5, NULL, NULL);
    expect("index.json: tensor ghost is not in shard b.safetensors", "");

    struct items fewer = items; /* in a file, not in the index */
    fewer.count--;
    write_index(&fewer, 5, NULL, NULL);
    expect("b.safetensors: tensor", "is not in the index");
}

static void test_twice(void **state)
{
    (void)state;
    struct items items, second;
    fill(&items);
    write_index(&items, 5, NULL, NULL);
    write_shards(&items, 5);
    second = (struct items){.count = items.count - 4}; /* tensor 4 again */
    memcpy(second.item, items.item + 4, (size_t)second.count * sizeof *second.item);
    write_items(inside("b.safetensors"), &second);
    expect("b.safetensors: tensor", "the index puts it in a.safetensors");
}

static void test_index(void **state)
{
    (void)state;
    static const char *const texts[][2] = {
        {"{}", "weight_map is missing"},
        {"{\"weight_map\": {}}", "weight_map is missing, empty"},
        {"{\"weight_map\": [1]}", "no object"},
        {"{\"weight_map\": {\"x\": 3}}", "weight_map.x is not a file name"},
        {"{\"weight_map\": {\"x\": \"a.safetensors\", \"x\": \"b.safetensors\"}}", "duplicate"},
        {"[[[[[[[[[[[[]]]]]]]]]]]]", "nested deeper"},
        {"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"},
        {"", "index.json"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_text(inside("model.safetensors.index.json"), texts[i][0]);
        expect(texts[i][1], "model.safetensors.index.json");
    }
    struct checkpoint *checkpoint = NULL;
    struct error error = {0};
    write_text(inside("model.safetensors.index.json"),
               "{\"weight_map\": {\"x\": \"c.safetensors\"}}");
    assert_int_equal(checkpoint_open(folder, &config, &checkpoint, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "c.safetensors: No such file"));
}

/* ---- reading ------------------------------------------------------------------------------ */

static void test_pieces(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_items(inside("model.safetensors"), &items);
    struct checkpoint *checkpoint = must_open(folder, &config);
    const struct tensor_entry *tensor =
        checkpoint_find(checkpoint, "model.layers.0.mlp.up_proj.weight");
    assert_non_null(tensor);
    float first, out[3][5] = {{0}};
    struct error error = {0};
    assert_int_equal(checkpoint_read(checkpoint, tensor, 0, 1, 0, 1, DTYPE_F32, &first, 1, &error),
                     STATUS_OK);
    assert_int_equal(checkpoint_read(checkpoint, tensor, 2, 3, 1, 2, DTYPE_F32, out, 5, &error),
                     STATUS_OK);
    for (int r = 0; r < 3; r++)
        for (int c = 0; c < 5; c++)
            assert_true(out[r][c] == (c < 2 ? first + (float)((r + 2) * 4 + c + 1) : 0));
    assert_int_equal(checkpoint_read(checkpoint, tensor, 4, 3, 0, 4, DTYPE_F32, out, 5, &error),
                     STATUS_INTERNAL);
    error_clear(&error);
    assert_int_equal(checkpoint_read(checkpoint, tensor, 0, 1, 3, 2, DTYPE_F32, out, 5, &error),
                     STATUS_INTERNAL);
    error_clear(&error);
    assert_int_equal(
        checkpoint_read(checkpoint, tensor, UINT64_MAX, 2, 0, 4, DTYPE_F32, out, 5, &error),
        STATUS_INTERNAL);
    checkpoint_close(checkpoint);
}

static void poke(const char *path, uint64_t offset, float value)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    assert_int_equal(fwrite(&value, sizeof value, 1, file), 1);
    assert_int_equal(fclose(file), 0);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 3.4e38f};
    for (int i = 0; i < 4; i++) {
        struct items items;
        fill(&items);
        write_items(inside("model.safetensors"), &items);
        struct checkpoint *checkpoint = must_open(folder, &config);
        uint64_t offset = checkpoint_find(checkpoint, "model.layers.1.mlp.up_proj.weight")->offset;
        checkpoint_close(checkpoint);
        poke(inside("model.safetensors"), offset + 4 * 9, values[i]);
        checkpoint = must_open(folder, &config);
        const struct tensor_entry *tensor =
            checkpoint_find(checkpoint, "model.layers.1.mlp.up_proj.weight");
        float whole[24];
        uint16_t half[24];
        struct error error = {0};
        enum status status =
            checkpoint_read(checkpoint, tensor, 0, 6, 0, 4, DTYPE_F32, whole, 4, &error);
        assert_int_equal(status, i < 3 ? STATUS_CORRUPT : STATUS_OK);
        if (i < 3) {
            assert_non_null(strstr(error.text, "tensor model.layers.1.mlp.up_proj.weight"));
            assert_non_null(strstr(error.text, "element 9 (row 2, column 1; offset "));
        }
        error_clear(&error); /* 3.4e38 is over what bf16 holds */
        assert_int_equal(
            checkpoint_read(checkpoint, tensor, 0, 6, 0, 2, DTYPE_BF16, half, 4, &error),
            STATUS_CORRUPT);
        assert_non_null(strstr(error.text, "row 2, column 1"));
        error_clear(&error); /* the piece beside it is sound */
        assert_int_equal(
            checkpoint_read(checkpoint, tensor, 0, 6, 2, 2, DTYPE_F32, whole, 2, &error),
            STATUS_OK);
        checkpoint_close(checkpoint);
    }
}

static void test_cut_while_open(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_items(inside("model.safetensors"), &items);
    struct checkpoint *checkpoint = must_open(folder, &config);
    const struct tensor_entry *tensor = checkpoint_find(checkpoint, "model.embed_tokens.weight");
    assert_int_equal(truncate(inside("model.safetensors"), 100), 0);
    float out[32];
    struct error error = {0};
    assert_int_equal(checkpoint_read(checkpoint, tensor, 0, 8, 0, 4, DTYPE_F32, out, 4, &error),
                     STATUS_CORRUPT);
    assert_non_null(strstr(error.text, "changed since it was opened"));
    checkpoint_close(checkpoint);
}

/* Rewritten in place during the last read: nothing reads again, and the whole is asked once more.
 */
static void test_rewritten_after_the_last_read(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_items(inside("model.safetensors"), &items);
    struct checkpoint *checkpoint = must_open(folder, &config);
    struct error error = {0};
    assert_int_equal(checkpoint_unchanged(checkpoint, &error), STATUS_OK);
    const struct timespec later[2] = {{.tv_sec = 2000000000}, {.tv_sec = 2000000000}};
    assert_int_equal(utimensat(AT_FDCWD, inside("model.safetensors"), later, 0), 0);
    assert_int_equal(checkpoint_unchanged(checkpoint, &error), STATUS_CORRUPT);
    assert_non_null(strstr(error.text, "model.safetensors: changed since it was opened"));
    checkpoint_close(checkpoint);
}

static void test_digest(void **state)
{
    (void)state;
    struct items items;
    fill(&items);
    write_items(inside("model.safetensors"), &items);
    struct checkpoint *checkpoint = must_open(folder, &config);
    uint64_t one = checkpoint_digest(checkpoint);
    checkpoint_close(checkpoint);
    checkpoint = must_open(folder, &config);
    assert_true(checkpoint_digest(checkpoint) == one);
    checkpoint_close(checkpoint);
    struct item swap = items.item[0]; /* the same tensors in another order */
    items.item[0] = items.item[1];
    items.item[1] = swap;
    write_items(inside("model.safetensors"), &items);
    checkpoint = must_open(folder, &config);
    assert_true(checkpoint_digest(checkpoint) != one);
    checkpoint_close(checkpoint);
}

/* ---- the shipped checkpoints -------------------------------------------------------------- */

/* Reads every tensor whole as f32 and sums it. */
static double sum_of(const char *where, uint64_t *elements)
{
    struct model_config model;
    struct error error = {0};
    assert_int_equal(model_config_load(where, &model, &error), STATUS_OK);
    struct checkpoint *checkpoint = must_open(where, &model);
    struct weights weights = weights_begin(&model);
    struct weight weight;
    double sum = 0;
    *elements = 0;
    while (weights_next(&weights, &weight)) {
        const struct tensor_entry *tensor = checkpoint_find(checkpoint, weight.name);
        if (tensor == NULL) {
            assert_true(weight.ignored);
            continue;
        }
        uint64_t count = weight.shape[0] * weight.shape[1];
        float *values = malloc(count * sizeof *values);
        assert_non_null(values);
        if (checkpoint_read(checkpoint, tensor, 0, weight.shape[0], 0, weight.shape[1], DTYPE_F32,
                            values, weight.shape[1], &error) != STATUS_OK)
            fail_msg("%s", error.text);
        for (uint64_t i = 0; i < count; i++)
            sum += fabs(values[i]);
        *elements += count;
        free(values);
    }
    checkpoint_close(checkpoint);
    return sum;
}

/* Counts and sums of |w| in float64, by checkpoint_sums.py. */
#define TINY_F32_ELEMENTS 1993888
#define TINY_F32_SUM 139506.08602750205
#define TINY_BF16_ELEMENTS 2481584
#define TINY_BF16_SUM 176235.02465445432
#define DEMO_ELEMENTS 9086640
#define DEMO_SUM 563064.0449824785

static void test_shipped(void **state)
{
    (void)state;
    uint64_t elements;
    double sum = sum_of(JETD_TEST_DATA "/fixtures/tiny-f32", &elements);
    assert_int_equal(elements, TINY_F32_ELEMENTS);
    assert_true(fabs(sum - TINY_F32_SUM) < 1e-9 * sum);
    sum = sum_of(JETD_TEST_DATA "/fixtures/tiny-bf16-sharded", &elements);
    assert_int_equal(elements, TINY_BF16_ELEMENTS);
    assert_true(fabs(sum - TINY_BF16_SUM) < 1e-9 * sum);
    sum = sum_of(JETD_TEST_DATA "/../../ops/demo-model", &elements);
    assert_int_equal(elements, DEMO_ELEMENTS);
    assert_true(fabs(sum - DEMO_SUM) < 1e-9 * sum);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_needed, clean),
        cmocka_unit_test_teardown(test_head, clean),
        cmocka_unit_test_teardown(test_absent, clean),
        cmocka_unit_test_teardown(test_shards, clean),
        cmocka_unit_test_teardown(test_twice, clean),
        cmocka_unit_test_teardown(test_index, clean),
        cmocka_unit_test_teardown(test_pieces, clean),
        cmocka_unit_test_teardown(test_not_finite, clean),
        cmocka_unit_test_teardown(test_cut_while_open, clean),
        cmocka_unit_test_teardown(test_rewritten_after_the_last_read, clean),
        cmocka_unit_test_teardown(test_digest, clean),
        cmocka_unit_test(test_shipped),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
