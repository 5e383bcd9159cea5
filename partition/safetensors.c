#include "partition/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/checked.h"
#include "daemon/base/json.h"

/* A tensor has some 15 values; what is over this cannot be 65536 tensors of few dimensions. */
static const struct document_limits header_limits = {
    .bytes = SAFETENSORS_HEADER_MAX, .depth = 3, .values = 1 << 20};

/* ---- header ------------------------------------------------------------------------------- */

enum status safetensors_prefix(const char *path, const unsigned char *first, size_t got,
                               uint64_t size, uint64_t *header, struct error *error)
{
    if (text_is_lfs_pointer((const char *)first, got))
        return error_set(error, STATUS_CORRUPT,
                         "%s: a git-LFS pointer, not the weights; fetch them (git lfs pull)", path);
    if (got < SAFETENSORS_PREFIX)
        return error_set(error, STATUS_CORRUPT,
                         "%s: truncated: %llu bytes, too short for a header length at offset 0",
                         path, (unsigned long long)size);
    uint64_t length = 0;
    for (int i = SAFETENSORS_PREFIX - 1; i >= 0; i--)
        length = length << 8 | first[i];
    if (length > SAFETENSORS_HEADER_MAX)
        return error_set(error, STATUS_CORRUPT,
                         "%s: header length at offset 0 is %llu, over the %d bytes allowed", path,
                         (unsigned long long)length, SAFETENSORS_HEADER_MAX);
    if (length > size - SAFETENSORS_PREFIX)
        return error_set(error, STATUS_CORRUPT,
                         "%s: truncated: header of %llu bytes at offset 8 in a file of %llu", path,
                         (unsigned long long)length, (unsigned long long)size);
    *header = length;
    return STATUS_OK;
}

struct header_visit {
    struct safetensors *file;
    uint64_t data_start, data_bytes;
};

/* A wrong type or range inside a header is a corrupt file, not a wrong configuration. */
static enum status corrupt(struct error *error)
{
    if (error != NULL && error->status == STATUS_CONFIG)
        error->status = STATUS_CORRUPT;
    return STATUS_CORRUPT;
}

static enum status read_dtype(struct field at, enum dtype *dtype, struct error *error)
{
    static const char *const names[] = {
        [DTYPE_F32] = "F32", [DTYPE_BF16] = "BF16", [DTYPE_F16] = "F16"};
    const char *name = NULL;
    if (field_string(at, &name, error) != STATUS_OK)
        return corrupt(error);
    for (int i = DTYPE_F32; i <= DTYPE_F16; i++)
        if (strcmp(names[i], name) == 0) {
            *dtype = (enum dtype)i;
            return STATUS_OK;
        }
    return error_set(error, STATUS_CORRUPT, "%s: %s is \"%.20s\"; F32, BF16 and F16 are supported",
                     at.file, at.path, name);
}

/* Fills dims and shape, and gives the bytes that they and the dtype make. */
static enum status read_shape(struct field at, struct tensor_entry *tensor, uint64_t *bytes,
                              struct error *error)
{
    if (!field_is_array(at))
        return error_set(error, STATUS_CORRUPT, "%s: %s is missing or no list", at.file, at.path);
    size_t dims = field_size(at);
    if (dims > TENSOR_DIMS_MAX)
        return error_set(error, STATUS_CORRUPT, "%s: %s has %zu dimensions, at most %d are allowed",
                         at.file, at.path, dims, TENSOR_DIMS_MAX);
    uint64_t product = dtype_size(tensor->dtype);
    for (size_t i = 0; i < dims; i++) {
        int64_t size = 0;
        if (field_integer(field_element(at, i), 0, INT64_MAX, &size, error) != STATUS_OK)
            return corrupt(error);
        tensor->shape[i] = (uint64_t)size;
        if (!checked_multiply(product, (uint64_t)size, &product))
            return error_set(error, STATUS_CORRUPT, "%s: %s: the product of the sizes overflows",
                             at.file, at.path);
    }
    tensor->dims = (int)dims;
    *bytes = product;
    return STATUS_OK;
}

static enum status read_offsets(struct field at, uint64_t *begin, uint64_t *end,
                                struct error *error)
{
    int64_t offsets[2] = {0, 0};
    if (!field_is_array(at) || field_size(at) != 2)
        return error_set(error, STATUS_CORRUPT, "%s: %s is missing or no list of two", at.file,
                         at.path);
    for (size_t i = 0; i < 2; i++)
        if (field_integer(field_element(at, i), 0, INT64_MAX, &offsets[i], error) != STATUS_OK)
            return corrupt(error);
    *begin = (uint64_t)offsets[0];
    *end = (uint64_t)offsets[1];
    return STATUS_OK;
}

