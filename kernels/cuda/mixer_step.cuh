/* What both forms of the decoding jet mixer do before they touch the state. */
#ifndef JETD_KERNELS_CUDA_MIXER_STEP_CUH
#define JETD_KERNELS_CUDA_MIXER_STEP_CUH

#include "kernels/cuda/mixer.h"
#include "kernels/cuda/tensor.cuh"

enum { COLUMNS = 64, THREADS = 128, WARPS = THREADS / 32 };

/* silu(q) and silu(k) of a head, and each warp's q.q, k.k, k.q. */
struct heads_shared {
    float key[128], query[128];
    float sums[WARPS][3];
};

/* The head's scalars. */
struct gates {
    float decay, beta;
    float q_factor, k_factor; /* what makes silu(q), silu(k) the normed q, k */
    float kq;                 /* normed k . normed q */
};

/* silu of element t of q and k, and their sums; whole warps, t < THREADS. */
__device__ static inline void load_heads(const struct jet_mixer_op &op, const bf16 *projected,
                                         int head, int t, struct heads_shared *shared)
{
    float q = 0.0f, k = 0.0f;
    if (t < op.d_k) {
        q = silu_of(__bfloat162float(projected[op.q_at + head * op.d_k + t]));
        k = silu_of(__bfloat162float(projected[op.k_at + head * op.d_k + t]));
        shared->query[t] = q;
        shared->key[t] = k;
    }
    float qq = warp_sum(q * q), kk = warp_sum(k * k), kq = warp_sum(k * q);
    if (t % 32 == 0) {
        shared->sums[t / 32][0] = qq;
        shared->sums[t / 32][1] = kk;
        shared->sums[t / 32][2] = kq;
    }
}

/* The convolution of one channel, and its carried rows one step on. */
__device__ static inline float convolve(const struct jet_mixer_op &op, const bf16 *projected,
                                        const bf16 *kernels, int64_t token, int slot, bool fresh,
                                        int channel)
{
    int channels = op.heads * op.d_v;
    bf16 *rows = (bf16 *)op.rows + (int64_t)slot * 3 * channels + channel;
    uint2 packed = *(const uint2 *)(kernels + (token * channels + channel) * 4);
    float4 bias = ((const float4 *)op.w2_bias)[channel];
    float2 low = __bfloat1622float2(*(__nv_bfloat162 *)&packed.x);
    float2 high = __bfloat1622float2(*(__nv_bfloat162 *)&packed.y);
    bf16 zero = __float2bfloat16(0.0f);
    bf16 first = fresh ? zero : rows[0];
    bf16 second = fresh ? zero : rows[channels];
    bf16 third = fresh ? zero : rows[2 * channels];
    bf16 present = projected[op.v_at + channel];
    rows[0] = second;
    rows[channels] = third;
    rows[2 * channels] = present;
    return silu_of((low.x + bias.x) * __bfloat162float(first) +
                   (low.y + bias.y) * __bfloat162float(second) +
                   (high.x + bias.z) * __bfloat162float(third) +
                   (high.y + bias.w) * __bfloat162float(present));
}

__device__ static inline float decay_of(const struct jet_mixer_op &op, const bf16 *projected,
                                        int head)
{
    float a = __bfloat162float(projected[op.a_at + head]) + op.dt_bias[head];
    float softplus = a > 20.0f ? a : log1pf(expf(a));
    return expf(-expf(op.a_log[head]) * softplus);
}

__device__ static inline float beta_of(const struct jet_mixer_op &op, const bf16 *projected,
                                       int head)
{
    return 1.0f / (1.0f + expf(-__bfloat162float(projected[op.b_at + head])));
}

/* After load_heads and a barrier. */
__device__ static inline void finish_heads(const struct jet_mixer_op &op,
                                           const struct heads_shared *shared, struct gates *gates)
{
    float qq = 0.0f, kk = 0.0f, kq = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        qq += shared->sums[w][0];
        kk += shared->sums[w][1];
        kq += shared->sums[w][2];
    }
    gates->q_factor = rsqrtf(qq + op.head_epsilon) * rsqrtf((float)op.d_k);
    gates->k_factor = rsqrtf(kk + op.head_epsilon);
    gates->kq = kq * gates->q_factor * gates->k_factor;
}

/* This thread's part of S^T k and S^T q, over its rows; lanes t and t + 16 of a warp then agree. */
template <int ROWS>
__device__ static inline void read_state(const float4 *s, const struct heads_shared *shared,
                                         int row, float4 *read, float4 *out)
{
    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float k = shared->key[row + 8 * i], q = shared->query[row + 8 * i];
        sums[0] += s[i].x * k;
        sums[1] += s[i].y * k;
        sums[2] += s[i].z * k;
        sums[3] += s[i].w * k;
        sums[4] += s[i].x * q;
        sums[5] += s[i].y * q;
        sums[6] += s[i].z * q;
        sums[7] += s[i].w * q;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], 16);
    *read = make_float4(sums[0], sums[1], sums[2], sums[3]);
    *out = make_float4(sums[4], sums[5], sums[6], sums[7]);
}

__device__ static inline float4 add_scaled(float4 sum, float4 s, float factor)
{
    return make_float4(sum.x + s.x * factor, sum.y + s.y * factor, sum.z + s.z * factor,
                       sum.w + s.w * factor);
}

/* a S + k r^T of one row of four columns; r is scaled by what norms k. */
__device__ static inline float4 update_row(float4 s, float decay, float k, float4 r)
{
    return make_float4(decay * s.x + k * r.x, decay * s.y + k * r.y, decay * s.z + k * r.z,
                       decay * s.w + k * r.w);
}

#endif
