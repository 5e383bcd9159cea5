#include "daemon/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status size_of(int file, const char *path, size_t most, size_t *size,
                           struct error *error)
{
    struct stat about;
    if (fstat(file, &about) != 0)
        return error_set(error, STATUS_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode))
        return error_set(error, STATUS_IO, "%s: not a regular file", path);
    *size = (size_t)about.st_size;
    if (*size > most)
        return error_set(error, STATUS_CORRUPT, "%s: %zu bytes, more than the %zu allowed", path,
                         *size, most);
    return STATUS_OK;
}

static enum status read_all(int file, const char *path, size_t size, char *text,
                            struct error *error)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(file, text + done, size - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set(error, STATUS_IO, "%s: read: %s", path, strerror(errno));
        if (got == 0)
            return error_set(error, STATUS_CORRUPT, "%s: changed while it was read: ends at %zu",
                             path, done);
        done += (size_t)got;
    }
    text[size] = '\0';
    return STATUS_OK;
}

enum status file_read(const char *path, size_t most, char **bytes, size_t *length,
                      struct error *error)
{
    /* O_NONBLOCK: a named pipe in place of a file must not hang the start. */
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return error_set(error, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", path,
                         strerror(errno));
    size_t size = 0;
    char *text = NULL;
    enum status status = size_of(file, path, most, &size, error);
    if (status == STATUS_OK && (text = malloc(size + 1)) == NULL)
        status = error_set(error, STATUS_NO_MEMORY, "%s: no memory for %zu bytes", path, size);
    if (status == STATUS_OK)
        status = read_all(file, path, size, text, error);
    close(file);
    if (status != STATUS_OK) {
        free(text);
        return status;
    }
    *bytes = text;
    *length = size;
    return STATUS_OK;
}
