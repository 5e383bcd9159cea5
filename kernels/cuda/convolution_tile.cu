/* The jet mixer's generator product and the dynamic convolution at once: the kernels of a token
 * (four taps a channel) never leave the registers that their sums are made in.
 *
 * A tile is 128 tokens and 64 channels. The weight map folds the rows of W2, [channel, tap], so
 * that a lane's fragment holds all four taps of two runs of eight channels: with
 * channel = 32 half + 8 q + i and tap = 2 j + e, the tile's column is
 * 128 half + 16 i + 8 j + 2 q + e, and lane % 4 = q.
 *
 * Shared memory of the epilogue, filled ahead by one warp: the inputs of the tile's tokens and of
 * the three before, the bias, and where a token's window reaches behind its sequence's new ones. */
#include "kernels/cuda/gemm_tile.cuh"

#include "kernels/cuda/gemm_tile.h"

typedef tile_form<2, 256, 2> form;

enum { TAPS = 4, CHANNELS = form::COLUMNS / TAPS, RUN = 8 /* channels */ };
enum { INPUT_ROWS = form::ROWS + TAPS - 1, INPUT_HALF = INPUT_ROWS * (CHANNELS / 2) * 2 };
enum {
    INPUTS = 0,            /* [2, INPUT_ROWS, CHANNELS / 2] bf16 */
    BIAS = 2 * INPUT_HALF, /* float4 [CHANNELS], one more after each RUN: no two lanes meet
                              in a bank */
    REACH = BIAS + (CHANNELS + CHANNELS / RUN) * 16, /* [ROWS] int32 */
    EPILOGUE_BYTES = REACH + form::ROWS * 4
};
static_assert((int)EPILOGUE_BYTES <= (int)form::EXTRA_BYTES, "the epilogue's share");

struct convolution_epilogue {
    enum { FOLDED = 1, AHEAD = 1 };
    CUtensorMap inputs; /* of the step: [channels / 32, tokens, 32] */
    const float *bias;  /* [channels, TAPS] */
    const bf16 *rows;   /* [slots, TAPS - 1, channels] */
    bf16 *out;          /* [tokens, channels] of the step */
    const int32_t *starts, *slots, *contexts, *token_sequence;
    int channels, first, tokens;

    /* Tokens of the sequence's new ones before this one, 3 at most: then the window is all new.
     * Above these two bits the slot that holds what came before, negative: zeros. */
    __device__ int reach_of(int token) const
    {
        if (token >= tokens)
            return TAPS - 1;
        const int sequence = token_sequence[token], step = token - starts[sequence];
        if (step >= TAPS - 1)
            return TAPS - 1;
        return (contexts[sequence] == 0 ? -1 : slots[sequence]) * 4 + step;
    }

    __device__ void ahead(struct tile_place place, unsigned char *bytes, uint32_t full) const
    {
        const int lane = threadIdx.x % 32, channel = place.column * CHANNELS;
        if (lane == 0) {
            barrier_expect_only(full, 2 * INPUT_HALF);
            copy_box3(shared_address(bytes + INPUTS), &inputs, 0, first + place.row - (TAPS - 1),
                      place.column * 2, full);
        }
#pragma unroll
        for (int c = lane; c < CHANNELS; c += 32)
            if (channel + c < channels)
                ((float4 *)(bytes + BIAS))[c + c / RUN] = ((const float4 *)bias)[channel + c];
#pragma unroll
        for (int row = lane; row < form::ROWS; row += 32)
            ((int *)(bytes + REACH))[row] = reach_of(first + place.row + row);
        __syncwarp();
        if (lane == 0)
            barrier_arrive(full);
    }

    /* Input `tap` of the window of a tile's token, eight channels from `run` on. */
    __device__ bf16x8 input_at(const unsigned char *bytes, int token, int reach, int tap, int half,
                               int channel) const
    {
        const int q = threadIdx.x % 4;
        if (tap >= TAPS - 1 - (reach & 3))
            return *(const bf16x8 *)(bytes + INPUTS + half * INPUT_HALF +
                                     (token + tap) * (CHANNELS / 2) * 2 + q * RUN * 2);
        bf16x8 zeros = {};
        if (reach < 0 || channel >= channels)
            return zeros;
        return *(const bf16x8 *)(rows +
                                 ((int64_t)(reach >> 2) * (TAPS - 1) + (reach & 3) + tap) *
                                     channels +
                                 channel);
    }

