/* gate_up at once: a tile has 128 columns of the gate and the same ones of up. */
#include "kernels/cuda/gemm_tile.cuh"

#include "kernels/cuda/gemm_tile.h"

typedef tile_form<2, 256, 2> form;

enum { WIDTH = form::COLUMNS / 2 };
/* With fewer, the last tiles leave too many multiprocessors idle: measured beside the library's
 * product and swiglu, as fast or slower up to 2048 rows; above, as fast or up to 14 % faster. */
enum { ROWS_MIN = 2049 };

struct gate_up_epilogue {
    enum { FOLDED = 0, AHEAD = 0 };
    struct gate_up_op op;

    __device__ void store(float (&sums)[form::COLUMNS / 2], struct tile_place place, int group,
                          unsigned char *bytes) const
    {
        const int warp = threadIdx.x / 32 % 4;
        const int row = place.row + group * 64 + warp * 16, column = place.column * WIDTH;
        if (row >= op.rows)
            return;
        rows_store<WIDTH>(bytes + (group * 4 + warp) * 16 * WIDTH * 2,
                          (bf16 *)op.out + (int64_t)row * op.columns + column, op.columns,
                          op.rows - row, op.columns - column, [&](int j, uint32_t *two) {
                              const float *gate = sums + j * 4, *up = gate + WIDTH / 2;
                              two[0] =
                                  pack_bf16(silu_of(gate[0]) * up[0], silu_of(gate[1]) * up[1]);
                              two[1] =
                                  pack_bf16(silu_of(gate[2]) * up[2], silu_of(gate[3]) * up[3]);
                          });
    }
};

bool gate_up_tile_fits(const struct gate_up_op *op)
{
    return op->rows >= ROWS_MIN && op->depth % 8 == 0 && op->ld_x % 8 == 0 &&
           op->columns % 8 == 0 && aligned16(op->x) && aligned16(op->weight) && aligned16(op->out);
}

enum status gate_up_tile(struct device *device, const struct gate_up_op *op)
{
    struct tile_maps maps;
    struct tile_problem problem = {};
    const struct gate_up_epilogue epilogue = {*op};
    problem.steps = blocks_for(op->depth, TILE_DEPTH);
    problem.row_tiles = blocks_for(op->rows, form::ROWS * form::CLUSTER);
    problem.column_tiles = blocks_for(op->columns, WIDTH);
    problem.column_apart = WIDTH;
    problem.half_apart = op->columns;
    problem.x_bytes = form::X_BYTES;
    enum status status = tensor_map_rows(&maps.x, op->x, op->rows, op->depth, op->ld_x, form::ROWS);
    if (status == STATUS_OK)
        status = tensor_map_rows(&maps.weight, op->weight, 2 * (int64_t)op->columns, op->depth,
                                 op->depth, WIDTH);
    return status == STATUS_OK ? tiles_launch<form>(device, maps, problem, epilogue, "gate and up")
                               : status;
}
