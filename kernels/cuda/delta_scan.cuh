/* The chain over chunks, as far as the scan and the state-only pass share it. A warpgroup owns 64
 * columns of the state, transposed ([64, d_k], fp32 in registers). With the left operand in
 * registers a product costs as much for 64 columns as for 128, so products are made wide. A block
 * has one or two of them, of one head: what they share comes once from the second-level cache,
 * whose rate is what binds when the device is full. */
#ifndef JETD_KERNELS_CUDA_DELTA_SCAN_CUH
#define JETD_KERNELS_CUDA_DELTA_SCAN_CUH

#include "kernels/cuda/delta_chunk.cuh"
#include "kernels/cuda/wgmma.cuh"

/* 16-byte piece `piece` of row `row` in tiles of [64, 64]. */
__device__ static inline uint32_t tile_at(int row, int piece)
{
    return (uint32_t)(piece / 8 * TILE + row * 128 + ((piece ^ row) & 7) * 16);
}

/* The chunks that a block walks. */
struct stretch {
    int first;   /* token of the first chunk */
    int tokens;  /* from there to the sequence's end */
    int chunks;  /* to walk */
    int64_t row; /* of the first chunk in prepared */
    int head, heads;
};

/* Chunks [from, to) of a sequence. */
__device__ static inline struct stretch stretch_of(const struct ragged &batch, int sequence,
                                                   int from, int to, int head, int heads)
{
    const int first = batch.starts[sequence] + from * CHUNK;
    return {first,     batch.starts[sequence + 1] - first,
            to - from, prepared_row(batch, sequence, from),
            head,      heads};
}

/* Where a chunk's matrices and decays lie. */
__device__ static inline int64_t stretch_row(const struct stretch &walk, int chunk)
{
    return (walk.row + chunk) * walk.heads + walk.head;
}

/* The first warpgroup of a block fetches, one or two others compute. */
enum { STAGES = 3, PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240 };

__device__ static inline int block_groups()
{
    return (int)blockDim.x / THREADS - 1;
}

/* The computing warpgroup that this thread belongs to. */
__device__ static inline int thread_group()
{
    return (int)threadIdx.x / THREADS - 1;
}

/* Barriers of the stages: filled, then free. One thread, before the block's barrier. */
__device__ static inline void stages_init(uint32_t barriers)
{
    for (int stage = 0; stage < STAGES; stage++) {
        barrier_init(barriers + stage * 8, 1);
        barrier_init(barriers + (STAGES + stage) * 8, block_groups() * THREADS);
    }
    barrier_init_done();
}

__device__ static inline void stage_wait(uint32_t barriers, int chunk)
{
    barrier_wait(barriers + chunk % STAGES * 8, chunk / STAGES % 2);
}

/* Until chunk `chunk` - STAGES is done with. */
__device__ static inline void stage_wait_free(uint32_t barriers, int chunk)
{
    if (chunk >= STAGES)
        barrier_wait(barriers + (STAGES + chunk % STAGES) * 8, chunk / STAGES % 2 ^ 1);
}

/* This thread is done with a chunk. */
__device__ static inline void stage_release(uint32_t barriers, int chunk)
{
    barrier_arrive(barriers + (STAGES + chunk % STAGES) * 8);
}

/* Computing warpgroups a block: two, once there are more slabs than multiprocessors. */
static inline int groups_for(const struct device *device, int slabs, int64_t chains)
{
    return slabs % 2 == 0 && slabs * chains > device->multiprocessors ? 2 : 1;
}

/* What a chunk's decays make of this thread's tokens, 8n + 2 (lane % 4) + {0, 1}: exp(G_i). */
__device__ static inline void grown_of(float2 (&grown)[8], const float *decay)
{
#pragma unroll
    for (int n = 0; n < 8; n++) {
        float2 g = *(const float2 *)(decay + n * 8 + threadIdx.x % 4 * 2);
        grown[n] = make_float2(power_of_two(g.x), power_of_two(g.y));
    }
}

