/* The decoding jet mixer for many sequences: persistent blocks through which the state streams.
 *
 * A block takes one (sequence, head) after another; of each, four slabs of 64 columns, [d_k, 64]
 * fp32, pass through STAGES shared buffers: the copy engine brings slab n + 2 while slab n is
 * computed and slab n - 1 leaves. Thread t moves row t of every slab itself, so a buffer's next
 * load waits only for this thread's own store. The arithmetic is mixer_step.cu's. */
#include "kernels/cuda/mixer_step.cuh"
#include "kernels/cuda/ptx.cuh"

enum { STAGES = 3, SLABS = 4, D_V = SLABS * COLUMNS };

struct stream_shared {
    struct heads_shared heads;
    float value[D_V], gate[D_V], o[D_V];
    float reads[WARPS][COLUMNS], outs[WARPS][COLUMNS];
    float correction[COLUMNS];
    float square[2];
    uint64_t full[STAGES];
};

/* Slab `step` of this block's stream. */
struct place {
    int sequence, head, slab;
};

__device__ static inline struct place place_of(int step, int heads)
{
    int item = (int)blockIdx.x + step / SLABS * (int)gridDim.x;
    struct place place = {item / heads, item % heads, step % SLABS};
    return place;
}

__device__ static inline float *slab_row(const struct jet_mixer_op &op,
                                         const struct ragged &batch, struct place place, int d_k)
{
    int64_t slot = batch.slots[place.sequence];
    return op.state + ((slot * op.heads + place.head) * d_k + (int)threadIdx.x) * D_V +
           place.slab * COLUMNS;
}

/* The channels, gates and heads of a new (sequence, head). */
__device__ static inline void item_begin(const struct jet_mixer_op &op, const struct ragged &batch,
                                         const bf16 *kernels, struct place place,
                                         struct stream_shared *shared, struct gates *gates)
{
    const int64_t token = place.sequence;
    const int slot = batch.slots[place.sequence];
    const bool fresh = batch.contexts[place.sequence] == 0;
    const bf16 *projected = (const bf16 *)op.projected + token * op.ld_projected;
    __syncthreads(); /* the head before this one is done with `shared` */
    load_heads(op, projected, place.head, &shared->heads);
#pragma unroll
    for (int i = 0; i < D_V / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, channel = place.head * D_V + at;
        shared->gate[at] =
            silu_of(__bfloat162float(projected[op.gate_at + channel])) * op.norm_weight[at];
        shared->value[at] = convolve(op, projected, kernels, token, slot, fresh, channel);
    }
    gates->decay = decay_of(op, projected, place.head);
    gates->beta = beta_of(op, projected, place.head);
    __syncthreads();
    finish_heads(op, &shared->heads, gates);
}

/* The norm over the four slabs, and the output. `square`: of this thread's columns. */
__device__ static inline void item_end(const struct jet_mixer_op &op, struct place place,
                                       struct stream_shared *shared, float square)
{
    const int t = threadIdx.x;
    square = warp_sum(square);
    if (t < COLUMNS && t % 32 == 0)
        shared->square[t / 32] = square;
    __syncthreads();
    float factor =
        rsqrtf((shared->square[0] + shared->square[1]) / (float)D_V + op.norm_epsilon);
    float2 o = *(const float2 *)&shared->o[2 * t], gate = *(const float2 *)&shared->gate[2 * t];
    bf16 *out = (bf16 *)op.out + ((int64_t)place.sequence * op.heads + place.head) * D_V;
    *(uint32_t *)(out + 2 * t) = pack_bf16(o.x * factor * gate.x, o.y * factor * gate.y);
}

