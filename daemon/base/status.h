/* Status codes and error texts.
 *
 * `enum status` is ordered by what a failure takes down: a request, this process, or the whole
 * cluster. Whoever first sees a failure fills a `struct error` with the exact cause (file, field,
 * offset); everyone else only passes it up. An error keeps its first text: clean-up never
 * overwrites the cause. */
#ifndef JETD_BASE_STATUS_H
#define JETD_BASE_STATUS_H

#include <stdbool.h>

enum status {
    STATUS_OK = 0,
    /* one request: its stream ends, the step goes on */
    STATUS_CANCELLED,
    STATUS_DEADLINE_EXCEEDED,
    STATUS_INVALID_ARGUMENT,
    STATUS_NOT_FOUND,
    STATUS_FAILED_PRECONDITION,
    STATUS_RESOURCE_EXHAUSTED,
    STATUS_UNAUTHENTICATED,
    STATUS_UNIMPLEMENTED,
    /* this process: it logs once, aborts its fabric and exits */
    STATUS_CONFIG,    /* options or config.json ask for what cannot be */
    STATUS_CORRUPT,   /* a file's content is not what its format promises */
    STATUS_IO,        /* the operating system refused a read, write, map or bind */
    STATUS_NO_MEMORY, /* host or device memory ran out at start */
    STATUS_DEVICE,    /* the accelerator failed */
    STATUS_INTERNAL,  /* a broken invariant: always a bug */
    /* the cluster: every rank ends */
    STATUS_PEER_LOST,     /* a rank died, fell silent, or stays in a step or in loading */
    STATUS_PEER_MISMATCH, /* ranks disagree about model, plan or binary */
    STATUS_ABORTED,       /* another rank failed first; its message has the cause */
};

struct error {
    enum status status;
    char text[512]; /* UTF-8, one line, never empty once status is set */
};

/* "invalid argument", ...; never NULL. */
const char *status_name(enum status status);

/* Of a process that ends with `status`: 0; 2 where options or files are to blame, 3 where the
 * accelerator is; else 1. */
int status_exit_code(enum status status);

/* Sets `error` (may be NULL) unless it already holds a failure, and returns `status`, so that
 * `return error_set(error, STATUS_CORRUPT, "%s: ...", path);` reads as one step. */
__attribute__((format(printf, 3, 4))) enum status error_set(struct error *error, enum status status,
                                                            const char *format, ...);

/* Puts "text: " in front of an error's text: the file or field that the callee did not know. */
__attribute__((format(printf, 2, 3))) enum status error_prefix(struct error *error,
                                                               const char *format, ...);

void error_clear(struct error *error);

#endif
