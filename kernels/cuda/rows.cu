/* Rows in, rows out: token ids, embedding, gather, rms norm. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor.cuh"

__global__ static void resolve_kernel(struct resolve_op op)
{
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= op.tokens)
        return;
    int32_t source = op.source[t];
    op.ids[t] = source >= 0 ? source : op.last[-1 - source];
}

__global__ static void remember_kernel(struct remember_op op)
{
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < op.rows)
        op.last[op.slots[row]] = op.tokens[row];
}

/* One block a row: out = row index of x, or zeros where the index is outside [0, rows). */
template <bool WIDE>
__global__ static void pick_rows_kernel(const int32_t *index, int first, int rows, const bf16 *x,
                                        int64_t ld_x, int columns, bf16 *out)
{
    int64_t source = (int64_t)index[blockIdx.x] - first;
    bool inside = source >= 0 && source < rows;
    const bf16 *from = x + (inside ? source : 0) * ld_x;
    bf16 *to = out + (int64_t)blockIdx.x * columns;
    if (WIDE) {
        uint4 zero = {0, 0, 0, 0};
        for (int i = threadIdx.x; i < columns / 8; i += blockDim.x)
            ((uint4 *)to)[i] = inside ? ((const uint4 *)from)[i] : zero;
    } else {
        for (int i = threadIdx.x; i < columns; i += blockDim.x)
            to[i] = inside ? from[i] : __float2bfloat16(0.0f);
    }
}

/* One block a row, eight columns a thread and turn; the row stays in registers. */
template <int TURNS>
__global__ static void rms_norm_wide_kernel(struct rms_norm_op op)
{
    __shared__ float buffer[33];
    int64_t at = (int64_t)blockIdx.x * op.columns;
    bf16 *x = (bf16 *)op.x + at;
    const bf16 *delta = op.delta != NULL ? (const bf16 *)op.delta + at : NULL;
    float values[TURNS][8], weights[TURNS][8];
    float sum = 0.0f;
    launch_next();
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        int column = (turn * blockDim.x + threadIdx.x) * 8;
        if (column >= op.columns || op.out == NULL)
            continue;
        *(float4 *)weights[turn] = *(const float4 *)(op.weight + column);
        *(float4 *)(weights[turn] + 4) = *(const float4 *)(op.weight + column + 4);
    }
    launch_wait();
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        int column = (turn * blockDim.x + threadIdx.x) * 8;
        if (column >= op.columns)
            continue;
        load8(x + column, values[turn]);
        if (delta != NULL) {
            float added[8];
            load8(delta + column, added);
#pragma unroll
            for (int i = 0; i < 8; i++)
                values[turn][i] += added[i];
            bf16x8 rounded = pack8(values[turn]);
            *(bf16x8 *)(x + column) = rounded;
            unpack8(rounded, values[turn]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum += values[turn][i] * values[turn][i];
    }
    if (op.out == NULL)
        return;
    float factor = rsqrtf(block_sum(sum, buffer) / (float)op.columns + op.epsilon);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        int column = (turn * blockDim.x + threadIdx.x) * 8;
        if (column >= op.columns)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++)
            values[turn][i] *= factor * weights[turn][i];
        store8((bf16 *)op.out + at + column, values[turn]);
    }
}

__global__ static void rms_norm_any_kernel(struct rms_norm_op op)
{
    __shared__ float buffer[33];
    int64_t at = (int64_t)blockIdx.x * op.columns;
    bf16 *x = (bf16 *)op.x + at;
    const bf16 *delta = (const bf16 *)op.delta;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < op.columns; i += blockDim.x) {
        float value = __bfloat162float(x[i]);
        if (delta != NULL) {
            bf16 rounded = __float2bfloat16(value + __bfloat162float(delta[at + i]));
            x[i] = rounded;
            value = __bfloat162float(rounded);
        }
        sum += value * value;
    }
    if (op.out == NULL)
        return;
    float factor = rsqrtf(block_sum(sum, buffer) / (float)op.columns + op.epsilon);
    for (int i = threadIdx.x; i < op.columns; i += blockDim.x)
        ((bf16 *)op.out)[at + i] = __float2bfloat16(__bfloat162float(x[i]) * factor * op.weight[i]);
}

enum status cuda_resolve(struct device *device, const struct resolve_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->tokens == 0)
        return status;
    resolve_kernel<<<blocks_for(op->tokens, 128), 128, 0, device->stream>>>(*op);
    return launch_check("resolve");
}

enum status cuda_remember(struct device *device, const struct remember_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0)
        return status;
    remember_kernel<<<blocks_for(op->rows, 128), 128, 0, device->stream>>>(*op);
    return launch_check("remember");
}

static enum status pick_rows(struct device *device, int count, const int32_t *index, int first,
                             int rows, const void *x, int ld_x, int columns, void *out,
                             const char *what)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || count == 0)
        return status;
    bool wide = columns % 8 == 0 && ld_x % 8 == 0 && aligned16(x) && aligned16(out);
    auto kernel = wide ? pick_rows_kernel<true> : pick_rows_kernel<false>;
    kernel<<<count, 128, 0, device->stream>>>(index, first, rows, (const bf16 *)x, ld_x, columns,
                                              (bf16 *)out);
    return launch_check(what);
}

enum status cuda_embed(struct device *device, const struct embed_op *op)
{
    return pick_rows(device, op->tokens, op->ids, op->first, op->rows, op->table, op->hidden,
                     op->hidden, op->out, "embed");
}

enum status cuda_gather(struct device *device, const struct gather_op *op)
{
    return pick_rows(device, op->rows, op->index, 0, INT32_MAX, op->x, op->ld_x, op->columns,
                     op->out, "gather");
}

enum status cuda_rms_norm(struct device *device, const struct rms_norm_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0)
        return status;
    bool wide = op->columns % 8 == 0 && op->columns <= 8192 && aligned16(op->x) &&
                aligned16(op->delta) && aligned16(op->weight) && aligned16(op->out);
    if (!wide)
        rms_norm_any_kernel<<<op->rows, 256, 0, device->stream>>>(*op);
    else
        return launch_early(device,
                            op->columns <= 2048 ? rms_norm_wide_kernel<1> : rms_norm_wide_kernel<4>,
                            dim3(op->rows), dim3(256), 0, "rms_norm", *op);
    return launch_check("rms_norm");
}
