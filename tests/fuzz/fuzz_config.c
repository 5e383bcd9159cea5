/* The bytes are config.json, then after a zero byte generation_config.json; an accepted model is
 * walked as the loader would walk it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "partition/config_parts.h"
#include "partition/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct model_config *config)
{
    static float frequencies[512];
    float scale;
    struct weights weights = weights_begin(config);
    struct weight weight;
    while (weights_next(&weights, &weight))
        if (weight.shape[0] == 0 || weight.shape[1] == 0 ||
            weight.shape[0] > INT32_MAX / weight.shape[1])
            abort();
    model_rope(config, config->max_position, frequencies, &scale);
    for (int i = 0; i < config->head_dim / 2; i++)
        if (!isfinite(frequencies[i]))
            abort();
    if (!isfinite(scale) || config->eos_count < 0 || config->eos_count > MODEL_EOS_MAX)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct error error = {0};
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t length = zero == NULL ? size : (size_t)(zero - data);
    enum status status =
        model_config_parse("config.json", (const char *)data, length, &config, &error);
    if (status != STATUS_OK) {
        if (error.status != status || error.text[0] == '\0')
            abort();
        return 0;
    }
    if (zero != NULL)
        model_generation_parse("generation_config.json", (const char *)zero + 1, size - length - 1,
                               &config, &error);
    check(&config);
    return 0;
}
