/* config.json and generation_config.json: the shipped files load, and each way to be wrong is
 * refused by the name of its field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/config_parts.h"

/* A whole config in pieces that tests replace one at a time. */
struct member {
    const char *key, *value;
};

static const struct member good[] = {
    {"model_type", "\"jet_nemotron\""},
    {"architectures", "[\"JetNemotronForCausalLM\"]"},
    {"vocab_size", "512"},
    {"hidden_size", "128"},
    {"intermediate_size", "352"},
    {"num_hidden_layers", "4"},
    {"layer_types", "[\"jet\", \"swa\", \"attn\", \"jet\"]"},
    {"num_attention_heads", "8"},
    {"num_key_value_heads", "2"},
    {"hidden_act", "\"silu\""},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "1000000.0"},
    {"rope_scaling", "null"},
    {"max_position_embeddings", "4096"},
    {"tie_word_embeddings", "true"},
    {"eos_token_id", "7"},
    {"efficient_attention_config",
     "{\"jet\": {\"conv_size\": 4, \"dconv_generator_reduction\": 8, \"expand_v\": 2, "
     "\"head_dim\": 32, \"norm_eps\": \"1e-5\", \"num_heads\": 4}, \"swa\": {\"window_size\": "
     "40}}"},
};

enum { MEMBERS = sizeof good / sizeof *good, TEXT_MAX = 8192 };

/* The good config with member `key` given `value` (NULL: left out; new keys are added). */
static const char *with(const char *key, const char *value, char text[TEXT_MAX])
{
    size_t used = (size_t)snprintf(text, TEXT_MAX, "{\"extra_member\": 1");
    bool known = false;
    for (int i = 0; i < MEMBERS; i++) {
        bool swap = strcmp(good[i].key, key) == 0;
        const char *now = swap ? value : good[i].value;
        known |= swap;
        if (now != NULL)
            used +=
                (size_t)snprintf(text + used, TEXT_MAX - used, ", \"%s\": %s", good[i].key, now);
    }
    if (!known && value != NULL)
        used += (size_t)snprintf(text + used, TEXT_MAX - used, ", \"%s\": %s", key, value);
    snprintf(text + used, TEXT_MAX - used, "}");
    return text;
}

static enum status parse(const char *text, struct model_config *config, struct error *error)
{
    *error = (struct error){0};
    return model_config_parse("config.json", text, strlen(text), config, error);
}

static void test_good(void **state)
{
    (void)state;
    char text[TEXT_MAX];
    struct model_config c;
    struct error error;
    assert_int_equal(parse(with("", NULL, text), &c, &error), STATUS_OK);
    assert_int_equal(c.layers, 4);
    assert_int_equal(c.hidden, 128);
    assert_int_equal(c.intermediate, 352);
    assert_int_equal(c.vocab, 512);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.window, 40);
    assert_int_equal(c.jet_heads, 4);
    assert_int_equal(c.jet_d_k, 32);
    assert_int_equal(c.jet_d_v, 64);
    assert_int_equal(c.generator, 32);
    assert_int_equal(c.conv_taps, 4);
    assert_int_equal(c.layer[0], LAYER_JET);
    assert_int_equal(c.layer[1], LAYER_SWA);
    assert_int_equal(c.layer[2], LAYER_ATTN);
    assert_true(c.tied);
    assert_true(c.jet_epsilon == 1e-5f); /* a string in the file */
    assert_true(c.rms_epsilon == 1e-6f);
    assert_true(c.rope.theta == 1e6);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos[0], 7);
    assert_false(c.has_generation);
    assert_true(c.temperature == 1 && c.top_p == 1 && c.min_p == 0 && c.top_k == 0);
    assert_true(c.repetition_penalty == 1);
}

