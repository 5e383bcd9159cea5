/* What each chunk needs besides the state, all chunks and heads at once: T, P and G.
 *
 * A warpgroup makes K K^T and Q K^T; warp w has rows 16w .. of both, and from there on block column
 * w of the inverse X of I + L in blocks of 16: X_ww by substitution, then down the column
 * X_iw = -X_ii sum_m L_im X_mw, transposed, so that X is the left operand and stays in registers.
 * bf16 numbers in pairs (high, low) keep these products near fp32. */
#include "kernels/cuda/delta_scan.cuh"

enum { PART = 16, PITCH = 24, PART_FLOATS = PART * PITCH }; /* fp32 blocks in shared memory */

/* Bytes of dynamic shared memory: keys and queries; later T, P and the blocks of L. */
template <int D_K>
struct prepare_at {
    enum {
        KEYS = 0,
        QUERIES = (D_K + 63) / 64 * TILE,
        SOLVE = 0,
        WEIGHT = TILE,
        LOWER = 2 * TILE, /* [10, 16, PITCH] */
        TOTAL = 2 * QUERIES
    };
};

/* Block (i, j) of L, j <= i. */
__device__ static inline float *part(float *lower, int i, int j)
{
    return lower + (i * (i + 1) / 2 + j) * PART_FLOATS;
}

/* An operand fragment of [16, 16] in two bf16 numbers: value = high + low. */
struct pair {
    uint32_t high[4], low[4];
};

__device__ static inline void split(uint32_t &high, uint32_t &low, float x, float y)
{
    high = pack_bf16(x, y);
    low = pack_bf16(x - __uint_as_float(high << 16), y - __uint_as_float(high & 0xffff0000u));
}

/* Results as the left operand of the next product. */
__device__ static inline void split_left(struct pair &a, const float (&c)[2][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        split(a.high[i], a.low[i], c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]);
}

/* c += a m^T for a block m in shared memory. */
__device__ static inline void part_product(float (&c)[2][4], const struct pair &a, const float *m)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const float *row = m + (n * 8 + lane / 4) * PITCH + lane % 4 * 2;
        float2 first = *(const float2 *)row, second = *(const float2 *)(row + 8);
        uint32_t high[2], low[2];
        split(high[0], low[0], first.x, first.y);
        split(high[1], low[1], second.x, second.y);
        mma_bf16(c[n], a.high, high[0], high[1]);
        mma_bf16(c[n], a.high, low[0], low[1]);
        mma_bf16(c[n], a.low, high[0], high[1]);
    }
}

/* The block's inverse in its place; a lane solves one column. */
__device__ static inline void part_invert(float *block)
{
    const int column = threadIdx.x % PART;
    float x[PART];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        float sum = i == column ? 1.0f : 0.0f;
#pragma unroll
        for (int m = 0; m < i; m += 4) {
            const float4 l = *(const float4 *)(block + i * PITCH + m);
            const float four[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int e = 0; e < 4 && m + e < i; e++)
                sum -= four[e] * x[m + e];
        }
        x[i] = sum;
    }
    __syncwarp();
    if (threadIdx.x % 32 < PART)
#pragma unroll
        for (int i = 0; i < PART; i++)
            block[i * PITCH + column] = x[i];
}

/* Block (i, j) of T from X_ij^T. */
__device__ static inline void solve_store(uint32_t solve, const float (&x)[2][4], int i, int j,
                                          const float *decay, const float *beta)
{
    const int lane = threadIdx.x % 32;
    uint32_t packed[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int row = i * PART + n * 8 + lane % 4 * 2;
        const float2 g = *(const float2 *)(decay + row);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int column = j * PART + lane / 4 + half * 8;
            const float from = decay[column], b = beta[column];
            float low = row >= column ? x[n][half * 2] * power_of_two(g.x - from) * b : 0.0f;
            float high =
                row + 1 >= column ? x[n][half * 2 + 1] * power_of_two(g.y - from) * b : 0.0f;
            packed[n * 2 + half] = pack_bf16(low, high);
        }
    }
    const int row = i * PART + lane / 16 * 8 + lane % 8;
    store_matrices_transposed(solve + tile_at(row, j * 2 + lane / 8 % 2), packed);
}

