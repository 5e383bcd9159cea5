/* The decoding jet mixer for many sequences: a block owns a whole (sequence, head), its state
 * [d_k, 256] in registers: thread t has rows t/64 + 8i and columns 4(t%64) .. +3. Same arithmetic
 * as mixer_step.cu. Of 105 registers (d_k 96: 89) x 512 threads one block fits a multiprocessor:
 * the next block's loads begin when this one has issued its stores, and none run under its sums. */
#include "kernels/cuda/mixer_step.cuh"
#include "kernels/cuda/ptx.cuh"

enum { D_V = 256, HEAD_THREADS = 512, GROUPS = HEAD_THREADS / (D_V / 4) };

struct head_shared {
    struct heads_shared heads;
    float correction[D_V];
    float reads[GROUPS][D_V], outs[GROUPS][D_V];
    float squares[D_V / 32];
};

template <int D_K>
__global__ __launch_bounds__(HEAD_THREADS, 1) static void mixer_head_kernel(struct jet_mixer_op op,
                                                                            struct ragged batch,
                                                                            const bf16 *kernels)
{
    enum { ROWS = D_K / GROUPS };
    __shared__ struct head_shared shared;
    const int t = threadIdx.x;
    const int head = blockIdx.x;
    const int64_t token = blockIdx.y; /* decodes lead, one token each */
    const int slot = batch.slots[token];
    const bool fresh = batch.contexts[token] == 0;
    const int row = t / (D_V / 4), column = t % (D_V / 4) * 4;
    float *state = op.state + (((int64_t)slot * op.heads + head) * D_K + row) * D_V + column;

    float4 s[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        s[i] = fresh ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                     : load_once(state + (int64_t)i * GROUPS * D_V);

    const bf16 *projected = (const bf16 *)op.projected + token * op.ld_projected;
    struct gates gates;
    float gate = 0.0f, value = 0.0f;
    if (t < D_V) {
        int channel = head * D_V + t;
        gate = silu_of(__bfloat162float(projected[op.gate_at + channel])) * op.norm_weight[t];
        value = convolve(op, projected, kernels, token, slot, fresh, channel);
    } else if (t < D_V + THREADS) {
        load_heads(op, projected, head, t - D_V, &shared.heads);
    }
    gates.decay = decay_of(op, projected, head);
    gates.beta = beta_of(op, projected, head);
    __syncthreads();
    finish_heads(op, &shared.heads, &gates);

    float4 read = {0.0f, 0.0f, 0.0f, 0.0f}, out = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float k = shared.heads.key[row + GROUPS * i], q = shared.heads.query[row + GROUPS * i];
        read = add_scaled(read, s[i], k);
        out = add_scaled(out, s[i], q);
    }
    *(float4 *)&shared.reads[row][column] = read;
    *(float4 *)&shared.outs[row][column] = out;
    __syncthreads();

    float o = 0.0f;
    if (t < D_V) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            sum += shared.reads[i][t];
            o += shared.outs[i][t];
        }
        float r = gates.beta * (value - gates.decay * gates.k_factor * sum);
        o = gates.decay * gates.q_factor * o + gates.kq * r;
        shared.correction[t] = r * gates.k_factor;
        float square = warp_sum(o * o);
        if (t % 32 == 0)
            shared.squares[t / 32] = square;
    }
    __syncthreads();
    float4 r = *(const float4 *)&shared.correction[column];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        store_once(state + (int64_t)i * GROUPS * D_V,
                   update_row(s[i], gates.decay, shared.heads.key[row + GROUPS * i], r));
    if (t < D_V) {
        float square = 0.0f;
#pragma unroll
        for (int i = 0; i < D_V / 32; i++)
            square += shared.squares[i];
        float factor = rsqrtf(square / (float)D_V + op.norm_epsilon);
        ((bf16 *)op.out)[(token * op.heads + head) * D_V + t] = __float2bfloat16(o * factor * gate);
    }
}

enum status mixer_head(struct device *device, const struct jet_mixer_op *op, const void *kernels)
{
    auto kernel = op->d_k == 128 ? mixer_head_kernel<128> : mixer_head_kernel<96>;
    kernel<<<dim3(op->heads, op->batch->decodes), HEAD_THREADS, 0, device->stream>>>(
        *op, *op->batch, (const bf16 *)kernels);
    return launch_check("jet mixer head");
}
