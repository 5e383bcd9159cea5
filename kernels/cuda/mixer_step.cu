/* One decoded token of the jet mixer in one pass: head norms, gates, convolution, delta rule and
 * gated norm; each state element is read once and written once.
 *
 * A cluster of d_v / 64 blocks owns a (sequence, head); each block owns 64 columns of the state,
 * held in registers: thread t has rows t/16 + 8i and columns 4(t%16) .. +3. With a = exp(g) and
 * the old state S:  r = beta (v - a S^T k);  S' = a S + k r^T;  o = a S^T q + (k.q) r, so that one
 * reduction serves both products. The blocks exchange their sums of o^2 for the norm. */
#include <cooperative_groups.h>

#include "kernels/cuda/mixer.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"

namespace cg = cooperative_groups;

enum { COLUMNS = 64, THREADS = 128, WARPS = THREADS / 32, SLABS_MAX = 8 };

struct step_shared {
    float key[128], query[128];
    float value[COLUMNS];
    float reads[WARPS][COLUMNS], outs[WARPS][COLUMNS];
    float sums[WARPS][3];
    float squares[SLABS_MAX]; /* written by the blocks of the cluster */
    float square[2];
};

/* silu of this thread's element of q and k; squares and k.q summed over the block. */
__device__ static inline void load_heads(const struct jet_mixer_op &op, const bf16 *projected,
                                         int head, struct step_shared *shared)
{
    int t = threadIdx.x;
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
    return silu_of(low.x * __bfloat162float(first) + low.y * __bfloat162float(second) +
                   high.x * __bfloat162float(third) + high.y * __bfloat162float(present));
}

template <int D_K>
__global__ __launch_bounds__(THREADS, 4) static void mixer_step_kernel(
    struct jet_mixer_op op, struct ragged batch, const bf16 *kernels)
{
    enum { ROWS = D_K / 8 };
    __shared__ struct step_shared shared;
    cg::cluster_group cluster = cg::this_cluster();
    const int t = threadIdx.x;
    const int slab = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z;
    const int64_t token = sequence; /* decodes lead, one token each */
    const int slot = batch.slots[sequence];
    const bool fresh = batch.contexts[sequence] == 0;
    const int row = t / 16, column = slab * COLUMNS + t % 16 * 4;
    float *state = op.state + (((int64_t)slot * op.heads + head) * D_K + row) * op.d_v + column;

    float4 s[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        s[i] = fresh ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                     : load_once(state + (int64_t)i * 8 * op.d_v);

    const bf16 *projected = (const bf16 *)op.projected + token * op.ld_projected;
    float a = __bfloat162float(projected[op.a_at + head]) + op.dt_bias[head];
    float b = __bfloat162float(projected[op.b_at + head]);
    float gate = 0.0f;
    load_heads(op, projected, head, &shared);
    if (t < COLUMNS) {
        int channel = head * op.d_v + slab * COLUMNS + t;
        gate = silu_of(__bfloat162float(projected[op.gate_at + channel])) *
               op.norm_weight[slab * COLUMNS + t];
        shared.value[t] = convolve(op, projected, kernels, token, slot, fresh, channel);
    }
    float softplus = a > 20.0f ? a : log1pf(expf(a));
    float decay = expf(-expf(op.a_log[head]) * softplus);
    float beta = 1.0f / (1.0f + expf(-b));
    __syncthreads();

    float qq = 0.0f, kk = 0.0f, kq = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        qq += shared.sums[w][0];
        kk += shared.sums[w][1];
        kq += shared.sums[w][2];
    }
    float q_factor = rsqrtf(qq + op.head_epsilon) * rsqrtf((float)D_K);
    float k_factor = rsqrtf(kk + op.head_epsilon);
    kq *= q_factor * k_factor;

    float4 read = {0.0f, 0.0f, 0.0f, 0.0f}, out = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float k = shared.key[row + 8 * i], q = shared.query[row + 8 * i];
        read.x += s[i].x * k;
        read.y += s[i].y * k;
        read.z += s[i].z * k;
        read.w += s[i].w * k;
        out.x += s[i].x * q;
        out.y += s[i].y * q;
        out.z += s[i].z * q;
        out.w += s[i].w * q;
    }
    float *values[8] = {&read.x, &read.y, &read.z, &read.w, &out.x, &out.y, &out.z, &out.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        *values[i] += __shfl_xor_sync(0xffffffffu, *values[i], 16);
    if (t % 32 < 16) {
        *(float4 *)&shared.reads[t / 32][t % 16 * 4] = read;
        *(float4 *)&shared.outs[t / 32][t % 16 * 4] = out;
    }
    __syncthreads();

    float o = 0.0f;
    if (t < COLUMNS) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            sum += shared.reads[w][t];
            o += shared.outs[w][t];
        }
        float r = beta * (shared.value[t] - decay * k_factor * sum);
        o = decay * q_factor * o + kq * r;
        shared.value[t] = r * k_factor;
        float square = warp_sum(o * o);
        if (t % 32 == 0)
            shared.square[t / 32] = square;
    }
    __syncthreads();
    float4 r = *(float4 *)&shared.value[t % 16 * 4];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float k = shared.key[row + 8 * i];
        s[i].x = decay * s[i].x + k * r.x;
        s[i].y = decay * s[i].y + k * r.y;
        s[i].z = decay * s[i].z + k * r.z;
        s[i].w = decay * s[i].w + k * r.w;
        store_once(state + (int64_t)i * 8 * op.d_v, s[i]);
    }
    int slabs = (int)gridDim.x;
    if (t < slabs)
        cluster.map_shared_rank(shared.squares, t)[slab] = shared.square[0] + shared.square[1];
    cluster.sync();
    if (t < COLUMNS) {
        float square = 0.0f;
        for (int i = 0; i < slabs; i++)
            square += shared.squares[i];
        float factor = rsqrtf(square / (float)op.d_v + op.norm_epsilon);
        ((bf16 *)op.out)[(token * op.heads + head) * op.d_v + slab * COLUMNS + t] =
            __float2bfloat16(o * factor * gate);
    }
}

bool mixer_step_fits(const struct jet_mixer_op *op)
{
    return (op->d_k == 96 || op->d_k == 128) && op->d_v % COLUMNS == 0 &&
           op->d_v / COLUMNS <= SLABS_MAX && op->taps == 4;
}

enum status mixer_step(struct device *device, const struct jet_mixer_op *op, const void *kernels)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    unsigned slabs = (unsigned)(op->d_v / COLUMNS);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = slabs;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(slabs, (unsigned)op->heads, (unsigned)op->batch->decodes);
    config.blockDim = dim3(THREADS);
    config.stream = device->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    auto kernel = op->d_k == 128 ? mixer_step_kernel<128> : mixer_step_kernel<96>;
    return device_check(
        cudaLaunchKernelEx(&config, kernel, *op, *op->batch, (const bf16 *)kernels),
        "jet mixer step");
}
