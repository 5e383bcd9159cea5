/* Bearer tokens from a file, one a line; empty lines and lines that start with # do not count. */
#ifndef JETD_DAEMON_KEYS_H
#define JETD_DAEMON_KEYS_H

#include "daemon/base/status.h"

enum { KEYS_MAX = 1024, KEY_BYTES_MAX = 512 };

struct keys {
    const char *const *key; /* [count] */
    int count;
    char *text; /* of the whole file */
};

/* `path` NULL: none. STATUS_CONFIG names file and line: too long, no printable ASCII, too many, or
 * a file without any key. */
enum status keys_load(const char *path, struct keys *keys, struct error *error);
void keys_free(struct keys *keys);

#endif
