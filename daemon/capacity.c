#include "daemon/capacity.h"

#include "daemon/scheduler.h"

static int sequences_of(const struct settings *settings, bool cuda)
{
    if (settings->max_num_seqs > 0)
        return settings->max_num_seqs;
    return cuda ? 256 : 64;
}

static int tokens_of(const struct settings *settings, bool cuda)
{
    if (settings->max_num_batched_tokens > 0)
        return settings->max_num_batched_tokens;
    int tokens = cuda ? 8192 : 512, sequences = sequences_of(settings, cuda);
    return tokens > sequences ? tokens : sequences;
}

struct limits capacity_limits(const struct settings *settings, bool cuda, uint64_t memory)
{
    return (struct limits){
        .max_model_len = settings->max_model_len,
        .max_num_seqs = sequences_of(settings, cuda),
        .max_num_batched_tokens = tokens_of(settings, cuda),
        .block_tokens = settings->block_size,
        .kv_blocks = settings->kv_blocks,
        .memory_bytes = memory,
    };
}

/* Tensor size 0 means what is left of `world`. */
enum status capacity_mesh(const struct settings *settings, int world, struct mesh *mesh,
                          struct error *error)
{
    int64_t others = (int64_t)settings->pipeline * settings->context;
    int64_t tensor = settings->tensor;
    if (tensor == 0)
        tensor = others <= world && world % others == 0 ? world / others : 1;
    if (tensor * others != world)
        return error_set(error, STATUS_CONFIG,
                         "tensor %d x pipeline %d x context %d parallel is %lld ranks, but %d %s "
                         "started",
                         (int)tensor, settings->pipeline, settings->context,
                         (long long)(tensor * others), world, world == 1 ? "was" : "were");
    *mesh = (struct mesh){
        .tensor = (int)tensor, .context = settings->context, .pipeline = settings->pipeline};
    return STATUS_OK;
}

/* The scheduler cuts prompts at multiples of 64 only while a whole unit fits beside every other
 * sequence's token; else at places that depend on the batch, and the numbers with them. */
static enum status check_invariant(const struct settings *settings,
                                   const struct capacity_place *place, struct error *error)
{
    int sequences = sequences_of(settings, true), tokens = tokens_of(settings, true);
    if (tokens < sequences + SCHEDULER_UNIT_MAX)
        return error_set(error, STATUS_CONFIG,
                         "--batch-invariant needs --max-num-batched-tokens %d or more with "
                         "--max-num-seqs %d (%d tokens beside one of each sequence), it is %d",
                         sequences + SCHEDULER_UNIT_MAX, sequences, SCHEDULER_UNIT_MAX, tokens);
    if (place->nccl && place->tensor > 2)
        return error_set(error, STATUS_CONFIG,
                         "--batch-invariant with --tensor-parallel-size %d over NCCL: the order of "
                         "a sum over three ranks or more depends on the batch; use size 1 or 2, or "
                         "--fabric mpi",
                         place->tensor);
    return STATUS_OK;
}

enum status capacity_check(const struct settings *settings, const struct capacity_place *place,
                           struct error *error)
{
    enum { PAGE = 64 }; /* keys that an attention kernel loads at once, from one block */
    if (!place->cuda)
        return STATUS_OK;
    if (settings->block_size % PAGE != 0)
        return error_set(error, STATUS_CONFIG,
                         "--block-size %d: on cuda it must be a multiple of %d",
                         settings->block_size, PAGE);
    if (place->head_dim > CUDA_HEAD_DIM_MAX)
        return error_set(error, STATUS_CONFIG,
                         "head_dim %d: on cuda it may be %d at most, --device cpu takes it",
                         place->head_dim, CUDA_HEAD_DIM_MAX);
    return settings->batch_invariant ? check_invariant(settings, place, error) : STATUS_OK;
}

enum { RESERVE = 256 << 20 }; /* bytes of a rank */

uint64_t capacity_gpu_share(const struct settings *settings, uint64_t total, uint64_t available,
                            int sharers)
{
    /* What is free is never planned to the last byte: kernels that load late, the grain of
     * allocations and the first use of a library take some of it. */
    const uint64_t reserve = (uint64_t)RESERVE * (uint64_t)sharers;
    uint64_t share = (uint64_t)((double)total * settings->gpu_memory_utilization);
    uint64_t room = available > reserve ? available - reserve : 0;
    return (share < room ? share : room) / (uint64_t)sharers;
}
