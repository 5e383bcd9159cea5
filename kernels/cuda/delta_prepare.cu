/* What each chunk needs besides the state, all chunks and heads at once: T, P and G. */
#include "kernels/cuda/delta_scan.cuh"

enum { PITCH = CHUNK + 4 }; /* fp32 rows in shared memory */

/* Rows of `pieces` x 16 bytes; zeros from row `count` on. */
template <int PIECES>
__device__ static inline void rows_fetch(uint32_t to, const bf16 *from, int64_t pitch, int count)
{
#pragma unroll
    for (int i = threadIdx.x; i < CHUNK * PIECES; i += THREADS) {
        int row = i / PIECES, piece = i % PIECES;
        bool inside = row < count;
        copy16_async(to + tile_at(row, piece), inside ? from + row * pitch + piece * 8 : from,
                     inside ? 16 : 0);
    }
}

/* c [16, 64] = rows 16 warp .. of a times all rows of b, depth D_K, both in tiles. */
template <int D_K>
__device__ static inline void rows_product(float (&c)[8][4], uint32_t a, uint32_t b)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < D_K / 16; k++) {
        uint32_t left[4];
        load_matrices(left, a + tile_at(warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < 4; n++) {
            uint32_t right[4];
            load_matrices(right, b + tile_at(n * 16 + lane % 16, k * 2 + lane / 16));
            mma_bf16(c[2 * n], left, right[0], right[2]);
            mma_bf16(c[2 * n + 1], left, right[1], right[3]);
        }
    }
}

/* out = factor * a b, [32, 32] each, by the whole block. */
__device__ static inline void product_32(float *out, const float *a, const float *b, float factor)
{
    const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;
    float sum[8] = {};
#pragma unroll 8
    for (int m = 0; m < 32; m++) {
        float left = a[row * PITCH + m];
        float4 low = *(const float4 *)(b + m * PITCH + column);
        float4 high = *(const float4 *)(b + m * PITCH + column + 4);
        sum[0] += left * low.x;
        sum[1] += left * low.y;
        sum[2] += left * low.z;
        sum[3] += left * low.w;
        sum[4] += left * high.x;
        sum[5] += left * high.y;
        sum[6] += left * high.z;
        sum[7] += left * high.w;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[row * PITCH + column + i] = factor * sum[i];
}

/* inverse = (I + lower)^-1 by halves: [[A, 0], [C, D]]^-1 = [[A', 0], [-D' C A', D']]. A thread
 * solves one column of a half. `spare` holds [32, PITCH]. */
__device__ static inline void invert(float *inverse, const float *lower, float *spare)
{
    const int lane = threadIdx.x % 32, half = threadIdx.x / 32;
    if (half < 2) {
        const int corner = half * 32 * (PITCH + 1);
        float x[32];
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float even = i == lane ? 1.0f : 0.0f, odd = 0.0f;
#pragma unroll
            for (int m = 0; m + 1 < i; m += 2) {
                float2 two = *(const float2 *)(lower + corner + i * PITCH + m);
                even -= two.x * x[m];
                odd -= two.y * x[m + 1];
            }
            if (i % 2 == 1)
                even -= lower[corner + i * PITCH + i - 1] * x[i - 1];
            x[i] = even + odd;
            inverse[corner + i * PITCH + lane] = x[i];
        }
    }
    __syncthreads();
    product_32(spare, lower + 32 * PITCH, inverse, 1.0f);
    __syncthreads();
    product_32(inverse + 32 * PITCH, inverse + 32 * (PITCH + 1), spare, -1.0f);
    __syncthreads();
}

