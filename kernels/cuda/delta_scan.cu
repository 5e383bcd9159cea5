/* The chain over a sequence's chunks (or a segment's), with outputs: a warpgroup walks one slab of
 * one head. The state, R = V - ..., and U are always the register operand of wgmma; K, Q, T, P come
 * from shared memory, three chunks of them. */
#include "kernels/cuda/delta_scan.cuh"

/* One chunk's share of shared memory, bytes. */
template <int D_K>
struct scan_stage {
    enum {
        KEYS = 0,
        QUERIES = (D_K + 63) / 64 * TILE,
        SOLVE = 2 * QUERIES,
        WEIGHT = SOLVE + TILE,
        VALUES = WEIGHT + TILE, /* a tile each warpgroup */
        BYTES = VALUES + 2 * TILE,
        DECAY = STAGES * BYTES,
        BARRIERS = DECAY + STAGES * CHUNK * 4,
        READINGS = BARRIERS + STAGES * 8,
        TOTAL = READINGS + STAGES * 4
    };
};

/* A chunk into its stage; one thread. Rows past the sequence are another's: see mend_tail. */
template <int D_K>
__device__ static inline void
stage_fetch(const struct chain_maps &maps, const struct prepared &prepared, uint32_t shared,
            int stage, int first, int64_t row, int head, int value_column)
{
    typedef scan_stage<D_K> at;
    const int groups = blockDim.x / THREADS;
    const uint32_t to = shared + stage * at::BYTES, full = shared + at::BARRIERS + stage * 8;
    barrier_expect(full, at::VALUES + groups * TILE + CHUNK * 4);
    for (int half = 0; half < (D_K + 63) / 64; half++) {
        copy_box(to + at::KEYS + half * TILE, &maps.keys, head * D_K + half * 64, first, full);
        copy_box(to + at::QUERIES + half * TILE, &maps.queries, head * D_K + half * 64, first,
                 full);
    }
    copy_in(to + at::SOLVE, prepared.matrices + row * 2 * MATRIX, 2 * TILE, full);
    for (int group = 0; group < groups; group++)
        copy_box(to + at::VALUES + group * TILE, &maps.values, value_column + group * SLAB, first,
                 full);
    copy_in(shared + at::DECAY + stage * CHUNK * 4, prepared.decay + row * CHUNK, CHUNK * 4, full);
}

/* Zeros the rows from `count` on: they belong to another sequence, and 0 x NaN is not 0. */
template <int D_K>
__device__ static inline void mend_tail(unsigned char *stage, int count)
{
    typedef scan_stage<D_K> at;
    const int rows = CHUNK - count;
    for (int i = threadIdx.x; i < rows * 8; i += blockDim.x) {
        int place = (count + i / 8) * 128 + i % 8 * 16;
        for (int tile = 0; tile < at::BYTES; tile += TILE)
            if (tile < at::SOLVE || tile >= at::VALUES)
                *(uint4 *)(stage + tile + place) = make_uint4(0, 0, 0, 0);
    }
    proxy_fence();
    __syncthreads();
}

/* O^T of one chunk, packed, to global memory: 8 x 8 blocks turn, then a quad writes 16 bytes. */
__device__ static inline void store_out(bf16 *out, int64_t pitch, const uint32_t (&o)[16],
                                        int count)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
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

