/* Choices of a back end that were made by timing, in a text file between runs: timing is noisy, and
 * two processes that choose differently differ in bits. Parsing and printing are pure; what a file
 * says is a suggestion, which a back end must check against what it would consider anyway.
 *
 *   jetd products 1
 *   on DEVICE AND VERSIONS
 *   COLUMNS DEPTH ROW_CLASS act|f32 bias|none form NUMBER
 *   COLUMNS DEPTH ROW_CLASS act|f32 bias|none algorithm HEX */
#ifndef JETD_KERNELS_PICKS_H
#define JETD_KERNELS_PICKS_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PICK_BYTES = 64, PICKS_MAX = 2048, PICKS_KEY_MAX = 256, PICKS_TEXT_MAX = 512 << 10 };

/* How a product is computed: one of the back end's own forms, or a library's algorithm. */
struct pick {
    int columns, depth, row_class; /* as the back end classes row counts */
    bool float_out, bias;
    int form;                            /* -1: the algorithm */
    unsigned char algorithm[PICK_BYTES]; /* the library's own description */
};

struct picks {
    char key[PICKS_KEY_MAX]; /* of device and versions; printable, one line, not empty */
    int count;
    struct pick pick[PICKS_MAX];
};

/* Of the same product as `like`; NULL: none. */
const struct pick *picks_find(const struct picks *picks, const struct pick *like);
/* Replaces what stands for the product; false: full. */
bool picks_add(struct picks *picks, const struct pick *pick);

/* STATUS_CORRUPT names the line; *picks then holds anything. */
enum status picks_parse(const char *text, size_t length, struct picks *picks, struct error *error);
/* Into out [PICKS_TEXT_MAX]; returns the length. */
size_t picks_print(const struct picks *picks, char *out);

/* STATUS_NOT_FOUND: no such file; else as picks_parse, or STATUS_IO. */
enum status picks_load(const char *path, struct picks *picks, struct error *error);
/* Written beside the file and renamed: a reader sees the old file or the new one. */
enum status picks_save(const char *path, const struct picks *picks, struct error *error);

/* The user's file of choices, jetd/products in $XDG_CACHE_HOME or ~/.cache, into path [room]; its
 * folder is made if need be. NULL: there is no such place. */
const char *picks_place(char *path, size_t room);

#ifdef __cplusplus
}
#endif

#endif