template <int D_K>
__global__
__launch_bounds__(THREADS) static void delta_prepare_kernel(struct delta_op op, struct ragged batch,
                                                            struct prepared out, int from)
{
    enum { TILES = (D_K + 63) / 64 * TILE, PIECES = D_K / 8 };
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ float decay[CHUNK], beta[CHUNK];
    const int chunk = blockIdx.x, head = blockIdx.y, sequence = from + blockIdx.z;
    const int64_t first = (int64_t)batch.starts[sequence] + chunk * CHUNK;
    const int count = batch.starts[sequence + 1] - (int)first;
    if (count <= 0)
        return;
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const uint32_t keys = shared_address(shared), queries = keys + TILES;
    const int64_t pitch = (int64_t)op.heads * D_K;
    const int64_t at = (first * op.heads + head) * D_K;
    rows_fetch<PIECES>(keys, (const bf16 *)op.k + at, pitch, count);
    rows_fetch<PIECES>(queries, (const bf16 *)op.q + at, pitch, count);
    copy_commit();
    if (t < CHUNK) {
        int64_t row = (first + t) * op.heads + head;
        float g = t < count ? op.g[row] * 1.44269504f : 0.0f;
        beta[t] = t < count ? op.beta[row] : 0.0f;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            float before = __shfl_up_sync(0xffffffffu, g, offset);
            g += lane >= offset ? before : 0.0f;
        }
        decay[t] = g;
    }
    copy_wait<0>();
    __syncthreads();
    float carried = decay[31];
    __syncthreads();
    if (t >= 32 && t < CHUNK)
        decay[t] += carried;

    float kk[8][4] = {}, qk[8][4] = {};
    rows_product<D_K>(kk, keys, keys);
    rows_product<D_K>(qk, queries, keys);
    __syncthreads(); /* the tiles are done with; decay is whole */
    float *lower = (float *)shared, *inverse = lower + CHUNK * PITCH;
    float *spare = inverse + CHUNK * PITCH;
    const int64_t row = prepared_row(batch, sequence, chunk) * op.heads + head;
    bf16 *weight = out.weight + row * MATRIX;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = warp * 16 + lane / 4 + half * 8, j = n * 8 + lane % 4 * 2;
            float low = kk[n][2 * half], high = kk[n][2 * half + 1];
            lower[i * PITCH + j] = j < i ? beta[i] * low : 0.0f;
            lower[i * PITCH + j + 1] = j + 1 < i ? beta[i] * high : 0.0f;
            float p = j <= i ? qk[n][2 * half] * exp2f(decay[i] - decay[j]) : 0.0f;
            float q = j + 1 <= i ? qk[n][2 * half + 1] * exp2f(decay[i] - decay[j + 1]) : 0.0f;
            *(uint32_t *)(weight + i * CHUNK + j) = pack_bf16(p, q);
        }
    __syncthreads();
    invert(inverse, lower, spare);
    bf16 *solve = out.solve + row * MATRIX;
    for (int item = t; item < MATRIX / 8; item += THREADS) {
        int i = item / 8, j0 = item % 8 * 8;
        float values[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int j = j0 + e;
            values[e] =
                j <= i ? inverse[i * PITCH + j] * exp2f(decay[i] - decay[j]) * beta[j] : 0.0f;
        }
        store8(solve + i * CHUNK + j0, values);
    }
    if (t < CHUNK)
        out.decay[row * CHUNK + t] = decay[t];
}

template <int D_K>
static enum status delta_prepare_launch(struct device *device, const struct delta_op *op,
                                        const struct prepared *out, int from)
{
    const struct ragged *batch = op->batch;
    const size_t tiles = 2 * (size_t)((D_K + 63) / 64 * TILE);
    const size_t solved = (size_t)(2 * CHUNK + 32) * PITCH * 4;
    const size_t bytes = tiles > solved ? tiles : solved;
    enum status status = shared_raise(delta_prepare_kernel<D_K>, bytes, "delta prepare");
    if (status != STATUS_OK)
        return status;
    delta_prepare_kernel<D_K>
        <<<dim3((batch->max_tokens + CHUNK - 1) / CHUNK, op->heads, batch->sequences - from),
           THREADS, bytes, device->stream>>>(*op, *batch, *out, from);
    return launch_check("delta prepare");
}

enum status delta_prepare(struct device *device, const struct delta_op *op,
                          const struct prepared *out, int from)
{
    return op->d_k == 128 ? delta_prepare_launch<128>(device, op, out, from)
                          : delta_prepare_launch<96>(device, op, out, from);
}
