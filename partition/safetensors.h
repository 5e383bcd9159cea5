/* One safetensors file: 8 bytes of header length, a JSON header, then the data.
 *
 * The header is read and judged before anything sized by it is allocated: at most 16 MiB, 65536
 * tensors, 8 dimensions, no duplicate key, no overflow, no overlap, no hole, nothing before,
 * between or after the tensors. Format: the safetensors project's README.
 *
 * Data is read with pread, not through a map: a file that is cut or rewritten while it is in use
 * then gives an error instead of SIGBUS, and weights are converted on their way anyway, so that a
 * map would save no copy. Never more than one small buffer of a file is in memory. */
#ifndef JETD_PARTITION_SAFETENSORS_H
#define JETD_PARTITION_SAFETENSORS_H

#include <sys/stat.h>

#include "daemon/base/arena.h"
#include "partition/partition.h"

enum {
    SAFETENSORS_PREFIX = 8,
    SAFETENSORS_HEADER_MAX = 16 << 20,
    SAFETENSORS_TENSORS_MAX = 65536,
};

struct safetensors {
    char *path; /* stands in errors, owned */
    int fd;
    struct stat opened; /* size and times when it was checked */
    uint64_t data_start;
    struct arena *arena;        /* names */
    struct tensor_entry *entry; /* [count], by offset; offsets are in the file */
    size_t count;
};

/* Opens `path` and checks all of the above. On failure `file` holds nothing. */
enum status safetensors_open(const char *path, int shard, struct safetensors *file,
                             struct error *error);
void safetensors_close(struct safetensors *file); /* a zeroed one is fine */

/* Reads [offset, offset + size) of the file. STATUS_CORRUPT when it is no longer what was opened.
 * Thread-safe. */
enum status safetensors_read(const struct safetensors *file, uint64_t offset, size_t size,
                             void *out, struct error *error);
/* Whether size or modification time changed since the file was opened. */
enum status safetensors_unchanged(const struct safetensors *file, struct error *error);

/* The checks themselves, on memory; for safetensors_open, tests and fuzzing. */

/* Header length from the first bytes (`got` of 8) of a file of `size` bytes. */
enum status safetensors_prefix(const char *path, const unsigned char *first, size_t got,
                               uint64_t size, uint64_t *header, struct error *error);
/* Fills file->entry and count from the header; path and arena are set by the caller, data starts
 * at `8 + length` of a file of `size` bytes. */
enum status safetensors_header(struct safetensors *file, const char *text, uint64_t length,
                               uint64_t size, struct error *error);

#endif
