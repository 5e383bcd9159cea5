/* Pieces of tensors: rows and columns, converted on the way to the caller. Thread-safe: nothing
 * here is written but the caller's output. */
#include <string.h>

#include "daemon/base/checked.h"
#include "partition/checkpoint_parts.h"
#include "partition/convert.h"

enum { BUFFER_BYTES = 64 << 10, BUFFER_FLOATS = BUFFER_BYTES / 4 };

/* One call's piece, checked. */
struct piece {
    const struct checkpoint *checkpoint;
    const struct tensor_entry *tensor;
    uint64_t width; /* elements of a whole row */
    enum dtype dtype;
    char *out;
    uint64_t ld_out;
};

/* Fills `piece->width` and checks that the rectangle lies in the tensor. */
static bool piece_fits(struct piece *piece, uint64_t row, uint64_t rows, uint64_t column,
                       uint64_t columns)
{
    const struct tensor_entry *tensor = piece->tensor;
    uint64_t height = tensor->dims > 0 ? tensor->shape[0] : 1, end;
    piece->width = 1;
    for (int i = 1; i < tensor->dims; i++)
        piece->width *= tensor->shape[i]; /* cannot overflow: checked with the header */
    return checked_add(row, rows, &end) && end <= height && checked_add(column, columns, &end) &&
           end <= piece->width && (rows <= 1 || piece->ld_out >= columns);
}

static enum status bad_element(const struct piece *piece, uint64_t element, struct error *error)
{
    const struct tensor_entry *tensor = piece->tensor;
    return error_set(error, STATUS_CORRUPT,
                     "%s: tensor %.160s: element %llu (row %llu, column %llu; offset %llu) is NaN "
                     "or Inf as %s",
                     tensor->file, tensor->name, (unsigned long long)element,
                     (unsigned long long)(element / piece->width),
                     (unsigned long long)(element % piece->width),
                     (unsigned long long)(tensor->offset + element * dtype_size(tensor->dtype)),
                     dtype_name(piece->dtype));
}

/* Elements [first, first + count) of the tensor to a buffer of its file dtype (dummy: f32). */
static enum status fetch(const struct piece *piece, uint64_t first, size_t count, float *buffer,
                         enum dtype *dtype, struct error *error)
{
    const struct checkpoint *c = piece->checkpoint;
    const struct tensor_entry *tensor = piece->tensor;
    if (c->dummy != NULL) {
        dummy_elements(&c->dummy[tensor - c->entry], first, count, buffer);
        *dtype = DTYPE_F32;
        return STATUS_OK;
    }
    size_t size = dtype_size(tensor->dtype);
    *dtype = tensor->dtype;
    enum status status = safetensors_read(&c->file[tensor->shard], tensor->offset + first * size,
                                          count * size, buffer, error);
    return status == STATUS_OK ? status : error_prefix(error, "tensor %.160s", tensor->name);
}

/* One run of neighbours: [first, first + count) to `out`. */
static enum status read_run(const struct piece *piece, uint64_t first, uint64_t count, char *out,
                            struct error *error)
{
    float buffer[BUFFER_FLOATS];
    while (count > 0) {
        size_t now = count < BUFFER_FLOATS ? (size_t)count : BUFFER_FLOATS;
        enum dtype dtype;
        enum status status = fetch(piece, first, now, buffer, &dtype, error);
        if (status != STATUS_OK)
            return status;
        size_t bad = convert_elements(dtype, buffer, piece->dtype, out, now);
        if (bad < now)
            return bad_element(piece, first + bad, error);
        out += now * dtype_size(piece->dtype);
        first += now;
        count -= now;
    }
    return STATUS_OK;
}

/* Columns of several short rows through one fetch of the whole rows. */
static enum status read_block(const struct piece *piece, uint64_t row, uint64_t rows,
                              uint64_t column, uint64_t columns, char *out, struct error *error)
{
    float buffer[BUFFER_FLOATS];
    enum dtype dtype;
    size_t width = (size_t)piece->width;
    enum status status = fetch(piece, row * width, (size_t)rows * width, buffer, &dtype, error);
    if (status != STATUS_OK)
        return status;
    size_t pitch = width * dtype_size(dtype), skip = (size_t)column * dtype_size(dtype);
    for (size_t i = 0; i < rows; i++) {
        const char *from = (const char *)buffer + i * pitch + skip;
        char *to = out + i * piece->ld_out * dtype_size(piece->dtype);
        size_t bad = convert_elements(dtype, from, piece->dtype, to, (size_t)columns);
        if (bad < columns)
            return bad_element(piece, (row + i) * width + column + bad, error);
    }
    return STATUS_OK;
}

static enum status read_piece(const struct piece *piece, uint64_t row, uint64_t rows,
                              uint64_t column, uint64_t columns, struct error *error)
{
    uint64_t width = piece->width, size = dtype_size(piece->dtype);
    if (columns == width && (piece->ld_out == width || rows == 1))
        return read_run(piece, row * width, rows * width, piece->out, error);
    /* Short rows are read whole: fewer calls, and no more pages than the pieces touch. */
    bool narrow = width <= BUFFER_FLOATS / 16;
    uint64_t step = narrow ? BUFFER_FLOATS / width : 1;
    for (uint64_t done = 0; done < rows; done += step) {
        uint64_t now = rows - done < step ? rows - done : step;
        char *out = piece->out + done * piece->ld_out * size;
        enum status status =
            narrow ? read_block(piece, row + done, now, column, columns, out, error)
                   : read_run(piece, (row + done) * width + column, columns, out, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status checkpoint_read(const struct checkpoint *checkpoint, const struct tensor_entry *tensor,
                            uint64_t row, uint64_t rows, uint64_t column, uint64_t columns,
                            enum dtype dtype, void *out, uint64_t ld_out, struct error *error)
{
    struct piece piece = {
        .checkpoint = checkpoint, .tensor = tensor, .dtype = dtype, .out = out, .ld_out = ld_out};
    if (dtype == DTYPE_F16 || !piece_fits(&piece, row, rows, column, columns))
        return error_set(error, STATUS_INTERNAL,
                         "tensor %.160s: rows [%llu, +%llu) columns [%llu, +%llu) cannot be read",
                         tensor->name, (unsigned long long)row, (unsigned long long)rows,
                         (unsigned long long)column, (unsigned long long)columns);
    if (rows == 0 || columns == 0)
        return STATUS_OK;
    if (checkpoint->dummy == NULL) {
        enum status status = safetensors_unchanged(&checkpoint->file[tensor->shard], error);
        if (status != STATUS_OK)
            return error_prefix(error, "tensor %.160s", tensor->name);
    }
    return read_piece(&piece, row, rows, column, columns, error);
}

enum status checkpoint_unchanged(const struct checkpoint *checkpoint, struct error *error)
{
    for (int i = 0; i < checkpoint->files; i++) {
        enum status status = safetensors_unchanged(&checkpoint->file[i], error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}