/* exp(G_end - G_i) */
__device__ static inline void later_of(float2 (&later)[8], const float *decay)
{
    const float end = decay[CHUNK - 1];
#pragma unroll
    for (int n = 0; n < 8; n++) {
        float2 g = *(const float2 *)(decay + n * 8 + threadIdx.x % 4 * 2);
        later[n] = make_float2(power_of_two(end - g.x), power_of_two(end - g.y));
    }
}

/* Result fragments as the register operand of the next product: depth step `step`. */
template <int COUNT>
__device__ static inline void repack(uint32_t *a, const float (&d)[COUNT], int step)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = pack_bf16(d[8 * step + 2 * i], d[8 * step + 2 * i + 1]);
}

template <int D_K>
__device__ static inline void state_operand(uint32_t (&a)[D_K / 16][4], const float (&s)[D_K / 2])
{
#pragma unroll
    for (int k = 0; k < D_K / 16; k++)
        repack(a[k], s, k);
}

/* out = (X S)^T for rows X [64 or 128, d_k]: halves of 64 columns, `apart` bytes apart. */
template <int STEPS, int COUNT>
__device__ static inline void state_product(float (&out)[COUNT], const uint32_t (&a)[STEPS][4],
                                            uint64_t rows, int apart)
{
#pragma unroll
    for (int k = 0; k < STEPS; k++)
        group_mma<0>(out, a[k], rows + (k / 4 * apart + k % 4 * 32) / 16, k > 0);
}

/* V^T of this warp's columns, as the residual below has it. */
__device__ static inline void values_load(uint32_t (&v)[4][4], uint32_t values)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int row = lane % 8 + lane / 16 * 8, piece = warp * 2 + lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < 4; k++)
        load_matrices_transposed(v[k], values + tile_at(k * 16 + row, piece));
}

/* R^T = (V - exp(G) K S)^T */
__device__ static inline void residual(uint32_t (&r)[4][4], const uint32_t (&v)[4][4],
                                       const float *reads, const float2 (&grown)[8])
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 value = __bfloat1622float2(*(const __nv_bfloat162 *)&v[k][i]);
            float2 g = grown[2 * k + i / 2];
            r[k][i] = pack_bf16(value.x - g.x * reads[8 * k + 2 * i],
                                value.y - g.y * reads[8 * k + 2 * i + 1]);
        }
}

/* out [64, 64] = or += r m^T for a matrix [64, 64] of prepared. */
__device__ static inline void matrix_product(float (&out)[32], const uint32_t (&r)[4][4],
                                             uint64_t matrix, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        group_mma<0>(out, r[k], matrix + k * 32 / 16, add || k > 0);
}

/* U^T scaled to the chunk's end. */
__device__ static inline void scale_late(uint32_t (&late)[4][4], const float (&u)[32],
                                         const float2 (&later)[8])
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 g = later[2 * k + i / 2];
            late[k][i] = pack_bf16(u[8 * k + 2 * i] * g.x, u[8 * k + 2 * i + 1] * g.y);
        }
}

/* S^T += U^T K, whose halves of 64 columns are `apart` bytes apart at `keys`. */
template <int COUNT>
__device__ static inline void state_update(float (&s)[COUNT], const uint32_t (&late)[4][4],
                                           uint32_t keys, int apart)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        group_mma<1>(s, late[k], tile_descriptor(keys, apart) + k * 2048 / 16, 1);
}

template <int COUNT>
__device__ static inline void state_scale(float (&s)[COUNT], float factor)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        s[i] *= factor;
}

/* This thread's elements of the state: visit(element, row (d_k), column of the 64). */
template <int COUNT, typename Visit>
__device__ static inline void each_state(float (&s)[COUNT], Visit visit)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        visit(s[i], i / 4 * 8 + lane % 4 * 2 + i % 2, warp * 16 + lane / 4 + i % 4 / 2 * 8);
}

#endif