static void test_variants(void **state)
{
    (void)state;
    char text[TEXT_MAX];
    struct model_config c;
    struct error error;
    assert_int_equal(parse(with("head_dim", "64", text), &c, &error), STATUS_OK);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(parse(with("rope_theta", NULL, text), &c, &error), STATUS_OK);
    assert_true(c.rope.theta == 10000);
    assert_int_equal(parse(with("tie_word_embeddings", NULL, text), &c, &error), STATUS_OK);
    assert_false(c.tied);
    assert_int_equal(parse(with("eos_token_id", "[3, 5]", text), &c, &error), STATUS_OK);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[1], 5);
    assert_int_equal(parse(with("eos_token_id", "null", text), &c, &error), STATUS_OK);
    assert_int_equal(c.eos_count, 0);
    /* 96 x 2.6666666667 = 256.0000000032: the value head of the published 2B */
    assert_int_equal(parse(with("efficient_attention_config",
                                "{\"jet\": {\"conv_size\": 4, \"dconv_generator_reduction\": 8, "
                                "\"expand_v\": 2.6666666667, \"head_dim\": 96, \"norm_eps\": 1e-5, "
                                "\"num_heads\": 12}, \"swa\": {\"window_size\": 40}}",
                                text),
                           &c, &error),
                     STATUS_OK);
    assert_int_equal(c.jet_d_v, 256);
    assert_int_equal(c.generator, 384);
    /* Without jet and swa layers their settings are not needed. */
    char *end = strstr(text, "\"efficient_attention_config\"");
    assert_non_null(end);
    with("layer_types", "[\"attn\", \"attn\", \"attn\", \"attn\"]", text);
    end = strstr(text, ", \"efficient_attention_config\"");
    strcpy(end, "}");
    assert_int_equal(parse(text, &c, &error), STATUS_OK);
    assert_int_equal(c.generator, 0);
    assert_int_equal(c.window, 0);
}

struct bad {
    const char *key, *value, *named; /* what the error must contain */
};

#define JET(members) "{\"jet\": {" members "}, \"swa\": {\"window_size\": 40}}"

