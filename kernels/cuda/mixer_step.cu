/* One decoded token of the jet mixer in one pass: head norms, gates, convolution, delta rule and
 * gated norm; each state element is read once and written once. The form for few sequences.
 *
 * A cluster of d_v / 64 blocks owns a (sequence, head); each block owns 64 columns of the state,
 * held in registers: thread t has rows t/16 + 8i and columns 4(t%16) .. +3. With a = exp(g) and
 * the old state S:  r = beta (v - a S^T k);  S' = a S + k r^T;  o = a S^T q + (k.q) r, so that one
 * reduction serves both products. The blocks exchange their sums of o^2 for the norm. */
#include <cooperative_groups.h>
#include <utility>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mixer_step.cuh"
#include "kernels/cuda/ptx.cuh"

namespace cg = cooperative_groups;

enum { SLABS_MAX = 8 };

struct step_shared {
    struct heads_shared heads;
    float value[COLUMNS];
    float reads[WARPS][COLUMNS], outs[WARPS][COLUMNS];
    float squares[SLABS_MAX]; /* written by the blocks of the cluster */
    float square[2];
};

template <int D_K>
__global__ __launch_bounds__(THREADS, 4) static void mixer_step_kernel(struct jet_mixer_op op,
                                                                       struct ragged batch,
                                                                       const bf16 *kernels)
{
    enum { ROWS = D_K / 8 };
    __shared__ struct step_shared shared;
    cg::cluster_group cluster = cg::this_cluster();
    auto started = cluster.barrier_arrive();
    const int t = threadIdx.x;
    const int slab = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z;
    const int64_t token = sequence; /* decodes lead, one token each */
    const int slot = batch.slots[sequence];
    const bool fresh = batch.contexts[sequence] == 0;
    const int row = t / 16, column = slab * COLUMNS + t % 16 * 4;
    float *state = op.state + (((int64_t)slot * op.heads + head) * D_K + row) * op.d_v + column;

    /* The state waits for nobody: the kernels before this one make the token's projections, and a
     * transfer lies between two calls on one state (kernels.h). */
    launch_next();
    float4 s[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        s[i] = fresh ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                     : load_once(state + (int64_t)i * 8 * op.d_v);
    launch_wait();

    const bf16 *projected = (const bf16 *)op.projected + token * op.ld_projected;
    struct gates gates;
    float gate = 0.0f;
    load_heads(op, projected, head, t, &shared.heads);
    if (t < COLUMNS) {
        int channel = head * op.d_v + slab * COLUMNS + t;
        gate = silu_of(__bfloat162float(projected[op.gate_at + channel])) *
               op.norm_weight[slab * COLUMNS + t];
        shared.value[t] = convolve(op, projected, kernels, token, slot, fresh, channel);
    }
    gates.decay = decay_of(op, projected, head);
    gates.beta = beta_of(op, projected, head);
    __syncthreads();
    finish_heads(op, &shared.heads, &gates);

    float4 read, out;
    read_state<ROWS>(s, &shared.heads, row, &read, &out);
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
        float r = gates.beta * (shared.value[t] - gates.decay * gates.k_factor * sum);
        o = gates.decay * gates.q_factor * o + gates.kq * r;
        shared.value[t] = r * gates.k_factor;
        float square = warp_sum(o * o);
        if (t % 32 == 0)
            shared.square[t / 32] = square;
    }
    __syncthreads();
    float4 r = *(float4 *)&shared.value[t % 16 * 4];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        store_once(state + (int64_t)i * 8 * op.d_v,
                   update_row(s[i], gates.decay, shared.heads.key[row + 8 * i], r));
    int slabs = (int)gridDim.x;
    cluster.barrier_wait(std::move(started)); /* the peers' shared memory is theirs */
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
           op->d_v / COLUMNS <= SLABS_MAX && op->taps == 4 && aligned16(op->w2_bias);
}

static enum status step_launch(struct device *device, const struct jet_mixer_op *op,
                               const void *kernels)
{
    const unsigned slabs = (unsigned)(op->d_v / COLUMNS);
    auto kernel = op->d_k == 128 ? mixer_step_kernel<128> : mixer_step_kernel<96>;
    return launch_early_clusters(
        device, kernel, dim3(slabs, (unsigned)op->heads, (unsigned)op->batch->decodes), slabs,
        dim3(THREADS), 0, "jet mixer step", *op, *op->batch, (const bf16 *)kernels);
}

/* Whole heads a block need enough heads to fill the device a few times; the two forms sum in
 * different orders. */
bool mixer_step_heads(const struct jet_mixer_op *op, int multiprocessors, bool invariant)
{
    int64_t heads = (int64_t)op->batch->decodes * op->heads;
    return op->d_v == 256 && (invariant || heads >= 3 * multiprocessors);
}

enum status mixer_step(struct device *device, const struct jet_mixer_op *op, const void *kernels)
{
    if (mixer_step_heads(op, device->multiprocessors, device->options.batch_invariant))
        return mixer_head(device, op, kernels);
    return step_launch(device, op, kernels);
}
