/* The states before the segments of long sequences. Over a segment the state goes from S to
 * A S + B: B is what the chain makes of S = 0, A what it makes of S = I without values, and a
 * sequence's first segment, whose S is known, needs no A. Three steps: all segments walk at once,
 * without outputs, a block for 64 columns of B or of A; then combine, from segment to segment; then
 * delta_scan. Where the decays add up to nothing in fp32, a walk begins behind that and A is zero:
 * no column of A is longer than exp(sum of g). */
#include "kernels/cuda/delta_scan.cuh"

/* One chunk's share of shared memory, bytes. */
template <int D_K>
struct state_stage {
    enum {
        KEYS = 0,
        SOLVE = (D_K + 63) / 64 * TILE,
        VALUES = SOLVE + TILE, /* a tile each warpgroup */
        BYTES = VALUES + 2 * TILE,
        DECAY = STAGES * BYTES,
        BARRIERS = DECAY + STAGES * CHUNK * 4,
        TOTAL = BARRIERS + 2 * STAGES * 8
    };
};

/* The latest of `chunks` chunks from which on the decays make nothing of a state: 2^-160 of numbers
 * up to 2^11 is below fp32's least. -1: some of the state before them is left. Warps alike. */
__device__ static inline int forgotten_before(const float *decays, int64_t row, int heads, int head,
                                              int chunks)
{
    const int lane = threadIdx.x % 32;
    float after = 0.0f;
    for (int done = 0; done < chunks; done += 32) {
        int chunk = chunks - 1 - done - lane;
        float sum = chunk >= 0 ? decays[((row + chunk) * heads + head) * CHUNK + CHUNK - 1] : 0.0f;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            float later = __shfl_up_sync(0xffffffffu, sum, offset);
            sum += lane >= offset ? later : 0.0f;
        }
        unsigned gone = __ballot_sync(0xffffffffu, after + sum < -160.0f);
        if (gone != 0)
            return chunks - __ffs((int)gone) - done;
        after += __shfl_sync(0xffffffffu, sum, 31);
    }
    return -1;
}

/* The chunks into their stages; one thread. value_column < 0: no values. */
template <int D_K>
__device__ static inline void
states_produce(const struct chain_maps &maps, const struct prepared &prepared,
               const struct stretch &walk, uint32_t shared, int value_column)
{
    typedef state_stage<D_K> at;
    const int groups = value_column < 0 ? 0 : block_groups();
    for (int chunk = 0; chunk < walk.chunks; chunk++) {
        const int place = chunk % STAGES, token = walk.first + chunk * CHUNK;
        const uint32_t to = shared + place * at::BYTES, full = shared + at::BARRIERS + place * 8;
        const int64_t row = stretch_row(walk, chunk);
        stage_wait_free(shared + at::BARRIERS, chunk);
        barrier_expect(full, at::VALUES + groups * TILE + CHUNK * 4);
        for (int half = 0; half < (D_K + 63) / 64; half++)
            copy_box(to + at::KEYS + half * TILE, &maps.keys, walk.head * D_K + half * 64, token,
                     full);
        copy_in(to + at::SOLVE, prepared.matrices + row * 2 * MATRIX, TILE, full);
        for (int group = 0; group < groups; group++)
            copy_box(to + at::VALUES + group * TILE, &maps.values, value_column + group * SLAB,
                     token, full);
        copy_in(shared + at::DECAY + place * CHUNK * 4, prepared.decay + row * CHUNK, CHUNK * 4,
                full);
    }
}