static const struct bad bads[] = {
    {"model_type", "\"llama\"", "model_type is \"llama\""},
    {"architectures", "[\"LlamaForCausalLM\"]", "architectures[0]"},
    {"architectures", "[]", "architectures"},
    {"hidden_act", "\"gelu\"", "hidden_act"},
    {"use_mrope", "true", "use_mrope"},
    {"partial_rotary_factor", "0.5", "partial_rotary_factor"},
    {"vocab_size", NULL, "vocab_size is missing"},
    {"vocab_size", "0", "vocab_size is 0"},
    {"vocab_size", "-5", "vocab_size is -5"},
    {"vocab_size", "4194305", "vocab_size is 4194305"},
    {"vocab_size", "9223372036854775807", "vocab_size is 9223372036854775807"},
    {"vocab_size", "9223372036854775808", "config.json: line 1"},
    {"vocab_size", "512.0", "vocab_size is a fraction"},
    {"vocab_size", "\"512\"", "vocab_size is a string"},
    {"hidden_size", NULL, "hidden_size is missing"},
    {"hidden_size", "65537", "hidden_size is 65537"},
    {"hidden_size", "130", "hidden_size 130 is no multiple of num_attention_heads 8"},
    {"intermediate_size", "0", "intermediate_size"},
    {"intermediate_size", "[1]", "intermediate_size is an array"},
    {"num_hidden_layers", "0", "num_hidden_layers"},
    {"num_hidden_layers", "513", "num_hidden_layers is 513"},
    {"num_hidden_layers", "5", "layer_types names 4 layers, num_hidden_layers is 5"},
    {"layer_types", NULL, "layer_types"},
    {"layer_types", "\"jet\"", "layer_types"},
    {"layer_types", "[\"jet\", \"swa\", \"attn\", \"gdn\"]", "layer_types[3] is \"gdn\""},
    {"layer_types", "[\"jet\", \"swa\", 3, \"jet\"]", "layer_types[2] is an integer"},
    {"num_attention_heads", "0", "num_attention_heads"},
    {"num_attention_heads", NULL, "num_attention_heads is missing"},
    {"num_key_value_heads", "3", "num_attention_heads 8 is no multiple of num_key_value_heads 3"},
    {"num_key_value_heads", "0", "num_key_value_heads"},
    {"head_dim", "15", "head_dim 15 is odd"},
    {"head_dim", "2048", "head_dim is 2048"},
    {"head_dim", "true", "head_dim is a boolean"},
    {"rms_norm_eps", NULL, "rms_norm_eps is missing"},
    {"rms_norm_eps", "\"small\"", "rms_norm_eps is \"small\""},
    {"rms_norm_eps", "\"nan\"", "rms_norm_eps"},
    {"rms_norm_eps", "\"0x1p-3\"", "rms_norm_eps"},
    {"rms_norm_eps", "\"1e-5 \"", "rms_norm_eps"},
    {"rms_norm_eps", "-1e-6", "rms_norm_eps is -1e-06"},
    {"rms_norm_eps", "1e999", "config.json: line 1"},
    {"rms_norm_eps", "\"1e999\"", "rms_norm_eps is inf"},
    {"rms_norm_eps", "NaN", "config.json: line 1"},
    {"rope_theta", "0", "rope_theta"},
    {"rope_theta", "1e300", "rope_theta"},
    {"max_position_embeddings", "0", "max_position_embeddings"},
    {"max_position_embeddings", "33554432", "max_position_embeddings is 33554432"},
    {"tie_word_embeddings", "1", "tie_word_embeddings is an integer"},
    {"eos_token_id", "512", "eos_token_id is 512"},
    {"eos_token_id", "[1, -1]", "eos_token_id[1] is -1"},
    {"eos_token_id", "[1,2,3,4,5,6,7,8,9]", "eos_token_id lists 9 ids"},
    {"eos_token_id", "\"7\"", "eos_token_id is a string"},
    {"efficient_attention_config", NULL, "jet is missing"},
    {"efficient_attention_config", "{\"jet\": 3}", "efficient_attention_config.jet is an integer"},
    {"efficient_attention_config", JET("\"num_heads\": 4"),
     "efficient_attention_config.jet.head_dim is missing"},
    {"efficient_attention_config",
     JET("\"num_heads\": 4, \"head_dim\": 32, \"conv_size\": 17, "
         "\"dconv_generator_reduction\": 8"),
     "jet.conv_size is 17"},
    {"efficient_attention_config",
     JET("\"num_heads\": 4, \"head_dim\": 32, \"conv_size\": 4, "
         "\"dconv_generator_reduction\": 0"),
     "dconv_generator_reduction is 0"},
    {"efficient_attention_config",
     JET("\"num_heads\": 4, \"head_dim\": 32, \"conv_size\": 4, "
         "\"dconv_generator_reduction\": 7, \"expand_v\": 2, \"norm_eps\": 1e-5"),
     "dconv_generator_reduction 7 does not divide the 256 value channels"},
    {"efficient_attention_config",
     JET("\"num_heads\": 4, \"head_dim\": 1024, \"conv_size\": 4, "
         "\"dconv_generator_reduction\": 8, \"expand_v\": 8, \"norm_eps\": 1e-5"),
     "value head of 8192"},
    {"efficient_attention_config",
     JET("\"num_heads\": 4, \"head_dim\": 32, \"conv_size\": 4, "
         "\"dconv_generator_reduction\": 8, \"expand_v\": 0, \"norm_eps\": 1e-5"),
     "expand_v is 0"},
    {"efficient_attention_config",
     "{\"jet\": {\"conv_size\": 4, \"dconv_generator_reduction\": 8, \"expand_v\": 2, "
     "\"head_dim\": "
     "32, \"norm_eps\": \"1e-5\", \"num_heads\": 4}}",
     "efficient_attention_config.swa.window_size is missing"},
    {"rope_scaling", "3", "rope_scaling is an integer"},
    {"rope_scaling", "{\"factor\": 2}", "rope_scaling.rope_type is missing"},
    {"rope_scaling", "{\"rope_type\": \"longrope\", \"factor\": 2}", "\"longrope\""},
    {"rope_scaling", "{\"type\": \"mrope\"}", "rope_scaling.type is \"mrope\""},
    {"rope_scaling", "{\"rope_type\": \"linear\"}", "rope_scaling.factor is missing"},
    {"rope_scaling", "{\"rope_type\": \"linear\", \"factor\": 0}", "rope_scaling.factor is 0"},
    {"rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 2}", "low_freq_factor is missing"},
    {"rope_scaling",
     "{\"rope_type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
     "\"original_max_position_embeddings\": 1024}",
     "high_freq_factor 4 is not above"},
    {"rope_scaling",
     "{\"rope_type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 1, \"high_freq_factor\": 4}",
     "original_max_position_embeddings is missing"},
    {"rope_scaling",
     "{\"rope_type\": \"yarn\", \"factor\": 2, \"original_max_position_embeddings\": 0}",
     "original_max_position_embeddings is 0"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 2, \"beta_fast\": 1, \"beta_slow\": 2}",
     "beta_fast 1 is below beta_slow 2"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 2, \"truncate\": 1}", "truncate"},
    {"rope_parameters", "3", "rope_parameters is an integer"},
    {"rope_parameters", "{}", "rope_parameters.rope_type is missing"},
    {"rope_parameters", "{\"rope_theta\": 1e6, \"factor\": 2}", "rope_type is missing"},
    {"rope_parameters", "{\"rope_type\": \"longrope\", \"factor\": 2}", "\"longrope\""},
    {"rope_parameters", "{\"rope_type\": \"linear\"}", "rope_parameters.factor is missing"},
    {"rope_parameters", "{\"full_attention\": {\"rope_type\": \"default\"}}",
     "rope_parameters.rope_type is missing"},
    {"rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 0}",
     "rope_parameters.rope_theta is 0"},
    {"rope_parameters", "{\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}",
     "rope_parameters.partial_rotary_factor is 0.5"},
    {"rope_parameters", "{\"rope_theta\": 500000}",
     "rope_parameters.rope_theta is 500000, but rope_theta is 1e+06"},
    {"rope_scaling", "{\"rope_theta\": 500000}", "rope_scaling.rope_theta is 500000"},
    {"extra", "[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]", "nested deeper"},
    {"vocab_size", "512, \"vocab_size\": 512", "duplicate"},
};

