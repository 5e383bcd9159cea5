/* The gated delta rule in chunks of 64 tokens, in two kernels.
 *
 * With G the running sum of g inside a chunk, S the entering state and b = beta:
 *   L = strictly lower (b_i k_i.k_j),  T = (I + L)^-1 * exp(G_i - G_j) b_j,  P = lower (q_i.k_j
 *   exp(G_i - G_j)),  U = T (V - exp(G) K S),  O = exp(G) Q S + P U,
 *   S' = exp(G_end) S + K^T exp(G_end - G) U.
 * prepare: T, P and G of every chunk and head, all at once. scan: the chain over chunks; a
 * warpgroup owns 64 columns of the state, transposed ([64 d_v, d_k], fp32 in registers), so that
 * the state, R = V - ..., and U are always the register operand of wgmma, and K, Q, T, P come from
 * shared memory. Differences of G are exponentiated, never its parts: all are <= 0. */
#include "kernels/cuda/delta.h"
#include "kernels/cuda/tensor.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

enum { CHUNK = 64, SLAB = 64, THREADS = 128, MATRIX = CHUNK * CHUNK };
enum { PITCH = CHUNK + 4 }; /* fp32 rows in shared memory */

/* What prepare leaves for scan; chunk c of sequence s has row starts[s] / 64 + s + c. */
struct prepared {
    bf16 *solve;  /* [rows, heads, 64, 64] T */
    bf16 *weight; /* [rows, heads, 64, 64] P */
    float *decay; /* [rows, heads, 64] G / ln 2 */
};

__device__ static inline int64_t prepared_row(const struct ragged &batch, int sequence, int chunk)
{
    return batch.starts[sequence] / CHUNK + sequence + chunk;
}

/* 16-byte piece `piece` of row `row` in tiles of [64, 64], 8 KB apart. */
__device__ static inline uint32_t tile_at(int row, int piece)
{
    return (uint32_t)(piece / 8 * (MATRIX * 2) + row * 128 + ((piece ^ row) & 7) * 16);
}

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
    enum { TILES = (D_K + 63) / 64 * MATRIX * 2, PIECES = D_K / 8 };
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

/* Result fragments as the register operand of the next product: depth step `step`. */
template <int COUNT>
__device__ static inline void repack(uint32_t *a, const float (&d)[COUNT], int step)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = pack_bf16(d[8 * step + 2 * i], d[8 * step + 2 * i + 1]);
}

/* One chunk's share of shared memory, bytes. */
template <int D_K>
struct scan_stage {
    enum {
        KEYS = 0,
        QUERIES = (D_K + 63) / 64 * MATRIX * 2,
        SOLVE = 2 * QUERIES,
        WEIGHT = SOLVE + MATRIX * 2,
        VALUES = WEIGHT + MATRIX * 2,
        BYTES = VALUES + MATRIX * 2,
        DECAY = 2 * BYTES, /* behind both stages: two blocks just fit a multiprocessor */
        BARRIERS = DECAY + 2 * CHUNK * 4,
        TOTAL = BARRIERS + 2 * 8
    };
};

/* Boxes of [64, 64] of what scan reads. */
struct scan_maps {
    CUtensorMap keys, queries, values, solve, weight;
};

/* A chunk into its stage; one thread. Rows past the sequence are another's: see mend_tail. */
template <int D_K>
__device__ static inline void stage_fetch(const struct scan_maps &maps, const float *decay,
                                          uint32_t shared, int stage, int first, int64_t row,
                                          int head, int value_column)
{
    typedef scan_stage<D_K> at;
    const uint32_t to = shared + stage * at::BYTES, full = shared + at::BARRIERS + stage * 8;
    barrier_expect(full, at::BYTES + CHUNK * 4);
    for (int half = 0; half < (D_K + 63) / 64; half++) {
        copy_box(to + at::KEYS + half * MATRIX * 2, &maps.keys, head * D_K + half * 64, first,
                 full);
        copy_box(to + at::QUERIES + half * MATRIX * 2, &maps.queries, head * D_K + half * 64, first,
                 full);
    }
    copy_box(to + at::SOLVE, &maps.solve, 0, (int)row * CHUNK, full);
    copy_box(to + at::WEIGHT, &maps.weight, 0, (int)row * CHUNK, full);
    copy_box(to + at::VALUES, &maps.values, value_column, first, full);
    copy_in(shared + at::DECAY + stage * CHUNK * 4, decay + row * CHUNK, CHUNK * 4, full,
            policy_evict_first());
}

