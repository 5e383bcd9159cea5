/* Whole files in memory, such as a user or a checkpoint names: no larger than asked for, and
 * nothing that blocks. */
#ifndef JETD_BASE_FILE_H
#define JETD_BASE_FILE_H

#include <stddef.h>

#include "daemon/base/status.h"

/* The bytes of a regular file and a zero byte behind them, malloc'd. STATUS_NOT_FOUND: no such
 * file; STATUS_IO: the system refuses, or it is a pipe, a folder or a device; STATUS_CORRUPT: more
 * than `most` bytes; STATUS_NO_MEMORY. The error names the path. */
enum status file_read(const char *path, size_t most, char **bytes, size_t *length,
                      struct error *error);

#endif