/* rope_parameters is what rope_scaling and rope_theta were; both may stand there and agree. */
static void test_rope_parameters(void **state)
{
    char text[TEXT_MAX];
    struct model_config c;
    struct error error;
    (void)state;
    assert_int_equal(parse(with("rope_parameters", "{\"rope_theta\": 1e6}", text), &c, &error),
                     STATUS_OK);
    assert_int_equal(c.rope.type, ROPE_DEFAULT);
    assert_int_equal(parse(with("rope_parameters", "null", text), &c, &error), STATUS_OK);
    assert_true(c.rope.theta == 1e6);
    assert_int_equal(
        parse(with("rope_theta",
                   "5e5, \"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 500000, "
                   "\"factor\": 4, \"beta_fast\": 16, \"original_max_position_embeddings\": 1024}",
                   text),
              &c, &error),
        STATUS_OK);
    assert_int_equal(c.rope.type, ROPE_YARN);
    assert_true(c.rope.theta == 5e5 && c.rope.factor == 4 && c.rope.beta_fast == 16);
    assert_int_equal(c.rope.original_max_position, 1024);

#define LINEAR "{\"type\": \"linear\", \"factor\": 2}"
    assert_int_equal(parse(with("rope_scaling",
                                LINEAR ", \"rope_parameters\": {\"rope_type\": \"linear\", "
                                       "\"factor\": 2.0, \"rope_theta\": 1000000}",
                                text),
                           &c, &error),
                     STATUS_OK);
    assert_int_equal(c.rope.type, ROPE_LINEAR);
    assert_int_equal(
        parse(with("rope_scaling", LINEAR ", \"rope_parameters\": {\"rope_theta\": 1000000}", text),
              &c, &error),
        STATUS_CONFIG);
    assert_non_null(strstr(error.text, "rope_parameters and rope_scaling disagree"));
}