/* Zeros the rows from `count` on: they belong to another sequence, and 0 x NaN is not 0. */
template <int D_K>
__device__ static inline void mend_tail(unsigned char *stage, int count)
{
    typedef scan_stage<D_K> at;
    const int rows = CHUNK - count;
    for (int i = threadIdx.x; i < rows * 8; i += THREADS) {
        int place = (count + i / 8) * 128 + i % 8 * 16;
        for (int tile = 0; tile < at::SOLVE; tile += MATRIX * 2)
            *(uint4 *)(stage + tile + place) = make_uint4(0, 0, 0, 0);
        *(uint4 *)(stage + at::VALUES + place) = make_uint4(0, 0, 0, 0);
    }
    proxy_fence();
    __syncthreads();
}

__device__ static inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* O^T of one chunk, packed, to global memory: 8 x 8 blocks turn, then a quad writes 16 bytes. */
__device__ static inline void store_out(bf16 *out, int64_t pitch, const uint32_t (&o)[16],
                                        int count)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bf16 *to = out + warp * 16 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        int token = n * 8 + lane / 4;
        uint32_t low = transpose8(o[2 * n]), high = transpose8(o[2 * n + 1]);
        if (token < count) {
            *(uint32_t *)(to + token * pitch) = low;
            *(uint32_t *)(to + token * pitch + 8) = high;
        }
    }
}

/* This thread's elements of the state: rows (d_v) lane/4 and +8 of its warp, columns (d_k) pairs.
 */
template <int COUNT, typename Visit>
__device__ static inline void each_state(float (&s)[COUNT], float *state, int64_t d_v, Visit visit)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        int row = warp * 16 + lane / 4 + i % 4 / 2 * 8;
        visit(s[i], state[column * d_v + row]);
    }
}