/* Block column j of T. */
__device__ static inline void solve_column(uint32_t solve, float *lower, int j, const float *decay,
                                           const float *beta)
{
    enum { PARTS = CHUNK / PART };
    const int lane = threadIdx.x % 32;
    float x[2][4];
    struct pair done[PARTS - 1]; /* X_mj^T */
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[n][i] =
                part(lower, j, j)[(n * 8 + lane % 4 * 2 + i % 2) * PITCH + lane / 4 + i / 2 * 8];
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        if (i > j) {
            float sum[2][4] = {};
            struct pair turned;
#pragma unroll
            for (int m = 0; m < i; m++)
                if (m >= j)
                    part_product(sum, done[m], part(lower, i, m));
            split_left(turned, sum);
#pragma unroll
            for (int n = 0; n < 8; n++)
                x[n / 4][n % 4] = 0.0f;
            part_product(x, turned, part(lower, i, i));
#pragma unroll
            for (int n = 0; n < 8; n++)
                x[n / 4][n % 4] = -x[n / 4][n % 4];
        }
        if (i >= j) {
            if (i < PARTS - 1)
                split_left(done[i], x);
            solve_store(solve, x, i, j, decay, beta);
        } else {
            const uint32_t zeros[4] = {};
            store_matrices(solve + tile_at(i * PART + lane % 16, j * 2 + lane / 16), zeros);
        }
    }
}

/* G / ln 2 and beta of the chunk's tokens; from `count` on G stays and beta is zero. */
__device__ static inline void gates_load(float *decay, float *beta, const struct delta_op &op,
                                         int64_t first, int head, int count)
{
    const int t = threadIdx.x, lane = t % 32;
    if (t >= 32)
        return;
    float g[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int token = half * 32 + lane;
        const int64_t row = (first + token) * op.heads + head;
        g[half] = token < count ? op.g[row] * 1.44269504f : 0.0f;
        beta[token] = token < count ? op.beta[row] : 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            float before = __shfl_up_sync(0xffffffffu, g[half], offset);
            g[half] += lane >= offset ? before : 0.0f;
        }
    }
    decay[lane] = g[0];
    decay[lane + 32] = g[1] + __shfl_sync(0xffffffffu, g[0], 31);
}

template <int D_K>
__global__ __launch_bounds__(THREADS, 5) static void delta_prepare_kernel(
    struct delta_op op, struct ragged batch, const __grid_constant__ struct chain_maps maps,
    struct prepared out, int from)
{
    typedef prepare_at<D_K> at;
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ __align__(16) float decay[CHUNK], beta[CHUNK];
    __shared__ __align__(8) uint64_t arrived;
    /* Chunks backwards: the chain begins with what is last in the cache. */
    const int head = blockIdx.x, sequence = from + blockIdx.y;
    const int chunk = gridDim.z - 1 - blockIdx.z;
    const int64_t first = (int64_t)batch.starts[sequence] + chunk * CHUNK;
    const int count = batch.starts[sequence + 1] - (int)first;
    if (count <= 0)
        return;
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const uint32_t base = shared_address(shared), full = shared_address(&arrived);
    if (t == 0) {
        barrier_init(full, 1);
        barrier_init_done();
        barrier_expect(full, at::TOTAL);
        for (int half = 0; half < (D_K + 63) / 64; half++) {
            const int column = head * D_K + half * 64;
            copy_box(base + at::KEYS + half * TILE, &maps.keys, column, (int)first, full);
            copy_box(base + at::QUERIES + half * TILE, &maps.queries, column, (int)first, full);
        }
    }
    gates_load(decay, beta, op, first, head, count);
    __syncthreads();
    barrier_wait(full, 0);

