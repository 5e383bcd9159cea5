/* The chain over a sequence's chunks (or a segment's), with outputs: a warpgroup walks one slab of
 * one head. The state, R = V - ..., and U are always the register operand of wgmma; K, Q, T, P come
 * from shared memory, three chunks of them. */
#include "kernels/cuda/delta_scan.cuh"

/* One chunk's share of shared memory, bytes. */
template <int D_K>
struct scan_stage {
    enum {
        KEYS = 0, /* and queries: for each half of 64 columns a tile of both */
        QUERIES = TILE,
        APART = 2 * TILE,
        SOLVE = (D_K + 63) / 64 * APART,
        WEIGHT = SOLVE + TILE,
        VALUES = WEIGHT + TILE, /* a tile each warpgroup */
        BYTES = VALUES + 2 * TILE,
        DECAY = STAGES * BYTES,
        BARRIERS = DECAY + STAGES * CHUNK * 4,
        TOTAL = BARRIERS + 2 * STAGES * 8
    };
};

/* The chunks into their stages; one thread. Rows past the sequence are another's: see mend_tail. */
template <int D_K>
__device__ static inline void
scan_produce(const struct chain_maps &maps, const struct prepared &prepared,
             const struct stretch &walk, uint32_t shared, int value_column)
{
    typedef scan_stage<D_K> at;
    const int groups = block_groups();
    for (int chunk = 0; chunk < walk.chunks; chunk++) {
        const int place = chunk % STAGES, token = walk.first + chunk * CHUNK;
        const uint32_t to = shared + place * at::BYTES, full = shared + at::BARRIERS + place * 8;
        const int64_t row = stretch_row(walk, chunk);
        stage_wait_free(shared + at::BARRIERS, chunk);
        barrier_expect(full, at::VALUES + groups * TILE + CHUNK * 4);
        for (int half = 0; half < (D_K + 63) / 64; half++) {
            const int column = walk.head * D_K + half * 64;
            copy_box(to + at::KEYS + half * at::APART, &maps.keys, column, token, full);
            copy_box(to + at::QUERIES + half * at::APART, &maps.queries, column, token, full);
        }
        copy_in(to + at::SOLVE, prepared.matrices + row * 2 * MATRIX, 2 * TILE, full);
        for (int group = 0; group < groups; group++)
            copy_box(to + at::VALUES + group * TILE, &maps.values, value_column + group * SLAB,
                     token, full);
        copy_in(shared + at::DECAY + place * CHUNK * 4, prepared.decay + row * CHUNK, CHUNK * 4,
                full);
    }
}

/* Zeros the rows from `count` on: they belong to another sequence, and 0 x NaN is not 0. */
template <int D_K>
__device__ static inline void mend_tail(unsigned char *stage, int count)
{
    typedef scan_stage<D_K> at;
    const int rows = CHUNK - count;
    for (int i = threadIdx.x - THREADS; i < rows * 8; i += block_groups() * THREADS) {
        int place = (count + i / 8) * 128 + i % 8 * 16;
        for (int tile = 0; tile < at::BYTES; tile += TILE)
            if (tile < at::SOLVE || tile >= at::VALUES)
                *(uint4 *)(stage + tile + place) = make_uint4(0, 0, 0, 0);
    }
    proxy_fence();
    threads_sync(1, block_groups() * THREADS);
}

/* O^T of one chunk to global memory: 8 x 8 blocks turn, then a quad writes 16 bytes. */
__device__ static inline void store_out(bf16 *out, int64_t pitch, const float (&o)[32], int count)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    bf16 *to = out + lane / 4 * pitch + warp * 16 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        uint32_t low = transpose8(pack_bf16(o[4 * n], o[4 * n + 1]));
        uint32_t high = transpose8(pack_bf16(o[4 * n + 2], o[4 * n + 3]));
        if (n * 8 + lane / 4 < count) {
            *(uint32_t *)to = low;
            *(uint32_t *)(to + 8) = high;
        }
        to += 8 * pitch;
        asm volatile("" : "+l"(to)); /* one address: eight, hoisted out of the loop, would spill */
    }
}

/* A walk's place and what its chunk needs once K S and Q S are there. */
struct scan_turn {
    uint32_t stage;
    const float *decay;
    float2 grown[8];
    uint32_t v[4][4];
};

/* (K S)^T and (Q S)^T of a chunk, in flight. */
template <int D_K>
__device__ static inline void turn_begin(float (&reads)[64], const float (&s)[D_K / 2],
                                         const struct stretch &walk, unsigned char *shared,
                                         int chunk)
{
    typedef scan_stage<D_K> at;
    const uint32_t base = shared_address(shared);
    const int place = chunk % STAGES, count = walk.tokens - chunk * CHUNK;
    uint32_t a[D_K / 16][4];
    state_operand<D_K>(a, s);
    stage_wait(base + at::BARRIERS, chunk);
    if (count < CHUNK)
        mend_tail<D_K>(shared + place * at::BYTES, count);
    group_fence();
    state_product(reads, a, tile_descriptor(base + place * at::BYTES + at::KEYS), at::APART);
    group_commit();
}

template <int D_K>
__device__ static inline void turn_load(struct scan_turn &turn, const unsigned char *shared,
                                        int chunk)
{
    typedef scan_stage<D_K> at;
    const int place = chunk % STAGES;
    turn.stage = shared_address(shared) + place * at::BYTES;
    turn.decay = (const float *)(shared + at::DECAY) + place * CHUNK;
    grown_of(turn.grown, turn.decay);
    values_load(turn.v, turn.stage + at::VALUES + thread_group() * TILE);
}