template <int D_K>
__global__ __launch_bounds__(THREADS, 2) static void delta_scan_kernel(
    struct delta_op op, struct ragged batch, const float *decays,
    const __grid_constant__ struct scan_maps maps, int from)
{
    typedef scan_stage<D_K> at;
    enum { REST = D_K - 64 }; /* the state's columns: 64 and the rest */
    extern __shared__ __align__(1024) unsigned char shared[];
    const int slab = blockIdx.x, head = blockIdx.y, sequence = from + blockIdx.z;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int start = batch.starts[sequence];
    const int tokens = batch.starts[sequence + 1] - start;
    const int chunks = (tokens + CHUNK - 1) / CHUNK;
    const int64_t slot = batch.slots[sequence], d_v = op.d_v, pitch = op.heads * d_v;
    float *state = op.state + (slot * op.heads + head) * D_K * d_v + slab * SLAB;
    bf16 *out = (bf16 *)op.out + (start * (int64_t)op.heads + head) * d_v + slab * SLAB;
    const uint32_t base = shared_address(shared);

    auto fetch = [&](int chunk) {
        if (threadIdx.x == 0 && chunk < chunks)
            stage_fetch<D_K>(maps, decays, base, chunk % 2, start + chunk * CHUNK,
                             prepared_row(batch, sequence, chunk) * op.heads + head, head,
                             head * op.d_v + slab * SLAB);
    };
    if (threadIdx.x == 0) {
        barrier_init(base + at::BARRIERS, 1);
        barrier_init(base + at::BARRIERS + 8, 1);
        barrier_init_done();
    }
    __syncthreads();
    fetch(0);
    float s0[32] = {}, s1[REST / 2] = {};
    if (batch.contexts[sequence] != 0) {
        auto read = [](float &mine, float &global) { mine = global; };
        each_state(s0, state, d_v, read);
        each_state(s1, state + 64 * d_v, d_v, read);
    }
    uint32_t o[16];
    for (int chunk = 0; chunk < chunks; chunk++) {
        const uint32_t stage = base + chunk % 2 * at::BYTES;
        const int count = tokens - chunk * CHUNK;
        barrier_wait(base + at::BARRIERS + chunk % 2 * 8, chunk / 2 % 2);
        if (count < CHUNK)
            mend_tail<D_K>(shared + chunk % 2 * at::BYTES, count);
        __syncthreads(); /* all are done with the chunk before */
        fetch(chunk + 1);

        const float *decay = (const float *)(shared + at::DECAY) + chunk % 2 * CHUNK;
        const uint64_t keys = tile_descriptor(stage + at::KEYS);
        const uint64_t queries = tile_descriptor(stage + at::QUERIES);
        float reads[32], outs[32];
        uint32_t a[D_K / 16][4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            repack(a[k], s0, k);
#pragma unroll
        for (int k = 0; k < REST / 16; k++)
            repack(a[4 + k], s1, k);
        group_fence();
#pragma unroll
        for (int k = 0; k < D_K / 16; k++) /* (K S)^T */
            group_mma<0>(reads, a[k], keys + (k / 4 * MATRIX * 2 + k % 4 * 32) / 16, k > 0);
        group_commit();
#pragma unroll
        for (int k = 0; k < D_K / 16; k++) /* (Q S)^T */
            group_mma<0>(outs, a[k], queries + (k / 4 * MATRIX * 2 + k % 4 * 32) / 16, k > 0);
        group_commit();

        /* While they run: the output before, this thread's tokens' factors, the values. */
        if (chunk > 0)
            store_out(out + (chunk - 1) * CHUNK * pitch, pitch, o, CHUNK);
        const float end = decay[CHUNK - 1], shrink = exp2_fast(end);
        float2 grown[8], later[8]; /* exp(G_i), exp(G_end - G_i) */
        uint32_t v[4][4];
        const int value_row = lane % 8 + lane / 16 * 8, value_piece = warp * 2 + lane / 8 % 2;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float2 g = *(const float2 *)(decay + n * 8 + lane % 4 * 2);
            grown[n] = make_float2(exp2_fast(g.x), exp2_fast(g.y));
            later[n] = make_float2(exp2_fast(end - g.x), exp2_fast(end - g.y));
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            load_matrices_transposed(v[k],
                                     stage + at::VALUES + tile_at(k * 16 + value_row, value_piece));
        group_wait<1>();
        group_settle(reads);

        uint32_t r[4][4]; /* R^T = (V - exp(G) K S)^T */
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 value = __bfloat1622float2(*(__nv_bfloat162 *)&v[k][i]);
                float2 g = grown[2 * k + i / 2];
                r[k][i] = pack_bf16(value.x - g.x * reads[8 * k + 2 * i],
                                    value.y - g.y * reads[8 * k + 2 * i + 1]);
            }
        float u[32];
        const uint64_t solve = tile_descriptor(stage + at::SOLVE);
        group_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) /* U^T = R^T T^T */
            group_mma<0>(u, r[k], solve + k * 32 / 16, k > 0);
        group_commit();
        group_wait<1>();
        group_settle(outs);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            s0[i] *= shrink;
            outs[i] *= i % 2 == 0 ? grown[i / 4].x : grown[i / 4].y;
        }
#pragma unroll
        for (int i = 0; i < REST / 2; i++)
            s1[i] *= shrink;
        group_wait<0>();
        group_settle(u);

        uint32_t late[4][4]; /* U^T scaled to the chunk's end */
#pragma unroll
        for (int k = 0; k < 4; k++) {
            repack(r[k], u, k);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 g = later[2 * k + i / 2];
                late[k][i] = pack_bf16(u[8 * k + 2 * i] * g.x, u[8 * k + 2 * i + 1] * g.y);
            }
        }
        const uint64_t weight = tile_descriptor(stage + at::WEIGHT);
        group_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) { /* S'^T += U^T K */
            group_mma<1>(s0, late[k], keys + k * 2048 / 16, 1);
            group_mma<1>(s1, late[k], keys + (MATRIX * 2 + k * 2048) / 16, 1);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) /* O^T += U^T P^T */
            group_mma<0>(outs, r[k], weight + k * 32 / 16, 1);
        group_commit();
        group_wait<0>();
        group_settle(outs);
        group_settle(s0);
        group_settle(s1);
