/* Dynamic causal convolution: the outputs first, token-parallel, then the carried rows. */
#include "kernels/cuda/convolution.h"
#include "kernels/cuda/tensor.cuh"

enum { RUN = 16 }; /* tokens that one thread walks with a sliding window */

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
    const bf16 *kernels =
        (const bf16 *)op.kernels + (token * op.channels + channel) * op.taps;
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

/* Four taps, eight channels a thread, RUN tokens in a row. */
__global__ static void convolution_4_kernel(struct convolution_op op, struct ragged batch,
                                            const float *bias, int from)
{
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (channel >= op.channels)
        return;
    int64_t begin = from + (int64_t)blockIdx.y * RUN;
    int sequence = -1;
    int64_t first = 0;
    int slot = 0;
    bool fresh = false;
    float window[4][8]; /* inputs of the last four tokens, oldest first */
    float4 added[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        added[i] = bias != NULL ? ((const float4 *)bias)[channel + i]
                                : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int run = 0; run < RUN; run++) {
        int64_t token = begin + run;
        if (token >= batch.tokens)
            return;
        int present = batch.token_sequence[token];
        if (present != sequence) {
            sequence = present;
            first = batch.starts[sequence];
            fresh = batch.contexts[sequence] == 0;
            slot = batch.slots[sequence];
            for (int w = 0; w < 3; w++)
                input8_at(op, first, slot, fresh, (int)(token - first) - 3 + w, channel,
                          window[w + 1]);
        }
#pragma unroll
        for (int w = 0; w < 3; w++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                window[w][i] = window[w + 1][i];
        load8((const bf16 *)op.u + token * op.ld_u + channel, window[3]);
        const bf16x8 *kernels =
            (const bf16x8 *)((const bf16 *)op.kernels + (token * op.channels + channel) * 4);
        float out[8];
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
        store8((bf16 *)op.out + token * op.channels + channel, out);
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
        float value =
            input_at(op, first, slot, fresh, count - (op.taps - 1) + row, channel);
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
                aligned16(op->kernels) && aligned16(op->rows) && aligned16(op->out) && aligned16(bias);
    if (wide)
        convolution_4_kernel<<<dim3(blocks_for(channels, 1024), blocks_for(tokens, RUN)), 128, 0,
                               device->stream>>>(*op, *op->batch, bias, from);
    else
        convolution_any_kernel<<<dim3(tokens, blocks_for(channels, 128)), 128, 0,
                                 device->stream>>>(*op, *op->batch, bias, from);
    enum status status = launch_check("convolution");
    if (status != STATUS_OK || op->taps == 1)
        return status;
    convolution_rows_kernel<<<dim3(blocks_for(channels, 128), op->batch->sequences - sequence),
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
