/* Rotary embedding: rope_theta with rope_scaling, or rope_parameters of config.json, and the
 * inverse frequencies they mean. Default and linear: RoFormer, arXiv 2104.09864, and position
 * interpolation, arXiv 2306.15595. Dynamic: NTK-aware base change. Yarn: arXiv 2309.00071. Llama3:
 * the Llama 3.1 model card. */
#include <math.h>
#include <string.h>

#include "partition/config_parts.h"

static const double THETA_MIN = 1.001, THETA_MAX = 1e12;
static const double two_pi = 6.283185307179586476925286766559;

/* ---- read --------------------------------------------------------------------------------- */

/* Leaves *value where the member is absent. */
static enum status read_number(struct field at, const char *key, double low, double high,
                               double *value, struct error *error)
{
    struct field member = field_member(at, key);
    return field_present(member) ? field_number(member, low, high, value, error) : STATUS_OK;
}

/* A dictionary of rope_theta alone is the default rope. */
static enum status read_type(struct field scaling, enum rope_type *type, struct error *error)
{
    static const char *const names[] = {[ROPE_DEFAULT] = "default",
                                        [ROPE_LINEAR] = "linear",
                                        [ROPE_DYNAMIC] = "dynamic",
                                        [ROPE_YARN] = "yarn",
                                        [ROPE_LLAMA3] = "llama3"};
    struct field at = field_member(scaling, "rope_type");
    if (!field_present(at) && field_present(field_member(scaling, "type")))
        at = field_member(scaling, "type"); /* the older key */
    const char *name = NULL;
    *type = ROPE_DEFAULT;
    if (!field_present(at) && field_size(scaling) == 1 &&
        field_present(field_member(scaling, "rope_theta")))
        return STATUS_OK;
    enum status status = field_string(at, &name, error);
    if (status != STATUS_OK)
        return status;
    for (int i = ROPE_DEFAULT; i <= ROPE_LLAMA3; i++)
        if (strcmp(names[i], name) == 0) {
            *type = (enum rope_type)i;
            return STATUS_OK;
        }
    return error_set(error, STATUS_CONFIG,
                     "%s: %s is \"%.60s\"; known are default, linear, dynamic, yarn and llama3",
                     at.file, at.path, name);
}

static enum status read_yarn(struct field at, struct model_config *config, struct error *error)
{
    struct rope_config *rope = &config->rope;
    enum status status =
        read_number(at, "attention_factor", 1e-6, 1e6, &rope->attention_factor, error);
    if (status == STATUS_OK)
        status = read_number(at, "mscale", 0, 1e6, &rope->mscale, error);
    if (status == STATUS_OK)
        status = read_number(at, "mscale_all_dim", 0, 1e6, &rope->mscale_all_dim, error);
    if (status == STATUS_OK)
        status = read_number(at, "beta_fast", 0, 1e6, &rope->beta_fast, error);
    if (status == STATUS_OK)
        status = read_number(at, "beta_slow", 0, 1e6, &rope->beta_slow, error);
    struct field truncate = field_member(at, "truncate");
    if (status == STATUS_OK && field_present(truncate))
        status = field_bool(truncate, &rope->truncate, error);
    /* As the reference implementation has it, 0 means the default. */
    if (rope->beta_fast == 0)
        rope->beta_fast = 32;
    if (rope->beta_slow == 0)
        rope->beta_slow = 1;
    if (status == STATUS_OK && rope->beta_fast < rope->beta_slow)
        status = error_set(error, STATUS_CONFIG, "%s: %s.beta_fast %g is below beta_slow %g",
                           at.file, at.path, rope->beta_fast, rope->beta_slow);
    return status;
}

static enum status read_llama3(struct field at, struct model_config *config, struct error *error)
{
    struct rope_config *rope = &config->rope;
    enum status status =
        field_number(field_member(at, "low_freq_factor"), 1e-6, 1e6, &rope->low_freq_factor, error);
    if (status == STATUS_OK)
        status = field_number(field_member(at, "high_freq_factor"), 1e-6, 1e6,
                              &rope->high_freq_factor, error);
    if (status == STATUS_OK && !field_present(field_member(at, "original_max_position_embeddings")))
        status = error_set(error, STATUS_CONFIG,
                           "%s: %s.original_max_position_embeddings is missing", at.file, at.path);
    if (status == STATUS_OK && rope->high_freq_factor <= rope->low_freq_factor)
        status = error_set(error, STATUS_CONFIG,
                           "%s: %s.high_freq_factor %g is not above low_freq_factor %g", at.file,
                           at.path, rope->high_freq_factor, rope->low_freq_factor);
    return status;
}

/* What every type has in common, and `theta` where the dictionary names one. */
static enum status read_common(struct field at, struct rope_config *rope, struct error *error)
{
    double whole = 1;
    enum status status = field_expect_object(at, error);
    if (status == STATUS_OK)
        status = read_type(at, &rope->type, error);
    if (status == STATUS_OK)
        status = read_number(at, "rope_theta", THETA_MIN, THETA_MAX, &rope->theta, error);
    if (status == STATUS_OK)
        status = read_number(at, "partial_rotary_factor", 1, 1, &whole, error);
    return status;
}