#pragma unroll
        for (int i = 0; i < 16; i++)
            o[i] = pack_bf16(outs[2 * i], outs[2 * i + 1]);
    }
    if (chunks > 0)
        store_out(out + (chunks - 1) * CHUNK * pitch, pitch, o, tokens - (chunks - 1) * CHUNK);
    auto write = [](float &mine, float &global) { global = mine; };
    each_state(s0, state, d_v, write);
    each_state(s1, state + 64 * d_v, d_v, write);
}

bool delta_chunk_fits(const struct device *device, const struct delta_op *op)
{
    size_t rows = (size_t)(op->batch->tokens / CHUNK + op->batch->sequences + 1);
    size_t bytes = rows * (size_t)op->heads * (2 * MATRIX * 2 + CHUNK * 4);
    return (op->d_k == 96 || op->d_k == 128) && op->d_v % SLAB == 0 &&
           bytes <= device->scratch_bytes && aligned16(op->q) && aligned16(op->k) &&
           aligned16(op->v) && aligned16(op->out);
}

static enum status scan_maps_make(struct scan_maps *maps, const struct delta_op *op,
                                  const struct prepared *prepared, size_t rows)
{
    const int64_t tokens = op->batch->tokens, matrices = (int64_t)rows * CHUNK;
    enum status status;
    if ((status = tensor_map_rows(&maps->keys, op->k, tokens, op->heads * op->d_k,
                                  op->heads * op->d_k, 64)) != STATUS_OK ||
        (status = tensor_map_rows(&maps->queries, op->q, tokens, op->heads * op->d_k,
                                  op->heads * op->d_k, 64)) != STATUS_OK ||
        (status = tensor_map_rows(&maps->values, op->v, tokens, op->heads * op->d_v,
                                  op->heads * op->d_v, 64)) != STATUS_OK ||
        (status = tensor_map_rows(&maps->solve, prepared->solve, matrices, CHUNK, CHUNK, 64)) !=
            STATUS_OK)
        return status;
    return tensor_map_rows(&maps->weight, prepared->weight, matrices, CHUNK, CHUNK, 64);
}

template <int D_K>
static enum status delta_chunk_launch(struct device *device, const struct delta_op *op, int from)
{
    const struct ragged *batch = op->batch;
    const size_t rows = (size_t)(batch->tokens / CHUNK + batch->sequences + 1) * op->heads;
    const int sequences = batch->sequences - from;
    const int chunks = (batch->max_tokens + CHUNK - 1) / CHUNK;
    const size_t tiles = 2 * (size_t)((D_K + 63) / 64 * MATRIX * 2);
    const size_t solved = (size_t)(2 * CHUNK + 32) * PITCH * 4;
    const size_t prepare_bytes = tiles > solved ? tiles : solved;
    const size_t scan_bytes = scan_stage<D_K>::TOTAL;
    struct prepared prepared;
    prepared.solve = (bf16 *)device->scratch;
    prepared.weight = prepared.solve + rows * MATRIX;
    prepared.decay = (float *)(prepared.weight + rows * MATRIX);
    enum status status = shared_raise(delta_prepare_kernel<D_K>, prepare_bytes, "delta prepare");
    if (status == STATUS_OK)
        status = shared_raise(delta_scan_kernel<D_K>, scan_bytes, "delta scan");
    if (status != STATUS_OK)
        return status;
    delta_prepare_kernel<D_K>
        <<<dim3(chunks, op->heads, sequences), THREADS, prepare_bytes, device->stream>>>(
            *op, *batch, prepared, from);
    status = launch_check("delta prepare");
    struct scan_maps maps;
    if (status == STATUS_OK)
        status = scan_maps_make(&maps, op, &prepared, rows);
    if (status != STATUS_OK)
        return status;
    delta_scan_kernel<D_K>
        <<<dim3(op->d_v / SLAB, op->heads, sequences), THREADS, scan_bytes, device->stream>>>(
            *op, *batch, prepared.decay, maps, from);
    return launch_check("delta scan");
}

enum status delta_chunk(struct device *device, const struct delta_op *op, int from)
{
    if (from >= op->batch->sequences)
        return STATUS_OK;
    return op->d_k == 128 ? delta_chunk_launch<128>(device, op, from)
                          : delta_chunk_launch<96>(device, op, from);
}