/* One slab's state from s on; all chunks are whole. */
template <int D_K>
__device__ static inline void states_consume(float (&s)[D_K / 2], const struct stretch &walk,
                                             const unsigned char *shared, bool valued)
{
    typedef state_stage<D_K> at;
    const uint32_t base = shared_address(shared), barriers = base + at::BARRIERS;
    for (int chunk = 0; chunk < walk.chunks; chunk++) {
        const int place = chunk % STAGES;
        const uint32_t stage = base + place * at::BYTES;
        float reads[32], u[32];
        uint32_t a[D_K / 16][4], v[4][4] = {}, r[4][4];
        state_operand<D_K>(a, s);
        stage_wait(barriers, chunk);
        group_fence();
        state_product(reads, a, tile_descriptor(stage + at::KEYS), TILE);
        group_commit();
        const float *decay = (const float *)(shared + at::DECAY) + place * CHUNK;
        float2 grown[8], later[8];
        grown_of(grown, decay);
        later_of(later, decay);
        const float shrink = power_of_two(decay[CHUNK - 1]);
        if (valued)
            values_load(v, stage + at::VALUES + thread_group() * TILE);
        group_wait<0>();
        group_settle(reads);
        residual(r, v, reads, grown);
        group_fence();
        matrix_product(u, r, tile_descriptor(stage + at::SOLVE), false);
        group_commit();
        state_scale(s, shrink);
        group_wait<0>();
        group_settle(u);
        scale_late(r, u, later);
        group_fence();
        state_update(s, r, stage + at::KEYS, TILE);
        group_commit();
        group_wait<0>();
        group_settle(s);
        stage_release(barriers, chunk);
    }
}

/* 64 columns of B a warpgroup, or of A. */
template <int D_K>
__global__ __launch_bounds__(3 * THREADS, 1) static void delta_states_kernel(
    struct delta_op op, struct ragged batch, struct prepared prepared,
    const __grid_constant__ struct chain_maps maps, struct segments cut)
{
    typedef state_stage<D_K> at;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int head = blockIdx.y, slabs = op.d_v / SLAB, groups = block_groups();
    const bool across = (int)blockIdx.x * groups >= slabs;
    const int first_slab = blockIdx.x * groups - (across ? slabs : 0);
    const int sequence = cut.from + blockIdx.z / (cut.count - 1);
    const int segment = blockIdx.z % (cut.count - 1), begin = segment * cut.chunks;
    if (begin + cut.chunks >= sequence_chunks(batch, sequence) || (across && segment == 0))
        return;
    const int forgotten = forgotten_before(prepared.decay, prepared_row(batch, sequence, begin),
                                           op.heads, head, cut.chunks);
    if (across && forgotten >= 0)
        return;
    const struct stretch walk =
        stretch_of(batch, sequence, begin + max(forgotten, 0), begin + cut.chunks, head, op.heads);
    if (threadIdx.x == 0)
        stages_init(shared_address(shared) + at::BARRIERS);
    __syncthreads();
    if (threadIdx.x < THREADS) {
        registers_release<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0)
            states_produce<D_K>(maps, prepared, walk, shared_address(shared),
                                across ? -1 : head * op.d_v + first_slab * SLAB);
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        const int slab = first_slab + thread_group();
        const int64_t d_v = op.d_v, size = D_K * d_v;
        const int64_t row = segment_row(cut, batch, sequence, segment) * op.heads + head;
        float s[D_K / 2] = {};
        if (across) {
            each_state(s, [&](float &mine, int k, int column) {
                mine = k == slab * SLAB + column ? 1.0f : 0.0f;
            });
        } else if (segment == 0) {
            const float *state =
                op.state + ((int64_t)batch.slots[sequence] * op.heads + head) * size;
            const bool fresh = batch.contexts[sequence] == 0;
            each_state(s, [&](float &mine, int k, int column) {
                int64_t place = k * d_v + slab * SLAB + column;
                float before = fresh ? 0.0f : state[place];
                cut.entering[row * size + place] = before;
                mine = forgotten < 0 ? before : 0.0f;
            });
        }
        states_consume<D_K>(s, walk, shared, !across);
        each_state(s, [&](float &mine, int k, int column) {
            if (!across) /* the segment after this one has the next row */
                cut.entering[(row + op.heads) * size + k * d_v + slab * SLAB + column] = mine;
            else if (D_K % SLAB == 0 || slab * SLAB + column < D_K)
                cut.across[(row * D_K + k) * D_K + slab * SLAB + column] = mine;
        });
    }
}

/* From segment to segment: entering = A entering before + B, where B is in place. A block has 16
 * columns of d_v, a thread 4 x 4 of their elements. */
