/* The k best raw logits of the rows that want them: each warp sorts out the best of 512 columns,
 * then one block a row merges those lists. */
#include "kernels/cuda/sample_fused.cuh"

enum { THREADS = 256, VALUES = 16, OWN_LISTS = 4 };

/* A warp a list. */
__global__ __launch_bounds__(THREADS) static void list_kernel(struct sample_op op,
                                                              struct sample_area area)
{
    const int wanted = op.batch.row[blockIdx.y].tops;
    const int k = wanted < SAMPLE_TOP_MAX ? wanted : SAMPLE_TOP_MAX;
    if (k <= 0)
        return;
    const int list = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *row = op.logits + (int64_t)blockIdx.y * op.batch.columns;
    struct logit_candidate *out =
        area.top + ((int64_t)blockIdx.y * area.lists + list) * SAMPLE_TOP_MAX;
    const struct best none = {-INFINITY, INT32_MAX};
    struct best mine = none;
    float values[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        int column = list * 32 * VALUES + i * 32 + lane;
        values[i] = column < op.batch.columns ? row[column] : -INFINITY;
        if (values[i] > -INFINITY)
            mine = best_of(mine, (struct best){values[i], column});
    }
    for (int rank = 0; rank < k; rank++) {
        struct best best = warp_best(mine);
        if (lane == 0)
            out[rank] = best.id == INT32_MAX ? (struct logit_candidate){-INFINITY, -1}
                                             : (struct logit_candidate){best.value, best.id};
        if (best.id == INT32_MAX)
            break;
        if (mine.id != best.id)
            continue;
        mine = none;
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            int column = list * 32 * VALUES + i * 32 + lane;
            if (column == best.id)
                values[i] = -INFINITY;
            if (values[i] > -INFINITY)
                mine = best_of(mine, (struct best){values[i], column});
        }
    }
}

/* The head of a list; an ended list has id -1 there. */
__device__ static inline struct best head_of(const struct logit_candidate *list, int at, int k)
{
    if (at >= k || list[at].id < 0)
        return (struct best){-INFINITY, INT32_MAX};
    return (struct best){list[at].value, list[at].id};
}

/* A block a row; a thread holds the heads of up to OWN_LISTS lists. */
__global__ __launch_bounds__(ROW_THREADS) static void merge_kernel(struct sample_op op,
                                                                   struct sample_area area)
{
    __shared__ struct best bests[32];
    struct sample_result *out = &op.out[blockIdx.x];
    const int wanted = op.batch.row[blockIdx.x].tops;
    const int k = wanted < SAMPLE_TOP_MAX ? wanted : SAMPLE_TOP_MAX;
    if (k <= 0 || out->token < 0)
        return;
    const struct logit_candidate *lists =
        area.top + (int64_t)blockIdx.x * area.lists * SAMPLE_TOP_MAX;
    const double normaliser = area.state[blockIdx.x].normaliser;
    struct best head[OWN_LISTS];
    int at[OWN_LISTS];
#pragma unroll
    for (int i = 0; i < OWN_LISTS; i++) {
        int list = i * ROW_THREADS + threadIdx.x;
        at[i] = list < area.lists ? 0 : SAMPLE_TOP_MAX;
        head[i] = head_of(lists + (int64_t)list * SAMPLE_TOP_MAX, at[i], k);
    }
    for (int rank = 0; rank < k; rank++) {
        struct best best = head[0];
#pragma unroll
        for (int i = 1; i < OWN_LISTS; i++)
            best = best_of(best, head[i]);
        best = block_best(best, bests);
        if (best.id == INT32_MAX)
            break;
        if (threadIdx.x == 0) {
            out->top[rank] = {(float)((double)best.value - normaliser), best.id};
            out->tops = rank + 1;
        }
#pragma unroll
        for (int i = 0; i < OWN_LISTS; i++)
            if (head[i].id == best.id)
                head[i] = head_of(lists + ((int64_t)i * ROW_THREADS + threadIdx.x) * SAMPLE_TOP_MAX,
                                  ++at[i], k);
    }
}

enum status sample_top(struct device *device, const struct sample_op *op,
                       const struct sample_area *area)
{
    if (area->lists > OWN_LISTS * ROW_THREADS) {
        log_error("cuda: sample: no k best of %d columns", op->batch.columns);
        return STATUS_DEVICE;
    }
    list_kernel<<<dim3(area->lists / (THREADS / 32), op->batch.rows), THREADS, 0, device->stream>>>(
        *op, *area);
    enum status status = launch_check("sample: lists of the best");
    if (status != STATUS_OK)
        return status;
    merge_kernel<<<op->batch.rows, ROW_THREADS, 0, device->stream>>>(*op, *area);
    return launch_check("sample: the best");
}