static enum status check_extent(const struct header_visit *visit, struct field at, uint64_t begin,
                                uint64_t end, uint64_t bytes, struct error *error)
{
    unsigned long long b = begin, e = end;
    if (end < begin)
        return error_set(error, STATUS_CORRUPT, "%s: %s: data_offsets [%llu, %llu] run backwards",
                         at.file, at.path, b, e);
    if (end > visit->data_bytes)
        return error_set(error, STATUS_CORRUPT,
                         "%s: truncated: %s: data_offsets [%llu, %llu] reach beyond the %llu bytes "
                         "of data from offset %llu",
                         at.file, at.path, b, e, (unsigned long long)visit->data_bytes,
                         (unsigned long long)visit->data_start);
    if (end - begin != bytes)
        return error_set(error, STATUS_CORRUPT,
                         "%s: %s: data_offsets [%llu, %llu] hold %llu bytes, shape and dtype need "
                         "%llu",
                         at.file, at.path, b, e, e - b, (unsigned long long)bytes);
    return STATUS_OK;
}

static enum status check_metadata(void *context, const char *key, struct field at,
                                  struct error *error)
{
    const char *text;
    (void)context;
    (void)key;
    return field_string(at, &text, error) == STATUS_OK ? STATUS_OK : corrupt(error);
}

