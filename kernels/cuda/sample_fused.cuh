/* What the kernels of the fused sampling entry share. */
#ifndef JETD_KERNELS_CUDA_SAMPLE_FUSED_CUH
#define JETD_KERNELS_CUDA_SAMPLE_FUSED_CUH

#include <math.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/logits.cuh"
#include "kernels/philox.h"

/* What one chunk of a row says; the last block of the row to finish merges them. */
struct alignas(16) chunk_part {
    float max; /* of the raw logits */
    int32_t argmax;
    float sum; /* of exp(x - max) */
    int32_t bad;
    float score; /* the chunk's winner */
    int32_t id;
    int32_t unused[2];
};

/* What the kernels after the scan need of it. */
struct row_state {
    double normaliser; /* log of the sum of exp of the raw logits */
    int32_t argmax;
    int32_t good; /* a token may be drawn */
};

struct sample_area {
    int chunks, lists;
    struct row_state *state;     /* [rows] */
    struct chunk_part *part;     /* [rows, chunks] */
    struct logit_candidate *top; /* [rows, lists, SAMPLE_TOP_MAX] */
    uint32_t *counters;          /* [rows] zero between launches */
};

/* The value of a key. */
__device__ static inline float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* Whether a row's draw is cut by a threshold (sample_cut.cu), so that the scan leaves it alone. */
__device__ static inline bool row_is_cut(const struct sample_row &row, int limit)
{
    return row.target < 0 && row.temperature > 0.0f &&
           ((row.top_k > 0 && row.top_k < limit) || row.top_p < 1.0f || row.min_p > 0.0f);
}

/* ---- the race ------------------------------------------------------------------------------ */

/* The race as times of arrival: -log(u) / exp(value - max), to about 1e-4. The first to arrive has
 * the highest score; only those close to it are scored exactly. */
__device__ static inline float race_time(const struct sample_row &row, int32_t id, float value,
                                         float max)
{
    uint32_t bits = philox_draw(row.seed, row.draw, (uint32_t)id);
    float rest = ((float)~bits + 0.5f) * 0x1p-32f; /* 1 - u */
    float wait = rest < 0.1f ? rest * (1.0f + rest * (0.5f + rest * (1.0f / 3.0f + rest * 0.25f)))
                             : -__logf(((float)bits + 0.5f) * 0x1p-32f);
    float weight = value == max ? 1.0f : __expf(value - max);
    return __fdividef(wait, weight);
}

/* How far behind the first an arrival may be and still have the highest exact score: the
 * approximation's error and the rounding of scores to float. */
__device__ static inline float race_limit(float first, float max)
{
    return first * (1.001f + 1e-6f * fabsf(max));
}

__device__ static __noinline__ float race_score(const struct sample_row &row, int32_t id,
                                                float value)
{
    double uniform = ((double)philox_draw(row.seed, row.draw, (uint32_t)id) + 0.5) * 0x1p-32;
    return (float)((double)value - log(-log(uniform)));
}

/* ---- blocks of WARPS warps ----------------------------------------------------------------- */

template <int WARPS>
__device__ static inline struct best few_best(struct best best, struct best *shared)
{
    best = warp_best(best);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = best;
    __syncthreads();
    best = shared[threadIdx.x % WARPS];
#pragma unroll
    for (int offset = WARPS / 2; offset > 0; offset /= 2)
        best = best_of(best, (struct best){__shfl_xor_sync(0xffffffffu, best.value, offset),
                                           __shfl_xor_sync(0xffffffffu, best.id, offset)});
    return best;
}

template <int WARPS, typename Number>
__device__ static inline Number few_sum(Number value, Number *shared)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++)
        value += shared[i];
    return value;
}

template <int WARPS>
__device__ static inline float few_min(float value, float *shared)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value = fminf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++)
        value = fminf(value, shared[i]);
    return value;
}

/* ---- the outcome --------------------------------------------------------------------------- */

/* One thread; the result was cleared. token < 0: nothing could be drawn. */
__device__ static inline void row_finish(const struct sample_op &op, int index,
                                         const struct sample_row &row,
                                         const struct row_state &state, int32_t token)
{
    struct sample_result *out = &op.out[index];
    if (!state.good || token < 0) {
        out->token = -1;
        return;
    }
    bool inside = token < op.batch.columns;
    float value = inside ? op.logits[(int64_t)index * op.batch.columns + token] : -INFINITY;
    out->token = token;
    out->is_argmax = token == state.argmax;
    out->logprob = (float)((double)value - state.normaliser);
    if (row.target >= 0)
        return;
    op.last[row.slot] = token;
    if (row.flags & SAMPLE_COUNTED)
        atomicAdd(&op.counts[(int64_t)row.slot * op.batch.columns + token], 1u);
}

enum status sample_cut(struct device *device, const struct sample_op *op,
                       const struct sample_area *area);
enum status sample_top(struct device *device, const struct sample_op *op,
                       const struct sample_area *area);

#endif
