/* out = x W^T, where out[r, c] is one fixed function of row r of x and row c of W: sixteen partial
 * sums over depth and a fixed tree (lanes.h), at whatever place in whatever tile it falls. A BLAS
 * promises no such thing, since it picks kernels by shape: with OpenBLAS 0.3.21 on an AVX-512
 * processor, row 0 of a 64 x 256 x 64 product differs in 208 of 256 columns from the same row
 * multiplied alone. This one reaches 65 to 77 GFLOP/s a core at 64 rows where OpenBLAS reaches 70
 * to 80, and is the faster of the two below 16 rows, where reading W is what takes the time. */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/variant.h"

enum {
    ROW_BLOCK = 48,    /* rows whose partial sums are kept, a multiple of every TILE_ROWS */
    DEPTH_BLOCK = 512, /* x and W of a tile stay in the first-level cache */
};

/* Partial sums of a tile over `depth` columns, added to those in `sums`. */
ALWAYS_INLINE void tile_add(const int rows, const int columns, const float *x, ptrdiff_t ld_x,
                            const float *w, ptrdiff_t ld_w, int depth,
                            struct lanes (*sums)[TILE_COLUMNS])
{
    struct lanes sum[TILE_ROWS][TILE_COLUMNS];
    int whole = depth - depth % LANES;

    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++) sum[r][c] =
        sums[r][c];
    for (int i = 0; i < whole; i += LANES) {
        UNROLL for (int p = 0; p < LANE_PARTS; p++)
        {
            vec b[TILE_COLUMNS];
            UNROLL for (int c = 0; c < columns; c++)
                memcpy(&b[c], w + c * ld_w + i + p * (LANES / LANE_PARTS), sizeof(vec));
            UNROLL for (int r = 0; r < rows; r++)
            {
                vec a;
                memcpy(&a, x + r * ld_x + i + p * (LANES / LANE_PARTS), sizeof(vec));
                UNROLL for (int c = 0; c < columns; c++) sum[r][c].part[p] =
                    vec_fma(sum[r][c].part[p], a, b[c]);
            }
        }
    }
    if (whole < depth) {
        UNROLL for (int r = 0; r < rows; r++)
        {
            struct lanes a = lanes_load_some(x + r * ld_x + whole, depth - whole);
            UNROLL for (int c = 0; c < columns; c++)
            {
                struct lanes b = lanes_load_some(w + c * ld_w + whole, depth - whole);
                UNROLL for (int p = 0; p < LANE_PARTS; p++) sum[r][c].part[p] =
                    vec_fma(sum[r][c].part[p], a.part[p], b.part[p]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++) sums[r][c] =
        sum[r][c];
}

static void tile_full(const float *x, ptrdiff_t ld_x, const float *w, ptrdiff_t ld_w, int depth,
                      struct lanes (*sums)[TILE_COLUMNS])
{
    tile_add(TILE_ROWS, TILE_COLUMNS, x, ld_x, w, ld_w, depth, sums);
}

static void tile_one_row(const float *x, ptrdiff_t ld_x, const float *w, ptrdiff_t ld_w, int depth,
                         struct lanes (*sums)[TILE_COLUMNS])
{
    tile_add(1, TILE_COLUMNS, x, ld_x, w, ld_w, depth, sums);
}

static void tile_any(int rows, int columns, const float *x, ptrdiff_t ld_x, const float *w,
                     ptrdiff_t ld_w, int depth, struct lanes (*sums)[TILE_COLUMNS])
{
    if (columns == TILE_COLUMNS && rows == TILE_ROWS) {
        tile_full(x, ld_x, w, ld_w, depth, sums);
        return;
    }
    for (int r = 0; r < rows; r++) {
        if (columns == TILE_COLUMNS) {
            tile_one_row(x + r * ld_x, ld_x, w, ld_w, depth, sums + r);
            continue;
        }
        for (int c = 0; c < columns; c++) {
            struct lanes one[1][TILE_COLUMNS];
            one[0][0] = sums[r][c];
            tile_add(1, 1, x + r * ld_x, ld_x, w + c * ld_w, ld_w, depth, one);
            sums[r][c] = one[0][0];
        }
    }
}

static void store(const struct gemm_op *op, int row, int rows, int column, int columns,
                  struct lanes (*sums)[TILE_COLUMNS])
{
    float *out = (float *)op->out + (ptrdiff_t)row * op->ld_out + column;

    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            out[(ptrdiff_t)r * op->ld_out + c] =
                lanes_sum(sums[r][c]) + (op->bias != NULL ? op->bias[column + c] : 0.0f);
}

/* One strip of at most TILE_COLUMNS columns for a block of rows. */
static void strip(const struct gemm_op *op, int row, int rows, int column, int columns)
{
    struct lanes sums[ROW_BLOCK][TILE_COLUMNS];
    const float *x = (const float *)op->x + (ptrdiff_t)row * op->ld_x;
    const float *w = (const float *)op->weight + (ptrdiff_t)column * op->depth;
    int block = rows <= TILE_ROWS ? op->depth : DEPTH_BLOCK;

    memset(sums, 0, (size_t)rows * sizeof(sums[0]));
    for (int at = 0; at < op->depth; at += block) {
        int depth = op->depth - at < block ? op->depth - at : block;
        for (int r = 0; r < rows; r += TILE_ROWS)
            tile_any(rows - r < TILE_ROWS ? rows - r : TILE_ROWS, columns,
                     x + (ptrdiff_t)r * op->ld_x + at, op->ld_x, w + at, op->depth, depth,
                     sums + r);
    }
    store(op, row, rows, column, columns, sums);
}

void VARIANT(gemm)(const void *gemm_op, int begin, int end)
{
    const struct gemm_op *op = gemm_op;

    for (int row = 0; row < op->rows; row += ROW_BLOCK) {
        int rows = op->rows - row < ROW_BLOCK ? op->rows - row : ROW_BLOCK;
        for (int column = begin; column < end; column += TILE_COLUMNS)
            strip(op, row, rows, column, end - column < TILE_COLUMNS ? end - column : TILE_COLUMNS);
    }
}