    __device__ void store(float (&sums)[form::COLUMNS / 2], struct tile_place place, int group,
                          unsigned char *bytes) const
    {
        const int lane = threadIdx.x % 32, q = lane % 4;
        const float4 *added = (const float4 *)(bytes + BIAS);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int run = half * (CHANNELS / 2) + q * RUN;
            const int channel = place.column * CHANNELS + run;
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const int row = group * 64 + threadIdx.x / 32 % 4 * 16 + below * 8 + lane / 4;
                const int reach = ((const int *)(bytes + REACH))[row];
                const int token = first + place.row + row;
                float window[TAPS][RUN], values[RUN];
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++)
                    unpack8(input_at(bytes, row, reach, tap, half, channel), window[tap]);
#pragma unroll
                for (int i = 0; i < RUN; i++) {
                    const float4 more = added[run + run / RUN + i];
                    const float *pair = sums + 64 * half + 8 * i + 2 * below;
                    float sum = (pair[0] + more.x) * window[0][i];
                    sum += (pair[1] + more.y) * window[1][i];
                    sum += (pair[4] + more.z) * window[2][i];
                    sum += (pair[5] + more.w) * window[3][i];
                    values[i] = silu_of(sum);
                }
                if (token < tokens && channel < channels)
                    store8(out + (int64_t)token * channels + channel, values);
            }
        }
    }
};

bool convolution_tile_fits(const struct jet_mixer_op *op)
{
    const int channels = op->heads * op->d_v;
    return op->taps == TAPS && channels % 32 == 0 && op->generator % 8 == 0 &&
           op->ld_projected % 8 == 0 && op->v_at % 8 == 0 && aligned16(op->projected) &&
           aligned16(op->w2) && aligned16(op->w2_bias) && aligned16(op->rows) &&
           aligned16(op->scratch);
}

/* W2 [channels, TAPS, generator] as (depth, e, run of eight channels, j, i); a box is a half of a
 * tile's rows. */
static enum status weight_map(CUtensorMap *map, const struct jet_mixer_op *op)
{
    const cuuint64_t row = (cuuint64_t)op->generator * 2; /* bytes */
    const struct tensor_shape shape = {
        5,
        {(cuuint64_t)op->generator, 2, (cuuint64_t)(op->heads * op->d_v / RUN), 2, RUN},
        {row, row * TAPS * RUN, row * 2, row * TAPS},
        {TILE_DEPTH, 2, 4, 2, RUN},
        true};
    return tensor_map_make(map, op->w2, &shape);
}

static enum status inputs_map(CUtensorMap *map, const struct jet_mixer_op *op)
{
    const struct tensor_shape shape = {
        3,
        {CHANNELS / 2, (cuuint64_t)op->batch->tokens, (cuuint64_t)(op->heads * op->d_v / 32)},
        {(cuuint64_t)op->ld_projected * 2, CHANNELS / 2 * 2},
        {CHANNELS / 2, INPUT_ROWS, 2},
        false};
    return tensor_map_make(map, (const bf16 *)op->projected + op->v_at, &shape);
}

enum status convolution_tile(struct device *device, const struct jet_mixer_op *op, int first,
                             const void *generated, void *out)
{
    const struct ragged *batch = op->batch;
    const int rows = batch->tokens - first;
    struct tile_maps maps;
    struct tile_problem problem = {};
    struct convolution_epilogue epilogue = {};
    epilogue.bias = op->w2_bias;
    epilogue.rows = (const bf16 *)op->rows;
    epilogue.out = (bf16 *)out;
    epilogue.starts = batch->starts;
    epilogue.slots = batch->slots;
    epilogue.contexts = batch->contexts;
    epilogue.token_sequence = batch->token_sequence;
    epilogue.channels = op->heads * op->d_v;
    epilogue.first = first;
    epilogue.tokens = batch->tokens;
    problem.steps = blocks_for(op->generator, TILE_DEPTH);
    problem.row_tiles = blocks_for(rows, form::ROWS * form::CLUSTER);
    problem.column_tiles = blocks_for(epilogue.channels, CHANNELS);
    problem.column_apart = CHANNELS / RUN;
    problem.half_apart = CHANNELS / RUN / 2;
    problem.x_bytes = form::X_BYTES;
    enum status status =
        tensor_map_rows(&maps.x, (const bf16 *)generated + (int64_t)first * op->generator, rows,
                        op->generator, op->generator, form::ROWS);
    if (status == STATUS_OK)
        status = weight_map(&maps.weight, op);
    if (status == STATUS_OK)
        status = inputs_map(&epilogue.inputs, op);
    return status == STATUS_OK
               ? tiles_launch<form>(device, maps, problem, epilogue, "generated convolution")
               : status;
}
