/* The plain product by tiles: for batch-invariant devices, at any row count. */
#include "kernels/cuda/gemm_tile.cuh"

#include "kernels/cuda/gemm_tile.h"

typedef tile_form<2, 256, 2> many_rows;
typedef tile_form<1, 64, 1> few_rows;
typedef tile_form<1, 32, 1> few_columns; /* and few rows */

/* As op says: a bias or none, bf16 or f32; whole vectors where rows are aligned. */
template <class Form>
struct plain_epilogue {
    enum { FOLDED = 0, AHEAD = 0, WIDTH = Form::COLUMNS < 128 ? (int)Form::COLUMNS : 128 };
    struct gemm_op op;
    bool wide; /* out is in whole vectors of eight bf16 or two f32 */

    __device__ void bias_add(float (&sums)[Form::COLUMNS / 2], int column) const
    {
#pragma unroll
        for (int i = 0; i < Form::COLUMNS / 2; i++) {
            int c = column + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
            sums[i] += c < op.columns ? __ldg(op.bias + c) : 0.0f;
        }
    }

    /* One pair of columns of a row. */
    __device__ void pair_store(float low, float high, int row, int column) const
    {
        const int64_t at = (int64_t)row * op.ld_out + column;
        if (row >= op.rows || column >= op.columns)
            return;
        const bool both = column + 1 < op.columns;
        if (op.float_out && wide && both) {
            *(float2 *)((float *)op.out + at) = make_float2(low, high);
        } else if (op.float_out) {
            ((float *)op.out)[at] = low;
            if (both)
                ((float *)op.out)[at + 1] = high;
        } else {
            ((bf16 *)op.out)[at] = __float2bfloat16(low);
            if (both)
                ((bf16 *)op.out)[at + 1] = __float2bfloat16(high);
        }
    }

    __device__ void store(float (&sums)[Form::COLUMNS / 2], struct tile_place place, int group,
                          unsigned char *bytes) const
    {
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const int row = place.row + group * 64 + warp * 16;
        const int column = place.column * Form::COLUMNS;
        if (row >= op.rows)
            return;
        if (op.bias != NULL)
            bias_add(sums, column);
        if (op.float_out || !wide) {
#pragma unroll
            for (int i = 0; i < Form::COLUMNS / 2; i += 2)
                pair_store(sums[i], sums[i + 1], row + lane / 4 + i % 4 / 2 * 8,
                           column + i / 4 * 8 + lane % 4 * 2);
            return;
        }
        unsigned char *own = bytes + (group * 4 + warp) * 16 * WIDTH * 2;
#pragma unroll
        for (int part = 0; part < Form::COLUMNS / WIDTH; part++)
            rows_store<WIDTH>(
                own, (bf16 *)op.out + (int64_t)row * op.ld_out + column + part * WIDTH, op.ld_out,
                op.rows - row, op.columns - column - part * WIDTH, [&](int j, uint32_t *two) {
                    const float *from = sums + (part * WIDTH / 8 + j) * 4;
                    two[0] = pack_bf16(from[0], from[1]);
                    two[1] = pack_bf16(from[2], from[3]);
                });
    }
};

bool gemm_tile_fits(const struct gemm_op *op)
{
    return op->depth % 8 == 0 && op->ld_x % 8 == 0 && aligned16(op->x) && aligned16(op->weight);
}

template <class Form>
static enum status run(struct device *device, const struct gemm_op *op)
{
    const int unit = op->float_out ? 2 : 8;
    const int box_rows = min((int)Form::ROWS, (op->rows + 7) / 8 * 8);
    struct tile_maps maps;
    struct tile_problem problem = {};
    struct plain_epilogue<Form> epilogue = {
        *op, false
    };
    epilogue.wide =
        op->ld_out % unit == 0 && aligned16(op->out) && (op->float_out || op->columns % 8 == 0);
    problem.steps = blocks_for(op->depth, TILE_DEPTH);
    problem.row_tiles = blocks_for(op->rows, Form::ROWS * Form::CLUSTER);
    problem.column_tiles = blocks_for(op->columns, Form::COLUMNS);
    problem.column_apart = Form::COLUMNS;
    problem.half_apart = Form::COLUMNS / 2;
    problem.x_bytes = box_rows * TILE_DEPTH * 2;
    enum status status = tensor_map_rows(&maps.x, op->x, op->rows, op->depth, op->ld_x, box_rows);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps.weight, op->weight, op->columns, op->depth, op->depth,
                                 Form::COLUMNS / 2);
    return status == STATUS_OK ? tiles_launch<Form>(device, maps, problem, epilogue, "gemm")
                               : status;
}

/* The largest tiles of which there are enough for most multiprocessors; the bits are the same. */
enum status gemm_tile(struct device *device, const struct gemm_op *op)
{
    auto pieces = [&](int rows, int columns) {
        return (int64_t)blocks_for(op->rows, rows) * blocks_for(op->columns, columns);
    };
    const int most = device->multiprocessors;
    if (op->rows > many_rows::ROWS &&
        pieces(many_rows::ROWS * many_rows::CLUSTER, many_rows::COLUMNS) * 3 >= most)
        return run<many_rows>(device, op);
    if (pieces(few_rows::ROWS, few_rows::COLUMNS) * 2 >= most)
        return run<few_rows>(device, op);
    return run<few_columns>(device, op);
}
