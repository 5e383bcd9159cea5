/* How products of 17 to 128 rows are cut: what gemm_stream.cu launches. */
#include "kernels/cuda/gemm_stream.cuh"

static int round_up(int value, int unit)
{
    return (value + unit - 1) / unit * unit;
}

static const struct {
    int splits, shared;
} forms[STREAM_FORMS] = {{1, SHARED_HALF}, {1, SHARED_WHOLE}, {2, SHARED_HALF}, {4, SHARED_HALF}};

int stream_rows(int rows)
{
    return rows <= 32 ? 32 : round_up(rows, rows <= 64 ? 64 : 32);
}

/* Bytes that wgmma reads beyond the last stage: whole groups of columns, rows up to N. */
static int beyond_of(const struct stream_shape *shape, int rows)
{
    int columns = shape->groups * 64 * LINE - shape->chunk_bytes;
    int x = (stream_rows(rows) - round_up(rows, 8)) * LINE;
    int most = columns > x ? columns : x;
    return most > 0 ? most : 0;
}

/* Clusters of four lie within a group of 16 or 18 multiprocessors. */
bool stream_shape_of(int multiprocessors, const struct gemm_op *op, int halves, int form,
                     struct stream_shape *shape)
{
    const int splits = forms[form].splits;
    const int blocks = splits > 2 ? multiprocessors / 16 * 16 : multiprocessors;
    const int tiles = blocks / splits;
    *shape = {};
    if (tiles == 0)
        return false;
    shape->halves = halves;
    shape->splits = splits;
    shape->turns = blocks_for(op->columns, tiles * (TILE_MAX / halves));
    shape->tile = round_up(blocks_for(op->columns, tiles * shape->turns), 2);
    shape->clusters = blocks_for(op->columns, shape->tile * shape->turns);
    shape->steps = blocks_for(op->depth, DEEP * CHUNK);
    shape->half_rows = round_up(shape->tile, 8);
    shape->groups = blocks_for(halves * shape->half_rows, 64);
    shape->tile_bytes = halves * shape->half_rows * LINE;
    shape->chunk_bytes = shape->tile_bytes + round_up(op->rows, 8) * LINE;
    shape->copied = DEEP * (halves * shape->tile + op->rows) * LINE;
    shape->shared = forms[form].shared;
    shape->stages =
        (shape->shared - HEAD - beyond_of(shape, op->rows)) / (DEEP * shape->chunk_bytes);
    shape->stages = shape->stages < STAGES_MAX ? shape->stages : STAGES_MAX;
    const bool ring_reused = splits > 1 || halves > 1;
    return shape->stages >= 2 && shape->steps >= splits && (!ring_reused || shape->turns == 1);
}
