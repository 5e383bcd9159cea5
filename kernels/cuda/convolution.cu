/* Dynamic causal convolution: the outputs first, token-parallel, then the carried rows. */
#include "kernels/cuda/convolution.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor.cuh"

enum { CONV_THREADS = 64, DEPTH = 8 };
enum { RUN = 32 }; /* tokens that one thread walks with a sliding window */

/* u at `steps` tokens after the sequence's first new one; negative: a carried row. */
__device__ static inline float input_at(const struct convolution_op &op, int64_t first, int slot,
                                        bool fresh, int step, int channel)
{
    if (step >= 0)
        return __bfloat162float(((const bf16 *)op.u)[(first + step) * op.ld_u + channel]);
    int row = op.taps - 1 + step;
    if (fresh || row < 0)
        return 0.0f;
    return __bfloat162float(
        ((const bf16 *)op.rows)[((int64_t)slot * (op.taps - 1) + row) * op.channels + channel]);
}

__global__ static void convolution_any_kernel(struct convolution_op op, struct ragged batch,
                                              const float *bias, int from)
{
    int channel = blockIdx.y * blockDim.x + threadIdx.x;
    int64_t token = from + blockIdx.x;
    if (channel >= op.channels)
        return;
    int sequence = batch.token_sequence[token];
    int64_t first = batch.starts[sequence];
    bool fresh = batch.contexts[sequence] == 0;
    int slot = batch.slots[sequence];
    const bf16 *kernels = (const bf16 *)op.kernels + (token * op.channels + channel) * op.taps;
    float sum = 0.0f;
    for (int w = 0; w < op.taps; w++)
        sum += (__bfloat162float(kernels[w]) +
                (bias != NULL ? bias[(int64_t)channel * op.taps + w] : 0.0f)) *
               input_at(op, first, slot, fresh, (int)(token - first) - op.taps + 1 + w, channel);
    ((bf16 *)op.out)[token * op.channels + channel] = __float2bfloat16(silu_of(sum));
}

__device__ static inline void input8_at(const struct convolution_op &op, int64_t first, int slot,
                                        bool fresh, int step, int channel, float *values)
{
    if (step >= 0) {
        load8((const bf16 *)op.u + (first + step) * op.ld_u + channel, values);
    } else if (fresh) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            values[i] = 0.0f;
    } else {
        load8((const bf16 *)op.rows + ((int64_t)slot * 3 + 3 + step) * op.channels + channel,
              values);
    }
}

/* One token's eight channels. `added`: the bias of their taps. */
__device__ static inline void convolve8(const float (&window)[4][8], const bf16x8 *kernels,
                                        const float4 *added, float *out)
{
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        float taps[8];
        unpack8(kernels[pair], taps);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int c = pair * 2 + i;
            float sum = (taps[4 * i] + added[c].x) * window[0][c] +
                        (taps[4 * i + 1] + added[c].y) * window[1][c] +
                        (taps[4 * i + 2] + added[c].z) * window[2][c] +
                        (taps[4 * i + 3] + added[c].w) * window[3][c];
            out[c] = silu_of(sum);
        }
    }
}

/* Where piece `piece` (16 bytes) of a lane's kernels lies among a warp's 128: turned by the lane,
 * so that eight lanes that read their own pieces hit all banks. */
__device__ static inline int piece_place(int lane, int piece)
{
    return lane * 4 + (piece ^ (lane / 2 % 4));
}

/* Four taps, eight channels a thread, RUN tokens in a row. The kernels and inputs of DEPTH tokens
 * are under way into shared memory. A warp fetches its 2 KB of kernels together, in the order of
 * memory: a lane alone would ask for half sectors. */