static void test_bad(void **state)
{
    (void)state;
    char text[TEXT_MAX];
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        struct model_config c;
        struct error error;
        enum status status = parse(with(bads[i].key, bads[i].value, text), &c, &error);
        if (status == STATUS_OK || error.status != status ||
            strstr(error.text, bads[i].named) == NULL ||
            strncmp(error.text, "config.json: ", 13) != 0)
            fail_msg("%s = %s gave %s: %s (wanted: %s)", bads[i].key,
                     bads[i].value ? bads[i].value : "(absent)", status_name(status), error.text,
                     bads[i].named);
    }
}

static void test_products(void **state)
{
    (void)state;
    char text[TEXT_MAX], all[TEXT_MAX];
    struct model_config c;
    struct error error;
    /* Each field in its range, the matrix not. */
    with("vocab_size", "4194304", text);
    char *hidden = strstr(text, "\"hidden_size\": 128");
    snprintf(all, sizeof all, "%.*s\"hidden_size\": 65536, \"head_dim\": 16%s",
             (int)(hidden - text), text, hidden + strlen("\"hidden_size\": 128"));
    assert_int_equal(parse(all, &c, &error), STATUS_CONFIG);
    assert_non_null(strstr(error.text, "vocab_size x hidden_size"));
    assert_int_equal(parse(with("efficient_attention_config",
                                JET("\"num_heads\": 1024, \"head_dim\": 1024, \"conv_size\": 16, "
                                    "\"dconv_generator_reduction\": 1, \"expand_v\": 4, "
                                    "\"norm_eps\": 1e-5"),
                                text),
                           &c, &error),
                     STATUS_CONFIG);
    assert_non_null(strstr(error.text, "conv_size x generator rows"));
}

/* The files of the published models, in what matters, give the built-in shapes. */
static void test_builtin(void **state)
{
    (void)state;
    static const char text[] =
        "{\"model_type\": \"jet_nemotron\", \"vocab_size\": 151936, \"hidden_size\": 1536, "
        "\"intermediate_size\": 8960, \"num_hidden_layers\": 28, \"num_attention_heads\": 12, "
        "\"num_key_value_heads\": 2, \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, "
        "\"max_position_embeddings\": 131072, \"tie_word_embeddings\": true, \"eos_token_id\": "
        "151643, \"layer_types\": [\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\","
        "\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"attn\",\"jet\",\"jet\",\"jet\",\"jet\","
        "\"attn\",\"swa\",\"swa\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\",\"jet\"], "
        "\"efficient_attention_config\": {\"jet\": {\"conv_size\": 4, "
        "\"dconv_generator_reduction\": 8, \"expand_v\": 2.6666666667, \"head_dim\": 96, "
        "\"norm_eps\": \"1e-5\", \"num_heads\": 12}, \"swa\": {\"window_size\": 1152}}}";
    struct model_config parsed, builtin;
    struct error error;
    assert_int_equal(parse(text, &parsed, &error), STATUS_OK);
    assert_int_equal(model_config_builtin("jet-nemotron-2b", &builtin, &error), STATUS_OK);
    assert_memory_equal(&parsed, &builtin, sizeof parsed);
    assert_int_equal(model_config_builtin("jet-nemotron-4b", &builtin, &error), STATUS_OK);
    int jet = 0, swa = 0;
    for (int i = 0; i < builtin.layers; i++) {
        jet += builtin.layer[i] == LAYER_JET;
        swa += builtin.layer[i] == LAYER_SWA;
    }
    assert_int_equal(jet, 26);
    assert_int_equal(swa, 7);
    assert_int_equal(builtin.generator, 512);
    assert_int_equal(model_config_builtin("gpt", &builtin, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "gpt"));
}

