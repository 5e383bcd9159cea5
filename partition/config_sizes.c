/* What no single field shows: sizes that do not go together. */
#include "partition/config_parts.h"

/* A matrix must stay below 2^31 elements: kernels index with ints. The whole must stay below 2^40
 * parameters: more is a mistake in the file. */
static const int64_t elements_max = INT32_MAX;
static const double parameters_max = 1099511627776.0;

struct product {
    const char *names;
    int64_t a, b;
};

static enum status check_products(const char *file, const struct model_config *c,
                                  struct error *error)
{
    int64_t q = (int64_t)c->attention_heads * c->head_dim;
    int64_t keys = (int64_t)c->jet_heads * c->jet_d_k;
    int64_t values = (int64_t)c->jet_heads * c->jet_d_v;
    const struct product products[] = {
        {"vocab_size x hidden_size", c->vocab, c->hidden},
        {"intermediate_size x hidden_size", c->intermediate, c->hidden},
        {"num_attention_heads x head_dim x hidden_size", q, c->hidden},
        {"jet.num_heads x jet.head_dim x hidden_size", keys, c->hidden},
        {"jet.num_heads x value head x hidden_size", values, c->hidden},
        {"jet value channels x conv_size x generator rows", values * c->conv_taps, c->generator},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        /* Every factor is below 2^32 by its own range, so that the product fits 64 bits. */
        if (products[i].a * products[i].b > elements_max)
            return error_set(error, STATUS_CONFIG,
                             "%s: %s = %lld x %lld, over the %lld elements a matrix may have", file,
                             products[i].names, (long long)products[i].a, (long long)products[i].b,
                             (long long)elements_max);
    double layer = 3.0 * c->intermediate * c->hidden + 4.0 * (double)(q + values) * c->hidden;
    double parameters = layer * c->layers + 2.0 * c->vocab * c->hidden;
    if (parameters > parameters_max)
        return error_set(error, STATUS_CONFIG,
                         "%s: num_hidden_layers %d of this size make %.3g parameters, over %.3g",
                         file, c->layers, parameters, parameters_max);
    return STATUS_OK;
}

enum status config_sizes_check(const char *file, const struct model_config *config,
                               struct error *error)
{
    if (config->attention_heads % config->kv_heads != 0)
        return error_set(error, STATUS_CONFIG,
                         "%s: num_attention_heads %d is no multiple of num_key_value_heads %d",
                         file, config->attention_heads, config->kv_heads);
    if (config->head_dim % 2 != 0)
        return error_set(error, STATUS_CONFIG,
                         "%s: head_dim %d is odd; rotary embedding needs pairs", file,
                         config->head_dim);
    if (config->head_dim > 1024)
        return error_set(error, STATUS_CONFIG, "%s: head_dim %d is over 1024", file,
                         config->head_dim);
    return check_products(file, config, error);
}
