/* model_rope against the transformers package's own functions; see rope_vectors.py. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "partition/partition.h"

struct rope_vector {
    int head_dim;
    double theta;
    int max_position, length;
    const char *scaling;
    double scale;
    double frequencies[64];
};

#include "rope_vectors.h"

/* The vector's rope as members of config.json: by its older names, or all in rope_parameters. */
static void rope_text(const struct rope_vector *vector, bool newer, char *text, size_t room)
{
    bool plain = strcmp(vector->scaling, "null") == 0;
    if (newer)
        snprintf(text, room, "\"rope_parameters\": {\"rope_theta\": %.17g%s%s", vector->theta,
                 plain ? "" : ", ", plain ? "}" : vector->scaling + 1);
    else
        snprintf(text, room, "\"rope_theta\": %.17g, \"rope_scaling\": %s", vector->theta,
                 vector->scaling);
}

/* A config of one attention layer with the vector's rope. */
static void config_of(const struct rope_vector *vector, bool newer, struct model_config *config)
{
    char text[2048], rope[1024];
    rope_text(vector, newer, rope, sizeof rope);
    int length =
        snprintf(text, sizeof text,
                 "{\"num_hidden_layers\": 1, \"layer_types\": [\"attn\"], \"hidden_size\": 64, "
                 "\"intermediate_size\": 64, \"vocab_size\": 64, \"num_attention_heads\": 2, "
                 "\"num_key_value_heads\": 1, \"rms_norm_eps\": 1e-6, \"head_dim\": %d, "
                 "\"max_position_embeddings\": %d, %s}",
                 vector->head_dim, vector->max_position, rope);
    struct error error = {0};
    if (model_config_parse("config.json", text, (size_t)length, config, &error) != STATUS_OK)
        fail_msg("%s: %s", vector->scaling, error.text);
}

static bool close_to(double found, double wanted)
{
    return fabs(found - wanted) <= 1e-7 * fabs(wanted); /* one f32 rounding */
}

static void check_vectors(bool newer)
{
    for (size_t i = 0; i < sizeof rope_vectors / sizeof *rope_vectors; i++) {
        const struct rope_vector *vector = &rope_vectors[i];
        struct model_config config;
        float frequencies[64], scale;
        config_of(vector, newer, &config);
        model_rope(&config, vector->length, frequencies, &scale);
        if (!close_to(scale, vector->scale))
            fail_msg("%s: scale %.9g, not %.9g", vector->scaling, scale, vector->scale);
        for (int k = 0; k < vector->head_dim / 2; k++)
            if (!close_to(frequencies[k], vector->frequencies[k]))
                fail_msg("%s: frequency %d is %.9g, not %.9g", vector->scaling, k, frequencies[k],
                         vector->frequencies[k]);
    }
}

static void test_vectors(void **state)
{
    (void)state;
    check_vectors(false);
}

static void test_vectors_by_the_newer_name(void **state)
{
    (void)state;
    check_vectors(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors),
                                       cmocka_unit_test(test_vectors_by_the_newer_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