static enum status generation(const char *text, struct model_config *config, struct error *error)
{
    char base[TEXT_MAX];
    assert_int_equal(parse(with("", NULL, base), config, error), STATUS_OK);
    return model_generation_parse("generation_config.json", text, strlen(text), config, error);
}

static void test_generation(void **state)
{
    (void)state;
    struct model_config c;
    struct error error;
    assert_int_equal(generation("{\"bos_token_id\": 0, \"eos_token_id\": [4, 6]}", &c, &error),
                     STATUS_OK);
    assert_false(c.has_generation);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[0], 4);
    assert_true(c.temperature == 1);
    assert_int_equal(generation("{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.95, "
                                "\"top_k\": 20, \"min_p\": 0.1, \"repetition_penalty\": 1.05}",
                                &c, &error),
                     STATUS_OK);
    assert_true(c.has_generation);
    assert_true(c.temperature == 0.6f && c.top_p == 0.95f && c.min_p == 0.1f);
    assert_int_equal(c.top_k, 20);
    assert_true(c.repetition_penalty == 1.05f);
    assert_int_equal(c.eos[0], 7); /* of config.json */
    assert_int_equal(generation("{\"do_sample\": false, \"temperature\": 0.6}", &c, &error),
                     STATUS_OK);
    assert_true(c.has_generation && c.temperature == 0);
    assert_int_equal(generation("{\"top_k\": -1}", &c, &error), STATUS_OK);
    assert_int_equal(c.top_k, 0);
}

static void test_bad_generation(void **state)
{
    (void)state;
    static const struct bad wrong[] = {
        {"temperature", "-1", "temperature is -1"},
        {"temperature", "\"inf\"", "temperature"},
        {"top_p", "1.5", "top_p is 1.5"},
        {"top_p", "0", "top_p is 0"},
        {"top_k", "-2", "top_k is -2"},
        {"top_k", "2.5", "top_k is a fraction"},
        {"min_p", "2", "min_p is 2"},
        {"repetition_penalty", "0", "repetition_penalty"},
        {"do_sample", "1", "do_sample is an integer"},
        {"eos_token_id", "512", "eos_token_id is 512"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct model_config c;
        struct error error;
        char text[128];
        snprintf(text, sizeof text, "{\"%s\": %s}", wrong[i].key, wrong[i].value);
        assert_int_equal(generation(text, &c, &error), STATUS_CONFIG);
        if (strstr(error.text, wrong[i].named) == NULL)
            fail_msg("%s: %s", text, error.text);
        assert_false(c.has_generation); /* a refused file changes nothing */
    }
}

static void test_files(void **state)
{
    (void)state;
    struct model_config c;
    struct error error = {0};
    assert_int_equal(model_config_load(JETD_TEST_DATA "/fixtures/tiny-bf16-sharded", &c, &error),
                     STATUS_OK);
    assert_int_equal(c.jet_d_v, 64);
    assert_false(c.tied);
    assert_int_equal(c.rope.type, ROPE_YARN);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(model_config_load(JETD_TEST_DATA "/fixtures/tiny-f32", &c, &error), STATUS_OK);
    assert_int_equal(model_config_load(JETD_TEST_DATA "/../../ops/demo-model", &c, &error),
                     STATUS_OK);
    assert_int_equal(c.layers, 10);
    assert_int_equal(model_config_load(JETD_TEST_DATA "/nowhere", &c, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "nowhere/config.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_rope_parameters),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_builtin),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_bad_generation),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
