/* The published shapes, for plans and runs without a checkpoint. */
#include <string.h>

#include "partition/partition.h"

struct builtin {
    const char *name;
    int layers, hidden, intermediate;
    int attention_heads, window, max_position;
    int jet_heads, jet_d_k, jet_d_v;
    int attn[4], swa[8]; /* layer numbers, -1 ends; all others are jet */
};

static const struct builtin builtins[] = {
    {.name = "jet-nemotron-2b",
     .layers = 28,
     .hidden = 1536,
     .intermediate = 8960,
     .attention_heads = 12,
     .window = 1152,
     .max_position = 131072,
     .jet_heads = 12,
     .jet_d_k = 96,
     .jet_d_v = 256,
     .attn = {14, 19, -1},
     .swa = {20, 21, -1}},
    {.name = "jet-nemotron-4b",
     .layers = 36,
     .hidden = 2048,
     .intermediate = 11008,
     .attention_heads = 16,
     .window = 2048,
     .max_position = 32768,
     .jet_heads = 16,
     .jet_d_k = 128,
     .jet_d_v = 256,
     .attn = {17, 20, 32, -1},
     .swa = {5, 16, 19, 21, 22, 25, 27, -1}},
};

static void fill(const struct builtin *from, struct model_config *config)
{
    memset(config, 0, sizeof *config);
    config->layers = from->layers;
    config->hidden = from->hidden;
    config->intermediate = from->intermediate;
    config->vocab = 151936;
    config->attention_heads = from->attention_heads;
    config->kv_heads = 2;
    config->head_dim = 128;
    config->window = from->window;
    config->jet_heads = from->jet_heads;
    config->jet_d_k = from->jet_d_k;
    config->jet_d_v = from->jet_d_v;
    config->conv_taps = 4;
    config->generator = from->jet_heads * from->jet_d_v / 8;
    config->rms_epsilon = 1e-6f;
    config->jet_epsilon = 1e-5f;
    config->max_position = from->max_position;
    config->tied = true;
    config->rope.type = ROPE_DEFAULT;
    config->rope.theta = 1e6;
    config->rope.factor = 1;
    config->rope.truncate = true;
    config->rope.original_max_position = from->max_position;
    for (int i = 0; from->attn[i] >= 0; i++)
        config->layer[from->attn[i]] = LAYER_ATTN;
    for (int i = 0; from->swa[i] >= 0; i++)
        config->layer[from->swa[i]] = LAYER_SWA;
    config->eos[0] = 151643;
    config->eos_count = 1;
    config->temperature = config->top_p = config->repetition_penalty = 1;
}

enum status model_config_builtin(const char *name, struct model_config *config, struct error *error)
{
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++)
        if (strcmp(builtins[i].name, name) == 0) {
            fill(&builtins[i], config);
            return STATUS_OK;
        }
    return error_set(error, STATUS_NOT_FOUND,
                     "no built-in model \"%.80s\"; there are jet-nemotron-2b and jet-nemotron-4b",
                     name);
}