/* From K S and Q S to the next state; the outputs are in flight. */
template <int D_K>
__device__ static inline void turn_end(float (&outs)[32], float (&s)[D_K / 2],
                                       const float (&reads)[64], const struct scan_turn &turn)
{
    typedef scan_stage<D_K> at;
    float u[32];
    float2 later[8];
    uint32_t r[4][4], late[4][4];
    residual(r, turn.v, reads, turn.grown);
    group_fence();
    matrix_product(u, r, tile_descriptor(turn.stage + at::SOLVE), false); /* U^T = R^T T^T */
    group_commit();
    state_scale(s, power_of_two(turn.decay[CHUNK - 1]));
#pragma unroll
    for (int i = 0; i < 32; i++)
        outs[i] = reads[32 + i] * (i % 2 == 0 ? turn.grown[i / 4].x : turn.grown[i / 4].y);
    later_of(later, turn.decay);
    group_wait<0>();
    group_settle(u);
    scale_late(late, u, later);
    group_fence();
    state_update(s, late, turn.stage + at::KEYS, at::APART);
    group_commit();
#pragma unroll
    for (int k = 0; k < 4; k++)
        repack(r[k], u, k);
    group_fence();
    matrix_product(outs, r, tile_descriptor(turn.stage + at::WEIGHT), true); /* O^T += U^T P^T */
    group_commit();
    group_wait<1>();
    group_settle(s);
}

/* The outputs of one slab (`out`: its first token's) and the state at the end. While the outputs of
 * a chunk are computed, the next one's reads of the state begin. */
template <int D_K>
__device__ static inline void scan_consume(float (&s)[D_K / 2], const struct stretch &walk,
                                           unsigned char *shared, bf16 *out, int64_t pitch)
{
    typedef scan_stage<D_K> at;
    float reads[64], outs[32];
    struct scan_turn turn;
    turn_begin<D_K>(reads, s, walk, shared, 0);
    turn_load<D_K>(turn, shared, 0);
    group_wait<0>();
    group_settle(reads);
    for (int chunk = 1; chunk < walk.chunks; chunk++) {
        turn_end<D_K>(outs, s, reads, turn);
        turn_begin<D_K>(reads, s, walk, shared, chunk);
        group_wait<1>();
        group_settle(outs);
        stage_release(shared_address(shared) + at::BARRIERS, chunk - 1);
        store_out(out, pitch, outs, CHUNK);
        out += CHUNK * pitch;
        turn_load<D_K>(turn, shared, chunk);
        group_wait<0>();
        group_settle(reads);
    }
    turn_end<D_K>(outs, s, reads, turn);
    group_wait<0>();
    group_settle(outs);
    store_out(out, pitch, outs, walk.tokens - (walk.chunks - 1) * CHUNK);
}

template <int D_K>
__global__ __launch_bounds__(3 * THREADS, 1) static void delta_scan_kernel(
    struct delta_op op, struct ragged batch, struct prepared prepared,
    const __grid_constant__ struct chain_maps maps, struct segments cut)
{
    typedef scan_stage<D_K> at;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int head = blockIdx.y, first_slab = blockIdx.x * block_groups();
    const int sequence = cut.from + blockIdx.z / cut.count, segment = blockIdx.z % cut.count;
    const int all = sequence_chunks(batch, sequence), begin = segment * cut.chunks;
    if (segment > 0 && begin >= all)
        return;
    const int end = min(begin + cut.chunks, all);
    const struct stretch walk = stretch_of(batch, sequence, begin, end, head, op.heads);
    if (threadIdx.x == 0)
        stages_init(shared_address(shared) + at::BARRIERS);
    __syncthreads();
    if (threadIdx.x < THREADS) {
        registers_release<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0)
            scan_produce<D_K>(maps, prepared, walk, shared_address(shared),
                              head * op.d_v + first_slab * SLAB);
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        const int slab = first_slab + thread_group();
        const int64_t d_v = op.d_v, size = D_K * d_v;
        float *state = op.state + ((int64_t)batch.slots[sequence] * op.heads + head) * size;
        const float *before = state;
        float s[D_K / 2] = {};
        const bool whole = all <= cut.chunks;
        if (!whole) /* another block may be writing the state by now */
            before = cut.entering +
                     (segment_row(cut, batch, sequence, segment) * op.heads + head) * size;
        if (!whole || batch.contexts[sequence] != 0)
            each_state(s, [&](float &mine, int row, int column) {
                mine = before[row * d_v + slab * SLAB + column];
            });
        bf16 *out = (bf16 *)op.out + (walk.first * (int64_t)op.heads + head) * d_v + slab * SLAB;
        if (walk.chunks > 0)
            scan_consume<D_K>(s, walk, shared, out, op.heads * d_v);
        if (end == all)
            each_state(s, [&](float &mine, int row, int column) {
                state[row * d_v + slab * SLAB + column] = mine;
            });
    }
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
    delta_scan_kernel<D_K><<<dim3(slabs / groups, op->heads, chains), (groups + 1) * THREADS, bytes,
                             device->stream>>>(*op, *op->batch, *prepared, *maps, *cut);
    return launch_check("delta scan");
}

enum status delta_scan(struct device *device, const struct delta_op *op,
                       const struct chain_maps *maps, const struct prepared *prepared,
                       const struct segments *cut)
{
    return op->d_k == 128 ? delta_scan_launch<128>(device, op, maps, prepared, cut)
                          : delta_scan_launch<96>(device, op, maps, prepared, cut);
}