__global__ __launch_bounds__(CONV_THREADS) static void convolution_4_kernel(
    struct convolution_op op, struct ragged batch, const float *bias, int from)
{
    enum { WARPS = CONV_THREADS / 32 };
    __shared__ bf16x8 kernel_places[DEPTH][WARPS][128], input_places[DEPTH][CONV_THREADS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int channel = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    const int warp_channel = channel - lane * 8;
    const bool inside = channel < op.channels;
    const int begin = from + blockIdx.y * RUN;
    const int end = begin + RUN < batch.tokens ? begin + RUN : batch.tokens;
    const bf16 *kernels =
        (const bf16 *)op.kernels + ((int64_t)begin * op.channels + warp_channel) * 4;
    const bf16 *inputs = (const bf16 *)op.u + (int64_t)begin * op.ld_u + channel;
    auto fetch = [&](int token) {
        if (token < end) {
            bf16x8 *to = kernel_places[token % DEPTH][warp];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int item = i * 32 + lane, owner = item / 4;
                if (warp_channel + owner * 8 < op.channels)
                    copy16_async(shared_address(to + piece_place(owner, item % 4)),
                                 kernels + item * 8);
            }
            if (inside)
                copy16_async(shared_address(&input_places[token % DEPTH][threadIdx.x]), inputs);
            kernels += (int64_t)op.channels * 4;
            inputs += op.ld_u;
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++)
        fetch(begin + i);

    int sequence = batch.token_sequence[begin];
    const bool whole = batch.token_sequence[end - 1] == sequence;
    float window[4][8]; /* inputs of the last four tokens, oldest first */
    float4 added[8];
    auto enter = [&](int token) {
        bool fresh = batch.contexts[sequence] == 0;
        int slot = batch.slots[sequence], first = batch.starts[sequence];
        if (inside)
#pragma unroll
            for (int w = 0; w < 3; w++)
                input8_at(op, first, slot, fresh, token - first - 3 + w, channel, window[w + 1]);
    };
#pragma unroll
    for (int i = 0; i < 8; i++)
        added[i] = bias != NULL && inside ? ((const float4 *)bias)[channel + i]
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    enter(begin);
    for (int token = begin; token < end; token++) {
        if (!whole && batch.token_sequence[token] != sequence) {
            sequence = batch.token_sequence[token];
            enter(token);
        }
        copy_wait<DEPTH - 2>();
        __syncwarp();
        bf16x8 own[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            own[i] = kernel_places[token % DEPTH][warp][piece_place(lane, i)];
#pragma unroll
        for (int w = 0; w < 3; w++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                window[w][i] = window[w + 1][i];
        unpack8(input_places[token % DEPTH][threadIdx.x], window[3]);
        fetch(token + DEPTH - 1); /* into the places that the token before this one left */
        float out[8];
        convolve8(window, own, added, out);
        if (inside)
            store8((bf16 *)op.out + (int64_t)token * op.channels + channel, out);
    }
}

/* The last taps - 1 inputs of each sequence; in order, since the shift is in place. */
__global__ static void convolution_rows_kernel(struct convolution_op op, struct ragged batch,
                                               int from)
{
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    int sequence = from + blockIdx.y;
    if (channel >= op.channels)
        return;
    int64_t first = batch.starts[sequence];
    int count = batch.starts[sequence + 1] - (int)first;
    bool fresh = batch.contexts[sequence] == 0;
    int slot = batch.slots[sequence];
    for (int row = 0; row < op.taps - 1; row++) {
        float value = input_at(op, first, slot, fresh, count - (op.taps - 1) + row, channel);
        ((bf16 *)op.rows)[((int64_t)slot * (op.taps - 1) + row) * op.channels + channel] =
            __float2bfloat16(value);
    }
}

enum status convolution_from(struct device *device, const struct convolution_op *op,
                             const float *bias, int sequence)
{
    const int from = sequence; /* one token each before it */
    const int tokens = op->batch->tokens - from;
    const int channels = op->channels;
    if (tokens <= 0 || channels == 0)
        return STATUS_OK;
    bool wide = op->taps == 4 && channels % 8 == 0 && op->ld_u % 8 == 0 && aligned16(op->u) &&
                aligned16(op->kernels) && aligned16(op->rows) && aligned16(op->out) &&
                aligned16(bias);
    if (wide)
        convolution_4_kernel<<<dim3(blocks_for(channels, CONV_THREADS * 8),
                                    blocks_for(tokens, RUN)),
                               CONV_THREADS, 0, device->stream>>>(*op, *op->batch, bias, from);
    else
        convolution_any_kernel<<<dim3(tokens, blocks_for(channels, 128)), 128, 0, device->stream>>>(
            *op, *op->batch, bias, from);
    enum status status = launch_check("convolution");
    return status == STATUS_OK ? convolution_carry(device, op, sequence) : status;
}

enum status convolution_carry(struct device *device, const struct convolution_op *op, int sequence)
{
    if (op->taps == 1)
        return STATUS_OK;
    convolution_rows_kernel<<<dim3(blocks_for(op->channels, 128), op->batch->sequences - sequence),
                              128, 0, device->stream>>>(*op, *op->batch, sequence);
    return launch_check("convolution rows");
}

enum status cuda_convolution(struct device *device, const struct convolution_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK)
        return status;
    return convolution_from(device, op, NULL, 0);
}
