/* The gated delta rule in chunks of 64 tokens.
 *
 * With G the running sum of g inside a chunk, S the entering state and b = beta:
 *   L = strictly lower (b_i k_i.k_j),  T = (I + L)^-1 * exp(G_i - G_j) b_j,  P = lower (q_i.k_j
 *   exp(G_i - G_j)),  U = T (V - exp(G) K S),  O = exp(G) Q S + P U,
 *   S' = exp(G_end) S + K^T exp(G_end - G) U.
 * delta_prepare: T, P and G of every chunk and head, all at once. delta_states, where few sequences
 * are long: the states before each of their segments. delta_scan: the chain over the chunks of each
 * segment. Differences of G are exponentiated, never its parts: all are <= 0. */
#include "kernels/cuda/delta_chunk.cuh"
#include "kernels/cuda/delta_plan.h"

/* The step's share of device->scratch. */
struct arrangement {
    struct prepared prepared;
    struct segments cut;
    size_t bytes;
};

static void *reserve(struct arrangement *a, const struct device *device, size_t bytes)
{
    void *memory = device->scratch + a->bytes;
    a->bytes += (bytes + 255) / 256 * 256;
    return memory;
}

/* Chunks a segment. Batch-invariant: whole sequences, since where a sequence is cut depends on what
 * lies beside it. */
static int segment_chunks(const struct device *device, const struct delta_op *op, int from)
{
    const struct ragged *batch = op->batch;
    struct delta_load load = {};
    load.chains = op->heads * (op->d_v / SLAB);
    load.across = op->heads * ((op->d_k + SLAB - 1) / SLAB);
    load.multiprocessors = device->multiprocessors;
    load.longest = (batch->max_tokens + CHUNK - 1) / CHUNK;
    for (int s = from; s < batch->sequences; s++)
        load.chunks += (batch->host_starts[s + 1] - batch->host_starts[s] + CHUNK - 1) / CHUNK;
    return device->options.batch_invariant ? load.longest : delta_segment_chunks(&load);
}

static struct arrangement arrange(const struct device *device, const struct delta_op *op, int from,
                                  int chunks)
{
    const struct ragged *batch = op->batch;
    const int longest = (batch->max_tokens + CHUNK - 1) / CHUNK;
    struct arrangement a = {};
    const size_t matrices = (size_t)(batch->tokens / CHUNK + batch->sequences + 1) * op->heads;
    a.prepared.matrices = (bf16 *)reserve(&a, device, matrices * 2 * TILE);
    a.prepared.decay = (float *)reserve(&a, device, matrices * CHUNK * 4);
    a.cut.from = from;
    a.cut.chunks = chunks > 0 ? chunks : 1;
    a.cut.count = longest > chunks ? (longest + chunks - 1) / chunks : 1;
    if (a.cut.count == 1)
        return a;
    const size_t sequences = (size_t)(batch->sequences - from);
    const size_t rows = ((size_t)(batch->tokens / (CHUNK * chunks)) + sequences + 1) * op->heads;
    a.cut.entering = (float *)reserve(&a, device, rows * op->d_k * op->d_v * 4);
    a.cut.across = (float *)reserve(&a, device, rows * op->d_k * op->d_k * 4);
    return a;
}

bool delta_chunk_fits(const struct device *device, const struct delta_op *op)
{
    const int longest = (op->batch->max_tokens + CHUNK - 1) / CHUNK;
    return (op->d_k == 96 || op->d_k == 128) && op->d_v % SLAB == 0 &&
           arrange(device, op, 0, longest).bytes <= device->scratch_bytes && aligned16(op->q) &&
           aligned16(op->k) && aligned16(op->v) && aligned16(op->out);
}

static enum status chain_maps_make(struct chain_maps *maps, const struct delta_op *op)
{
    const int64_t tokens = op->batch->tokens;
    const int keys = op->heads * op->d_k, values = op->heads * op->d_v;
    enum status status = tensor_map_rows(&maps->keys, op->k, tokens, keys, keys, CHUNK);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps->queries, op->q, tokens, keys, keys, CHUNK);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps->values, op->v, tokens, values, values, CHUNK);
    return status;
}

enum status delta_chunk(struct device *device, const struct delta_op *op, int from)
{
    if (from >= op->batch->sequences)
        return STATUS_OK;
    const int longest = (op->batch->max_tokens + CHUNK - 1) / CHUNK;
    struct arrangement a = arrange(device, op, from, segment_chunks(device, op, from));
    if (a.bytes > device->scratch_bytes)
        a = arrange(device, op, from, longest);
    struct chain_maps maps;
    enum status status = chain_maps_make(&maps, op);
    if (status == STATUS_OK)
        status = delta_prepare(device, op, &maps, &a.prepared, from);
    if (status == STATUS_OK)
        status = delta_states(device, op, &maps, &a.prepared, &a.cut);
    if (status == STATUS_OK)
        status = delta_scan(device, op, &maps, &a.prepared, &a.cut);
    return status;
}