template <int D_K>
__global__ __launch_bounds__(THREADS, 2) static void mixer_stream_kernel(
    struct jet_mixer_op op, struct ragged batch, const bf16 *kernels)
{
    enum { ROWS = D_K / 8, ROW_BYTES = COLUMNS * 4, SLAB_BYTES = D_K * ROW_BYTES };
    extern __shared__ __align__(128) unsigned char slabs[];
    __shared__ struct stream_shared shared;
    const int t = threadIdx.x, row = t / 16;
    const int items = batch.decodes * op.heads;
    const int mine = (items - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    const int steps = mine * SLABS;
    const uint64_t policy = policy_evict_first();
    auto full = [&](int step) { return shared_address(&shared.full[step % STAGES]); };
    auto buffer = [&](int step) { return slabs + step % STAGES * SLAB_BYTES; };
    auto load = [&](int step) {
        if (step >= steps)
            return;
        if (t == 0)
            barrier_expect(full(step), SLAB_BYTES);
        if (t < D_K)
            copy_in(shared_address(buffer(step) + t * ROW_BYTES),
                    slab_row(op, batch, place_of(step, op.heads), D_K), ROW_BYTES, full(step),
                    policy);
    };
    if (t == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(shared_address(&shared.full[i]), 1);
        barrier_init_done();
    }
    __syncthreads();
    load(0);
    load(1);

    struct gates gates = {};
    float square = 0.0f;
    for (int step = 0; step < steps; step++) {
        const struct place place = place_of(step, op.heads);
        const bool fresh = batch.contexts[place.sequence] == 0;
        if (place.slab == 0) {
            item_begin(op, batch, kernels, place, &shared, &gates);
            square = 0.0f;
        }
        barrier_wait(full(step), step / STAGES % 2);
        float4 *slab = (float4 *)buffer(step) + t; /* rows of 16 float4 */
        float4 s[ROWS], read, out;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            s[i] = fresh ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : slab[i * THREADS];
        read_state<ROWS>(s, &shared.heads, row, &read, &out);
        if (t % 32 < 16) {
            *(float4 *)&shared.reads[t / 32][t % 16 * 4] = read;
            *(float4 *)&shared.outs[t / 32][t % 16 * 4] = out;
        }
        __syncthreads();
        if (t < COLUMNS) {
            float sum = 0.0f, o = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                sum += shared.reads[w][t];
                o += shared.outs[w][t];
            }
            int at = place.slab * COLUMNS + t;
            float r = gates.beta * (shared.value[at] - gates.decay * gates.k_factor * sum);
            o = gates.decay * gates.q_factor * o + gates.kq * r;
            shared.correction[t] = r * gates.k_factor;
            shared.o[at] = o;
            square += o * o;
        }
        __syncthreads();
        float4 r = *(const float4 *)&shared.correction[t % 16 * 4];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            slab[i * THREADS] =
                update_row(s[i], gates.decay, shared.heads.key[row + 8 * i], r);
        proxy_fence();
        __syncthreads();
        if (t < D_K)
            copy_out(slab_row(op, batch, place, D_K), shared_address(buffer(step) + t * ROW_BYTES),
                     ROW_BYTES, policy);
        copy_out_commit();
        copy_out_read_wait<1>(); /* the slab before this one has left its buffer */
        load(step + 2);
        if (place.slab == SLABS - 1)
            item_end(op, place, &shared, square);
    }
    copy_out_wait();
}

enum status mixer_stream(struct device *device, const struct jet_mixer_op *op,
                         const void *kernels)
{
    const int items = op->batch->decodes * op->heads;
    const int blocks = items < 2 * device->multiprocessors ? items : 2 * device->multiprocessors;
    const size_t bytes = (size_t)STAGES * op->d_k * COLUMNS * 4;
    auto kernel = op->d_k == 128 ? mixer_stream_kernel<128> : mixer_stream_kernel<96>;
    enum status status = shared_raise(kernel, bytes, "jet mixer stream");
    if (status != STATUS_OK)
        return status;
    kernel<<<blocks, THREADS, bytes, device->stream>>>(*op, *op->batch, (const bf16 *)kernels);
    return launch_check("jet mixer stream");
}