/* One dictionary, whichever of the two names it has. */
static enum status read_dictionary(struct field at, struct model_config *config,
                                   struct error *error)
{
    struct rope_config *rope = &config->rope;
    enum status status = read_common(at, rope, error);
    if (status != STATUS_OK || rope->type == ROPE_DEFAULT)
        return status;
    status = field_number(field_member(at, "factor"), 1, 1e6, &rope->factor, error);
    struct field original = field_member(at, "original_max_position_embeddings");
    if (status == STATUS_OK && field_present(original))
        status = field_int(original, 1, 1 << 24, &rope->original_max_position, error);
    if (status == STATUS_OK && rope->type == ROPE_YARN)
        status = read_yarn(at, config, error);
    if (status == STATUS_OK && rope->type == ROPE_LLAMA3)
        status = read_llama3(at, config, error);
    if (status == STATUS_OK && rope->type == ROPE_DYNAMIC && config->head_dim <= 2)
        status = error_set(error, STATUS_CONFIG, "%s: dynamic %s needs a head_dim above 2", at.file,
                           at.path);
    return status;
}

static bool rope_equal(const struct rope_config *a, const struct rope_config *b)
{
    return a->type == b->type && a->theta == b->theta && a->factor == b->factor &&
           a->attention_factor == b->attention_factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
           a->mscale_all_dim == b->mscale_all_dim && a->low_freq_factor == b->low_freq_factor &&
           a->high_freq_factor == b->high_freq_factor &&
           a->original_max_position == b->original_max_position && a->truncate == b->truncate;
}

/* The dictionary `key` over what stands beside it. Which of two different values a library takes
 * depends on its version: they are refused. */
static enum status read_named(struct field root, const char *key, struct model_config *config,
                              struct error *error)
{
    struct field at = field_member(root, key);
    double beside = config->rope.theta;
    if (!field_present(at))
        return STATUS_OK;
    enum status status = read_dictionary(at, config, error);
    if (status == STATUS_OK && field_present(field_member(root, "rope_theta")) &&
        config->rope.theta != beside)
        status = error_set(error, STATUS_CONFIG, "%s: %s.rope_theta is %g, but rope_theta is %g",
                           root.file, key, config->rope.theta, beside);
    return status;
}

enum status config_rope_read(struct field root, struct model_config *config, struct error *error)
{
    struct rope_config *rope = &config->rope;
    rope->type = ROPE_DEFAULT;
    rope->theta = 10000;
    rope->factor = 1;
    rope->truncate = true;
    rope->original_max_position = config->max_position;
    enum status status = read_number(root, "rope_theta", THETA_MIN, THETA_MAX, &rope->theta, error);
    const struct rope_config plain = *rope;
    if (status == STATUS_OK)
        status = read_named(root, "rope_parameters", config, error);
    if (status != STATUS_OK || !field_present(field_member(root, "rope_scaling")))
        return status;
    const struct rope_config newer = *rope;
    *rope = plain;
    status = read_named(root, "rope_scaling", config, error);
    if (status == STATUS_OK && field_present(field_member(root, "rope_parameters")) &&
        !rope_equal(rope, &newer))
        status = error_set(error, STATUS_CONFIG, "%s: rope_parameters and rope_scaling disagree",
                           root.file);
    return status;
}

/* ---- compute ------------------------------------------------------------------------------ */

static double base_frequency(double theta, int pair, int head_dim)
{
    return pow(theta, -2.0 * pair / head_dim);
}

/* The dynamic base for sequences up to `length`. */
static double dynamic_theta(const struct model_config *config, int length)
{
    double dim = config->head_dim, factor = config->rope.factor;
    double stretch = fmax(1, (double)length / config->max_position);
    return config->rope.theta * pow(factor * stretch - (factor - 1), dim / (dim - 2));
}

/* The dimension (of head_dim, not rounded) that turns `rotations` times over the original
 * length. */
static double yarn_dimension(const struct model_config *config, double rotations)
{
    return config->head_dim * log(config->rope.original_max_position / (rotations * two_pi)) /
           (2 * log(config->rope.theta));
}

static double yarn_frequency(const struct model_config *config, double base, int pair)
{
    const struct rope_config *rope = &config->rope;
    double low = yarn_dimension(config, rope->beta_fast);
    double high = yarn_dimension(config, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, config->head_dim - 1);
    if (low == high)
        high += 0.001;
    double interpolated = fmin(fmax((pair - low) / (high - low), 0), 1);
    return base / rope->factor * interpolated + base * (1 - interpolated);
}

static double yarn_magnitude(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double yarn_scale(const struct rope_config *rope)
{
    if (rope->attention_factor != 0)
        return rope->attention_factor;
    if (rope->mscale != 0 && rope->mscale_all_dim != 0)
        return yarn_magnitude(rope->factor, rope->mscale) /
               yarn_magnitude(rope->factor, rope->mscale_all_dim);
    return yarn_magnitude(rope->factor, 1);
}

static double llama3_frequency(const struct rope_config *rope, double base)
{
    double wavelength = two_pi / base, original = rope->original_max_position;
    if (wavelength < original / rope->high_freq_factor)
        return base;
    if (wavelength > original / rope->low_freq_factor)
        return base / rope->factor;
    double smooth = (original / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * base / rope->factor + smooth * base;
}

static double frequency(const struct model_config *config, int length, int pair)
{
    const struct rope_config *rope = &config->rope;
    double base = base_frequency(rope->theta, pair, config->head_dim);
    switch (rope->type) {
    case ROPE_DEFAULT:
        return base;
    case ROPE_LINEAR:
        return base / rope->factor;
    case ROPE_DYNAMIC:
        return base_frequency(dynamic_theta(config, length), pair, config->head_dim);
    case ROPE_YARN:
        return yarn_frequency(config, base, pair);
    case ROPE_LLAMA3:
        return llama3_frequency(rope, base);
    }
    return base;
}

void model_rope(const struct model_config *config, int length, float *frequencies, float *scale)
{
    for (int pair = 0; pair < config->head_dim / 2; pair++)
        frequencies[pair] = (float)frequency(config, length, pair);
    *scale = config->rope.type == ROPE_YARN ? (float)yarn_scale(&config->rope) : 1;
}