static enum status read_tensor(void *context, const char *name, struct field at,
                               struct error *error)
{
    struct header_visit *visit = context;
    struct safetensors *file = visit->file;
    if (strcmp(name, "__metadata__") == 0)
        return field_each(at, check_metadata, NULL, error) == STATUS_OK ? STATUS_OK
                                                                        : corrupt(error);
    if (field_expect_object(at, error) != STATUS_OK)
        return corrupt(error);
    struct tensor_entry tensor = {.file = file->path};
    uint64_t begin = 0, end = 0, bytes = 0;
    enum status status = read_dtype(field_member(at, "dtype"), &tensor.dtype, error);
    if (status == STATUS_OK)
        status = read_shape(field_member(at, "shape"), &tensor, &bytes, error);
    if (status == STATUS_OK)
        status = read_offsets(field_member(at, "data_offsets"), &begin, &end, error);
    if (status == STATUS_OK && field_size(at) != 3)
        status =
            error_set(error, STATUS_CORRUPT,
                      "%s: %s has members besides dtype, shape and data_offsets", at.file, at.path);
    if (status == STATUS_OK)
        status = check_extent(visit, at, begin, end, bytes, error);
    if (status != STATUS_OK)
        return status;
    tensor.bytes = bytes;
    tensor.offset = visit->data_start + begin;
    tensor.name = arena_string(file->arena, name, strlen(name));
    if (tensor.name == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory for tensor names", at.file);
    file->entry[file->count++] = tensor;
    return STATUS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor_entry *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* In order of offset the tensors must follow each other without gap from data_start to the end. */
static enum status check_cover(struct safetensors *file, uint64_t data_start, uint64_t size,
                               struct error *error)
{
    if (file->count > 0)
        qsort(file->entry, file->count, sizeof *file->entry, by_offset);
    uint64_t at = data_start;
    for (size_t i = 0; i < file->count; i++) {
        const struct tensor_entry *tensor = &file->entry[i];
        if (tensor->offset < at)
            return error_set(error, STATUS_CORRUPT,
                             "%s: tensor %.120s at offset %llu overlaps tensor %.120s, which ends "
                             "at %llu",
                             file->path, tensor->name, (unsigned long long)tensor->offset,
                             file->entry[i - 1].name, (unsigned long long)at);
        if (tensor->offset > at)
            return error_set(error, STATUS_CORRUPT,
                             "%s: hole of %llu bytes at offset %llu before tensor %.120s",
                             file->path, (unsigned long long)(tensor->offset - at),
                             (unsigned long long)at, tensor->name);
        at += tensor->bytes;
    }
    if (at != size)
        return error_set(error, STATUS_CORRUPT,
                         "%s: %llu trailing bytes at offset %llu after the last tensor", file->path,
                         (unsigned long long)(size - at), (unsigned long long)at);
    return STATUS_OK;
}

enum status safetensors_header(struct safetensors *file, const char *text, uint64_t length,
                               uint64_t size, struct error *error)
{
    struct header_visit visit = {.file = file, .data_start = SAFETENSORS_PREFIX + length};
    visit.data_bytes = size - visit.data_start;
    if (length == 0 || text[0] != '{')
        return error_set(error, STATUS_CORRUPT, "%s: no JSON object at offset 8", file->path);
    struct document *json;
    enum status status = document_parse(file->path, text, length, header_limits, &json, error);
    if (status != STATUS_OK)
        return error_prefix(error, "safetensors header at offset 8");
    struct field root = document_root(json);
    size_t members = field_size(root);
    if (members > SAFETENSORS_TENSORS_MAX + 1) {
        status = error_set(error, STATUS_CORRUPT, "%s: %zu tensors, over the %d allowed",
                           file->path, members, SAFETENSORS_TENSORS_MAX);
        goto free_json;
    }
    file->count = 0;
    file->entry = calloc(members + 1, sizeof *file->entry);
    if (file->entry == NULL) {
        status = error_set(error, STATUS_NO_MEMORY, "%s: no memory for %zu tensors", file->path,
                           members);
        goto free_json;
    }
    status = field_each(root, read_tensor, &visit, error);
    if (status == STATUS_OK)
        status = check_cover(file, visit.data_start, size, error);
free_json:
    document_free(json);
    return status;
}

/* ---- file --------------------------------------------------------------------------------- */

enum status safetensors_unchanged(const struct safetensors *file, struct error *error)
{
    struct stat now;
    if (fstat(file->fd, &now) != 0)
        return error_set(error, STATUS_IO, "%s: %s", file->path, strerror(errno));
    if (now.st_size != file->opened.st_size || now.st_mtim.tv_sec != file->opened.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != file->opened.st_mtim.tv_nsec)
        return error_set(error, STATUS_CORRUPT,
                         "%s: changed since it was opened (size was %lld, is %lld)", file->path,
                         (long long)file->opened.st_size, (long long)now.st_size);
    return STATUS_OK;
}

enum status safetensors_read(const struct safetensors *file, uint64_t offset, size_t size,
                             void *out, struct error *error)
{
    char *to = out;
    while (size > 0) {
        ssize_t got = pread(file->fd, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set(error, STATUS_IO, "%s: read at offset %llu: %s", file->path,
                             (unsigned long long)offset, strerror(errno));
        if (got == 0)
            return error_set(error, STATUS_CORRUPT,
                             "%s: ends at offset %llu; it was cut since it was opened", file->path,
                             (unsigned long long)offset);
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return STATUS_OK;
}

static enum status open_regular(struct safetensors *file, struct error *error)
{
    /* O_NONBLOCK: a named pipe in place of a file must not hang the start. */
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0 || fstat(file->fd, &file->opened) != 0)
        return error_set(error, STATUS_IO, "%s: %s", file->path, strerror(errno));
    if (!S_ISREG(file->opened.st_mode))
        return error_set(error, STATUS_IO, "%s: not a regular file", file->path);
    return STATUS_OK;
}

static enum status read_header(struct safetensors *file, struct error *error)
{
    unsigned char first[32];
    uint64_t size = (uint64_t)file->opened.st_size, length = 0;
    size_t got = size < sizeof first ? (size_t)size : sizeof first;
    enum status status = safetensors_read(file, 0, got, first, error);
    if (status == STATUS_OK)
        status = safetensors_prefix(file->path, first, got, size, &length, error);
    if (status != STATUS_OK)
        return status;
    file->data_start = SAFETENSORS_PREFIX + length;
    file->arena = arena_create(length + (64 << 20));
    char *text = malloc(length + 1);
    if (text == NULL || file->arena == NULL)
        status = error_set(error, STATUS_NO_MEMORY, "%s: no memory for its header", file->path);
    else
        status = safetensors_read(file, SAFETENSORS_PREFIX, length, text, error);
    if (status == STATUS_OK)
        status = safetensors_header(file, text, length, size, error);
    free(text);
    return status;
}

enum status safetensors_open(const char *path, int shard, struct safetensors *file,
                             struct error *error)
{
    *file = (struct safetensors){.fd = -1, .path = strdup(path)};
    enum status status = file->path == NULL
                             ? error_set(error, STATUS_NO_MEMORY, "%s: no memory", path)
                             : open_regular(file, error);
    if (status == STATUS_OK)
        status = read_header(file, error);
    if (status != STATUS_OK) {
        safetensors_close(file);
        return status;
    }
    for (size_t i = 0; i < file->count; i++)
        file->entry[i].shard = shard;
    return STATUS_OK;
}

void safetensors_close(struct safetensors *file)
{
    if (file->path != NULL && file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file->entry);
    arena_destroy(file->arena);
    *file = (struct safetensors){.fd = -1};
}