template <int D_K>
__global__ __launch_bounds__(2 * THREADS, 1) static void delta_scan_kernel(
    struct delta_op op, struct ragged batch, struct prepared prepared,
    const __grid_constant__ struct chain_maps maps, struct segments cut)
{
    typedef scan_stage<D_K> at;
    enum { REST = (D_K - 64) / 2 }; /* registers of the state's second half */
    extern __shared__ __align__(1024) unsigned char shared[];
    const int group = threadIdx.x / THREADS, head = blockIdx.y;
    const int first_slab = blockIdx.x * (blockDim.x / THREADS), slab = first_slab + group;
    const int sequence = cut.from + blockIdx.z / cut.count, segment = blockIdx.z % cut.count;
    const int all = sequence_chunks(batch, sequence), begin = segment * cut.chunks;
    if (segment > 0 && begin >= all)
        return;
    const int end = min(begin + cut.chunks, all);
    const struct stretch walk = stretch_of(batch, sequence, begin, end);
    const int64_t d_v = op.d_v, pitch = op.heads * d_v;
    float *state = op.state + ((int64_t)batch.slots[sequence] * op.heads + head) * D_K * d_v;
    bf16 *out = (bf16 *)op.out + (walk.first * (int64_t)op.heads + head) * d_v + slab * SLAB;
    const uint32_t base = shared_address(shared);

    uint32_t *readings = (uint32_t *)(shared + at::READINGS);
    auto fetch = [&](int chunk) {
        if (chunk < walk.chunks)
            stage_fetch<D_K>(maps, prepared, base, chunk % STAGES, walk.first + chunk * CHUNK,
                             (walk.row + chunk) * op.heads + head, head,
                             head * op.d_v + first_slab * SLAB);
    };
    if (threadIdx.x == 0) {
        stages_init(base + at::BARRIERS, readings);
        for (int chunk = 0; chunk < STAGES; chunk++)
            fetch(chunk);
    }
    __syncthreads();
    float s0[32] = {}, s1[REST] = {};
    const bool whole = all <= cut.chunks;
    if (!whole || batch.contexts[sequence] != 0) {
        const float *before = state;
        if (!whole) /* another block may be writing the state by now */
            before = cut.entering +
                     (segment_row(cut, batch, sequence, segment) * op.heads + head) * D_K * d_v;
        each_state(s0, s1, [&](float &mine, int row, int column) {
            mine = before[row * d_v + slab * SLAB + column];
        });
    }
    uint32_t o[16];
    for (int chunk = 0; chunk < walk.chunks; chunk++) {
        const int place = chunk % STAGES, count = walk.tokens - chunk * CHUNK;
        const uint32_t stage = base + place * at::BYTES;
        barrier_wait(base + at::BARRIERS + place * 8, chunk / STAGES % 2);
        if (count < CHUNK)
            mend_tail<D_K>(shared + place * at::BYTES, count);

        const uint64_t keys = tile_descriptor(stage + at::KEYS);
        float reads[32], outs[32];
        uint32_t a[D_K / 16][4];
        state_operand<REST>(a, s0, s1);
        group_fence();
        state_product(reads, a, keys);
        group_commit();
        state_product(outs, a, tile_descriptor(stage + at::QUERIES));
        group_commit();

        /* While they run: the output before, this thread's tokens' factors, the values. */
        if (chunk > 0)
            store_out(out + (chunk - 1) * CHUNK * pitch, pitch, o, CHUNK);
        struct factors f;
        factors_of(f, (const float *)(shared + at::DECAY) + place * CHUNK);
        uint32_t v[4][4], r[4][4];
        values_load(v, stage + at::VALUES + group * TILE);
        group_wait<1>();
        group_settle(reads);
        residual(r, v, reads, f.grown);
        float u[32];
        group_fence();
        matrix_product(u, r, tile_descriptor(stage + at::SOLVE), false); /* U^T = R^T T^T */
        group_commit();
        group_wait<1>();
        group_settle(outs);
        state_scale(s0, f.shrink);
        state_scale(s1, f.shrink);
#pragma unroll
        for (int i = 0; i < 32; i++)
            outs[i] *= i % 2 == 0 ? f.grown[i / 4].x : f.grown[i / 4].y;
        group_wait<0>();
        group_settle(u);

        uint32_t late[4][4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            repack(r[k], u, k);
        scale_late(late, u, f.later);
        group_fence();
        state_update(s0, s1, late, keys);
        matrix_product(outs, r, tile_descriptor(stage + at::WEIGHT), true); /* O^T += U^T P^T */
        group_commit();
        group_wait<0>();
        group_settle(outs);
        group_settle(s0);
        group_settle(s1);
        if (stage_release(readings + place))
            fetch(chunk + STAGES);
#pragma unroll
        for (int i = 0; i < 16; i++)
            o[i] = pack_bf16(outs[2 * i], outs[2 * i + 1]);
    }
    const int last = walk.chunks - 1;
    if (last >= 0)
        store_out(out + last * CHUNK * pitch, pitch, o, walk.tokens - last * CHUNK);
    if (end == all)
        each_state(s0, s1, [&](float &mine, int row, int column) {
            state[row * d_v + slab * SLAB + column] = mine;
        });
}

template <int D_K>
static enum status delta_scan_launch(struct device *device, const struct delta_op *op,
                                     const struct chain_maps *maps, const struct prepared *prepared,
                                     const struct segments *cut)
{
    const int chains = (op->batch->sequences - cut->from) * cut->count, slabs = op->d_v / SLAB;
    const int groups = groups_for(device, slabs, (int64_t)chains * op->heads);
    const size_t bytes = scan_stage<D_K>::TOTAL;
    enum status status = shared_raise(delta_scan_kernel<D_K>, bytes, "delta scan");
    if (status != STATUS_OK)
        return status;
    delta_scan_kernel<D_K>
        <<<dim3(slabs / groups, op->heads, chains), groups * THREADS, bytes, device->stream>>>(
            *op, *op->batch, *prepared, *maps, *cut);
    return launch_check("delta scan");
}

enum status delta_scan(struct device *device, const struct delta_op *op,
                       const struct chain_maps *maps, const struct prepared *prepared,
                       const struct segments *cut)
{
    return op->d_k == 128 ? delta_scan_launch<128>(device, op, maps, prepared, cut)
                          : delta_scan_launch<96>(device, op, maps, prepared, cut);
}
