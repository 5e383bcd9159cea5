#include <inttypes.h>

#include "daemon/base/checked.h"
#include "partition/partition.h"

static double mib(uint64_t bytes)
{
    return (double)bytes / (1024.0 * 1024.0);
}

static void print_span(FILE *out, const char *name, struct span span)
{
    fprintf(out, "  %-12s %d .. %d (%d)\n", name, span.begin, span.end - 1, span_size(span));
}

static void print_layers(const struct plan *plan, const struct rank_plan *rank, FILE *out)
{
    static const char letters[] = {'j', 'A', 'w'}; /* by enum layer_type */
    fprintf(out, "  %-12s %d .. %d: %d jet, %d attn, %d swa  ", "layers", rank->layers.begin,
            rank->layers.end - 1, rank->jet_layers, rank->attn_layers, rank->swa_layers);
    for (int i = rank->layers.begin; i < rank->layers.end; i++)
        fputc(letters[plan->model.layer[i]], out);
    fprintf(out, "%s%s\n", rank->first ? "  + embedding" : "", rank->last ? "  + head" : "");
}

static void print_rank(const struct plan *plan, const struct rank_plan *rank, FILE *out)
{
    uint64_t kv = rank->kv_blocks * (uint64_t)plan->limits.block_tokens * rank->kv_bytes_per_token;
    fprintf(out, "rank %d (tensor %d, context %d, pipeline %d), modelled cost %.2f us a token\n",
            rank->rank, rank->at.tensor, rank->at.context, rank->at.pipeline, rank->cost * 1e6);
    print_layers(plan, rank, out);
    if (rank->jet_layers > 0)
        print_span(out, "jet heads", rank->jet_heads);
    if (rank->attn_layers + rank->swa_layers > 0) {
        print_span(out, "query heads", rank->q_heads);
        print_span(out, "kv heads", rank->kv_heads);
    }
    print_span(out, "MLP columns", rank->columns);
    if (rank->first || rank->last)
        print_span(out, "vocabulary", rank->vocab);
    fprintf(out, "  %-12s %.1f MiB\n", "weights", mib(rank->weight_bytes));
    fprintf(out, "  %-12s %.2f MiB a sequence x %d, one of them idle\n", "state",
            mib(rank->state_bytes_per_sequence), plan->limits.max_num_seqs + 1);
    fprintf(out, "  %-12s %" PRIu64 " bytes a token, %" PRIu64 " blocks of %d tokens: %.1f MiB\n",
            "KV", rank->kv_bytes_per_token, rank->kv_blocks, plan->limits.block_tokens, mib(kv));
    fprintf(out, "  %-12s %.1f MiB\n", "scratch", mib(rank->scratch_bytes));
    if (rank->recording_bytes > 0)
        fprintf(out, "  %-12s %.1f MiB\n", "recordings", mib(rank->recording_bytes));
    fprintf(out, "  %-12s %.1f MiB\n", "total", mib(rank->total_bytes));
}

/* How many sequences run at once, by length: slots bound short ones, KV blocks long ones. Without a
 * limit on memory there are blocks for all, which would say nothing. */
static void print_room(const struct plan *plan, FILE *out)
{
    const struct limits *limits = &plan->limits;
    if (limits->memory_bytes == 0) {
        fprintf(out, "memory limit: none given; --memory BYTES says how many sequences of what "
                     "length fit\n");
        return;
    }
    fprintf(out, "memory limit: %.1f MiB a rank\n", mib(limits->memory_bytes));
    fprintf(out, "  %-12s sequences that fit, at most max_num_seqs\n", "length");
    int length = limits->max_model_len < 1024 ? limits->max_model_len : 1024;
    for (;;) {
        uint64_t each = divide_up((uint64_t)length, (uint64_t)limits->block_tokens);
        uint64_t fit = limits->kv_blocks / each;
        if (fit > (uint64_t)limits->max_num_seqs)
            fit = (uint64_t)limits->max_num_seqs;
        fprintf(out, "  %-12d %" PRIu64 "\n", length, fit);
        if (length == limits->max_model_len)
            break;
        length = length > limits->max_model_len / 4 ? limits->max_model_len : length * 4;
    }
}

void plan_print(const struct plan *plan, FILE *out)
{
    const struct model_config *m = &plan->model;
    const struct limits *limits = &plan->limits;
    fprintf(out,
            "model: %d layers, hidden %d, MLP %d, vocabulary %d, %s; %d jet heads %d x %d, "
            "%d query and %d kv heads of %d\n",
            m->layers, m->hidden, m->intermediate, m->vocab, m->tied ? "tied" : "untied",
            m->jet_heads, m->jet_d_k, m->jet_d_v, m->attention_heads, m->kv_heads, m->head_dim);
    fprintf(out, "mesh: tensor %d x context %d x pipeline %d = %d ranks, activations %s\n",
            plan->mesh.tensor, plan->mesh.context, plan->mesh.pipeline, plan->ranks,
            dtype_name(plan->activation));
    fprintf(out, "limits: max_model_len %d, max_num_seqs %d, max_num_batched_tokens %d\n",
            limits->max_model_len, limits->max_num_seqs, limits->max_num_batched_tokens);
    for (int i = 0; i < plan->ranks; i++)
        print_rank(plan, &plan->rank[i], out);
    fprintf(out, "digest: %016" PRIx64 "\n", plan->digest);
    print_room(plan, out);
}
