/* Element by element: silu, swiglu, gates; and the per-head norms. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor.cuh"

/* Eight columns a thread; grid.y strides over rows. `up` NULL: plain silu. */
__global__ static void silu_wide_kernel(int rows, int columns, int64_t ld_in, int64_t ld_out,
                                        const bf16 *gate, const bf16 *up, bf16 *out)
{
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    launch_next();
    launch_wait();
    if (column >= columns)
        return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float values[8];
        load8(gate + row * ld_in + column, values);
        if (up != NULL) {
            float factors[8];
            load8(up + row * ld_in + column, factors);
#pragma unroll
            for (int i = 0; i < 8; i++)
                values[i] = silu_of(values[i]) * factors[i];
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                values[i] = silu_of(values[i]);
        }
        store8(out + row * ld_out + column, values);
    }
}

__global__ static void silu_any_kernel(int rows, int columns, int64_t ld_in, int64_t ld_out,
                                       const bf16 *gate, const bf16 *up, bf16 *out)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    launch_next();
    launch_wait();
    if (column >= columns)
        return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float value = silu_of(__bfloat162float(gate[row * ld_in + column]));
        if (up != NULL)
            value *= __bfloat162float(up[row * ld_in + column]);
        out[row * ld_out + column] = __float2bfloat16(value);
    }
}

__global__ static void gates_kernel(struct gates_op op)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)op.tokens * op.heads)
        return;
    int64_t token = i / op.heads;
    int head = (int)(i % op.heads);
    float a = __bfloat162float(((const bf16 *)op.a)[token * op.ld_a + head]) + op.dt_bias[head];
    float b = __bfloat162float(((const bf16 *)op.b)[token * op.ld_b + head]);
    float softplus = a > 20.0f ? a : log1pf(expf(a));
    op.g[i] = -expf(op.a_log[head]) * softplus;
    op.beta[i] = 1.0f / (1.0f + expf(-b));
}

/* One warp a head. */
__global__ static void head_norm_kernel(struct head_norm_op op)
{
    int64_t item = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (item >= (int64_t)op.tokens * op.heads)
        return;
    int lane = threadIdx.x % 32;
    const bf16 *x = (const bf16 *)op.x + item / op.heads * op.ld_x + item % op.heads * op.dim;
    bf16 *out = (bf16 *)op.out + item * op.dim;
    float sum = 0.0f;
    for (int i = lane; i < op.dim; i += 32) {
        float z = silu_of(__bfloat162float(x[i]));
        sum += z * z;
    }
    float factor = rsqrtf(warp_sum(sum) + op.epsilon) * op.scale;
    for (int i = lane; i < op.dim; i += 32)
        out[i] = __float2bfloat16(silu_of(__bfloat162float(x[i])) * factor);
}

/* One warp a head of 256: eight values a lane. */
__global__ static void gated_norm_256_kernel(struct gated_norm_op op)
{
    const int index = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    if (index >= op.tokens * op.heads)
        return;
    const int64_t item = index, token = index / op.heads;
    const int head = index % op.heads;
    int at = threadIdx.x % 32 * 8;
    const bf16 *gate = (const bf16 *)op.gate + token * op.ld_gate + head * 256 + at;
    float values[8], gates[8];
    load8((const bf16 *)op.o + item * 256 + at, values);
    load8(gate, gates);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum += values[i] * values[i];
    float factor = rsqrtf(warp_sum(sum) / 256.0f + op.epsilon);
    float4 low = *(const float4 *)(op.weight + at), high = *(const float4 *)(op.weight + at + 4);
    float weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        values[i] *= factor * weight[i] * silu_of(gates[i]);
    store8((bf16 *)op.out + item * 256 + at, values);
}

__global__ static void gated_norm_kernel(struct gated_norm_op op)
{
    int64_t item = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (item >= (int64_t)op.tokens * op.heads)
        return;
    int lane = threadIdx.x % 32;
    const bf16 *o = (const bf16 *)op.o + item * op.dim;
    const bf16 *gate =
        (const bf16 *)op.gate + item / op.heads * op.ld_gate + item % op.heads * op.dim;
    bf16 *out = (bf16 *)op.out + item * op.dim;
    float sum = 0.0f;
    for (int i = lane; i < op.dim; i += 32) {
        float value = __bfloat162float(o[i]);
        sum += value * value;
    }
    float factor = rsqrtf(warp_sum(sum) / (float)op.dim + op.epsilon);
    for (int i = lane; i < op.dim; i += 32)
        out[i] = __float2bfloat16(__bfloat162float(o[i]) * factor * op.weight[i] *
                                  silu_of(__bfloat162float(gate[i])));
}

static enum status silu_launch(struct device *device, int rows, int columns, int ld_in, int ld_out,
                               const void *gate, const void *up, void *out, const char *what)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || rows == 0 || columns == 0)
        return status;
    bool wide = columns % 8 == 0 && ld_in % 8 == 0 && ld_out % 8 == 0 && aligned16(gate) &&
                aligned16(up) && aligned16(out);
    dim3 grid(blocks_for(columns, wide ? 1024 : 128), rows < 32768 ? rows : 32768);
    auto kernel = wide ? silu_wide_kernel : silu_any_kernel;
    return launch_early(device, kernel, grid, dim3(128), 0, what, rows, columns, ld_in, ld_out,
                        (const bf16 *)gate, (const bf16 *)up, (bf16 *)out);
}

enum status cuda_silu(struct device *device, const struct silu_op *op)
{
    return silu_launch(device, op->rows, op->columns, op->ld_x, op->ld_out, op->x, NULL, op->out,
                       "silu");
}

enum status cuda_swiglu(struct device *device, const struct swiglu_op *op)
{
    return silu_launch(device, op->rows, op->columns, op->ld_in, op->columns, op->gate, op->up,
                       op->out, "swiglu");
}

enum status cuda_gates(struct device *device, const struct gates_op *op)
{
    enum status status = device_enter(device);
    int64_t items = (int64_t)op->tokens * op->heads;
    if (status != STATUS_OK || items == 0)
        return status;
    gates_kernel<<<blocks_for(items, 128), 128, 0, device->stream>>>(*op);
    return launch_check("gates");
}

enum status cuda_head_norm(struct device *device, const struct head_norm_op *op)
{
    enum status status = device_enter(device);
    int64_t items = (int64_t)op->tokens * op->heads;
    if (status != STATUS_OK || items == 0)
        return status;
    head_norm_kernel<<<blocks_for(items, 8), 256, 0, device->stream>>>(*op);
    return launch_check("head_norm");
}

enum status cuda_gated_norm(struct device *device, const struct gated_norm_op *op)
{
    enum status status = device_enter(device);
    int64_t items = (int64_t)op->tokens * op->heads;
    if (status != STATUS_OK || items == 0)
        return status;
    bool wide = op->dim == 256 && op->ld_gate % 8 == 0 && aligned16(op->o) && aligned16(op->gate) &&
                aligned16(op->out) && aligned16(op->weight);
    auto kernel = wide ? gated_norm_256_kernel : gated_norm_kernel;
    kernel<<<blocks_for(items, 8), 256, 0, device->stream>>>(*op);
    return launch_check("gated_norm");
}