template <int D_K>
__global__ __launch_bounds__(THREADS) static void delta_combine_kernel(struct ragged batch,
                                                                       const float *decays,
                                                                       struct segments cut,
                                                                       int heads, int d_v)
{
    enum { COLUMNS = 16 };
    __shared__ __align__(16) float before[D_K][COLUMNS];
    const int head = blockIdx.y, sequence = cut.from + blockIdx.z;
    const int k0 = threadIdx.x / 4 * 4, column = threadIdx.x % 4 * 4;
    const int all = sequence_chunks(batch, sequence);
    for (int segment = 1; (segment + 1) * cut.chunks < all; segment++) {
        int64_t chunk_row = prepared_row(batch, sequence, segment * cut.chunks);
        if (forgotten_before(decays, chunk_row, heads, head, cut.chunks) >= 0)
            continue;
        const int64_t row = segment_row(cut, batch, sequence, segment) * heads + head;
        const float *from = cut.entering + row * D_K * d_v + blockIdx.x * COLUMNS;
        const float *across = cut.across + row * D_K * D_K;
        __syncthreads();
        for (int i = threadIdx.x; i < D_K * COLUMNS / 4; i += THREADS)
            *(float4 *)&before[i / 4][i % 4 * 4] =
                *(const float4 *)(from + (int64_t)(i / 4) * d_v + i % 4 * 4);
        __syncthreads();
        if (k0 >= D_K)
            continue;
        float sum[4][4] = {};
        for (int k = 0; k < D_K; k += 4) {
            float4 s[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[j] = *(const float4 *)&before[k + j][column];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 a = *(const float4 *)(across + (k0 + i) * D_K + k);
                sum[i][0] += a.x * s[0].x + a.y * s[1].x + a.z * s[2].x + a.w * s[3].x;
                sum[i][1] += a.x * s[0].y + a.y * s[1].y + a.z * s[2].y + a.w * s[3].y;
                sum[i][2] += a.x * s[0].z + a.y * s[1].z + a.z * s[2].z + a.w * s[3].z;
                sum[i][3] += a.x * s[0].w + a.y * s[1].w + a.z * s[2].w + a.w * s[3].w;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 *to = (float4 *)(cut.entering + (row + heads) * D_K * d_v +
                                    (int64_t)(k0 + i) * d_v + blockIdx.x * COLUMNS + column);
            float4 b = *to;
            *to = make_float4(b.x + sum[i][0], b.y + sum[i][1], b.z + sum[i][2], b.w + sum[i][3]);
        }
    }
}

template <int D_K>
static enum status delta_states_launch(struct device *device, const struct delta_op *op,
                                       const struct chain_maps *maps,
                                       const struct prepared *prepared, const struct segments *cut)
{
    const int sequences = op->batch->sequences - cut->from;
    const int slabs = op->d_v / SLAB + (cut->count > 2 ? (D_K + SLAB - 1) / SLAB : 0);
    const int64_t chains = (int64_t)sequences * (cut->count - 1) * op->heads;
    const int groups = groups_for(device, slabs, chains);
    const size_t bytes = state_stage<D_K>::TOTAL;
    enum status status = shared_raise(delta_states_kernel<D_K>, bytes, "delta states");
    if (status != STATUS_OK)
        return status;
    delta_states_kernel<D_K>
        <<<dim3(slabs / groups, op->heads, sequences * (cut->count - 1)), (groups + 1) * THREADS,
           bytes, device->stream>>>(*op, *op->batch, *prepared, *maps, *cut);
    status = launch_check("delta states");
    if (status != STATUS_OK || cut->count == 2)
        return status;
    delta_combine_kernel<D_K>
        <<<dim3(op->d_v / 16, op->heads, sequences), THREADS, 0, device->stream>>>(
            *op->batch, prepared->decay, *cut, op->heads, op->d_v);
    return launch_check("delta combine");
}

enum status delta_states(struct device *device, const struct delta_op *op,
                         const struct chain_maps *maps, const struct prepared *prepared,
                         const struct segments *cut)
{
    if (cut->count < 2)
        return STATUS_OK;
    return op->d_k == 128 ? delta_states_launch<128>(device, op, maps, prepared, cut)
                          : delta_states_launch<96>(device, op, maps, prepared, cut);
}