    float kk[32], qk[32];
    const uint64_t keys = tile_descriptor(base + at::KEYS);
    const uint64_t queries = tile_descriptor(base + at::QUERIES);
    group_fence();
#pragma unroll
    for (int k = 0; k < D_K / 16; k++) {
        const int step = (k / 4 * TILE + k % 4 * 32) / 16;
        group_mma_shared(kk, keys + step, keys + step, k > 0);
        group_mma_shared(qk, queries + step, keys + step, k > 0);
    }
    group_commit();
    group_wait<0>();
    group_settle(kk);
    group_settle(qk);
    __syncthreads(); /* keys and queries are done with */

    /* Rows past the sequence are another's: chosen away, since 0 x NaN is not 0. */
    float *lower = (float *)(shared + at::LOWER);
    const int row = warp * PART + lane / 4;
    const float g[2] = {decay[row], decay[row + 8]}, b[2] = {beta[row], beta[row + 8]};
    const bool inside[2] = {row < count, row + 8 < count};
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        uint32_t packed[4] = {};
        if (n <= warp * 2) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int half = i % 2, at_row = row + half * 8, e = (n + i / 2) * 4 + half * 2;
                const int column = (n + i / 2) * 8 + lane % 4 * 2;
                const float2 to = *(const float2 *)(decay + column);
                const bool low = inside[half] && column <= at_row;
                const bool high = inside[half] && column + 1 <= at_row;
                packed[i] = pack_bf16(low ? qk[e] * power_of_two(g[half] - to.x) : 0.0f,
                                      high ? qk[e + 1] * power_of_two(g[half] - to.y) : 0.0f);
                float2 *l = (float2 *)(part(lower, warp, n / 2) + (lane / 4 + half * 8) * PITCH +
                                       column % PART);
                *l = make_float2(low && column < at_row ? b[half] * kk[e] : 0.0f,
                                 high && column + 1 < at_row ? b[half] * kk[e + 1] : 0.0f);
            }
        }
        store_matrices(base + at::WEIGHT + tile_at(warp * PART + lane % 16, n + lane / 16), packed);
    }
    __syncwarp();
    part_invert(part(lower, warp, warp));
    __syncthreads();
    solve_column(base + at::SOLVE, lower, warp, decay, beta);
    proxy_fence();
    __syncthreads();
    const int64_t to = prepared_row(batch, sequence, chunk) * op.heads + head;
    if (t == 0)
        copy_out(out.matrices + to * 2 * MATRIX, base + at::SOLVE, 2 * TILE);
    if (t < CHUNK)
        out.decay[to * CHUNK + t] = decay[t];
    if (t == 0)
        copy_out_wait();
}

template <int D_K>
static enum status delta_prepare_launch(struct device *device, const struct delta_op *op,
                                        const struct chain_maps *maps, const struct prepared *out,
                                        int from)
{
    const struct ragged *batch = op->batch;
    const dim3 grid(op->heads, batch->sequences - from, (batch->max_tokens + CHUNK - 1) / CHUNK);
    const size_t bytes = prepare_at<D_K>::TOTAL;
    enum status status = shared_raise(delta_prepare_kernel<D_K>, bytes, "delta prepare");
    if (status != STATUS_OK)
        return status;
    delta_prepare_kernel<D_K>
        <<<grid, THREADS, bytes, device->stream>>>(*op, *batch, *maps, *out, from);
    return launch_check("delta prepare");
}

enum status delta_prepare(struct device *device, const struct delta_op *op,
                          const struct chain_maps *maps, const struct prepared *out, int from)
{
    return op->d_k == 128 ? delta_prepare_launch<128>(device, op, maps, out, from)
                          : delta_prepare_launch<96>(device, op, maps, out, from);
}
