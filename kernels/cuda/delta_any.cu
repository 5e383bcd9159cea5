/* The gated delta rule as written, for any shape: a block per sequence, head and 32 columns of the
 * state, which stay in shared memory while the tokens pass. */
#include "kernels/cuda/delta.h"
#include "kernels/cuda/tensor.cuh"

enum { COLUMNS = 32, PARTS = 8 };

__global__ __launch_bounds__(COLUMNS *PARTS) static void delta_any_kernel(struct delta_op op,
                                                                          struct ragged batch,
                                                                          int from)
{
    extern __shared__ float shared[];
    float *state = shared;                 /* [d_k][COLUMNS] */
    float *key = state + op.d_k * COLUMNS; /* [d_k] */
    float *query = key + op.d_k;           /* [d_k] */
    float *partial = query + op.d_k;       /* [PARTS][COLUMNS] */
    const int lane = threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS;
    const int sequence = from + blockIdx.x, head = blockIdx.y;
    const int column = blockIdx.z * COLUMNS + lane;
    const bool inside = column < op.d_v;
    const int slot = batch.slots[sequence];
    const bool fresh = batch.contexts[sequence] == 0;
    float *global = op.state + ((int64_t)slot * op.heads + head) * op.d_k * op.d_v + column;

    for (int i = part; i < op.d_k; i += PARTS)
        state[i * COLUMNS + lane] = inside && !fresh ? global[(int64_t)i * op.d_v] : 0.0f;
    for (int64_t token = batch.starts[sequence]; token < batch.starts[sequence + 1]; token++) {
        int64_t row = token * op.heads + head;
        __syncthreads();
        for (int i = threadIdx.x; i < op.d_k; i += blockDim.x) {
            key[i] = __bfloat162float(((const bf16 *)op.k)[row * op.d_k + i]);
            query[i] = __bfloat162float(((const bf16 *)op.q)[row * op.d_k + i]);
        }
        __syncthreads();
        float decay = expf(op.g[row]);
        float read = 0.0f;
        for (int i = part; i < op.d_k; i += PARTS) {
            float value = state[i * COLUMNS + lane] * decay;
            state[i * COLUMNS + lane] = value;
            read += value * key[i];
        }
        partial[part * COLUMNS + lane] = read;
        __syncthreads();
        read = 0.0f;
        for (int p = 0; p < PARTS; p++)
            read += partial[p * COLUMNS + lane];
        __syncthreads();
        float value = inside ? __bfloat162float(((const bf16 *)op.v)[row * op.d_v + column]) : 0.0f;
        float correction = op.beta[row] * (value - read);
        float out = 0.0f;
        for (int i = part; i < op.d_k; i += PARTS) {
            float updated = state[i * COLUMNS + lane] + key[i] * correction;
            state[i * COLUMNS + lane] = updated;
            out += updated * query[i];
        }
        partial[part * COLUMNS + lane] = out;
        __syncthreads();
        if (part == 0 && inside) {
            out = 0.0f;
            for (int p = 0; p < PARTS; p++)
                out += partial[p * COLUMNS + lane];
            ((bf16 *)op.out)[row * op.d_v + column] = __float2bfloat16(out);
        }
    }
    __syncthreads();
    if (inside)
        for (int i = part; i < op.d_k; i += PARTS)
            global[(int64_t)i * op.d_v] = state[i * COLUMNS + lane];
}

enum status delta_any(struct device *device, const struct delta_op *op, int from, int to)
{
    if (from >= to)
        return STATUS_OK;
    size_t bytes = ((size_t)op->d_k * (COLUMNS + 2) + PARTS * COLUMNS) * sizeof(float);
    if (bytes > device->shared_limit) {
        log_error("cuda: delta: d_k %d needs %zu bytes of shared memory", op->d_k, bytes);
        return STATUS_INTERNAL;
    }
    enum status status = shared_raise(delta_any_kernel, bytes, "delta");
    if (status != STATUS_OK)
        return status;
    dim3 grid(to - from, op->heads, blocks_for(op->d_v, COLUMNS));
    delta_any_kernel<<<grid, COLUMNS * PARTS, bytes, device->stream>>>(*op, *op->batch, from);
    return launch_check("delta");
}
