/* JSON from files that may be hostile: limits on bytes, depth and values are checked by one scan
 * before anything is built, duplicate keys are refused, and every getter names file and field path
 * in its error. The library behind it (jansson) stays in json.c.
 *
 * A `struct document` owns a parsed text; a `struct field` is a place in it, passed by value, and
 * lives as long as the text. */
#ifndef JETD_BASE_JSON_H
#define JETD_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/status.h"

struct document;
struct json_t; /* the library's value */

struct document_limits {
    size_t bytes;  /* of the text */
    size_t depth;  /* nesting of arrays and objects */
    size_t values; /* at most, members and elements and containers together */
};

struct field {
    const char *file;
    const struct json_t *value; /* NULL: absent */
    char path[160];             /* "rope_scaling.factor"; cut where too long */
};

/* STATUS_CORRUPT with line, column and offset where the text is no JSON or over a limit.
 * `file` stands in errors and outlives the result. */
enum status document_parse(const char *file, const char *text, size_t length,
                           struct document_limits limits, struct document **json,
                           struct error *error);
/* Reads a regular file. STATUS_IO where the system refuses (STATUS_NOT_FOUND: no such file),
 * STATUS_CORRUPT when it is a git-LFS pointer. `path` outlives the result. */
enum status document_load(const char *path, struct document_limits limits, struct document **json,
                          struct error *error);
void document_free(struct document *json); /* NULL is fine */
struct field document_root(const struct document *json);

/* Whether text is what git-LFS leaves in place of a file that was not fetched. */
bool text_is_lfs_pointer(const char *text, size_t length);

/* A member of an object; value NULL when absent, null, or `at` is no object. */
struct field field_member(struct field at, const char *key);
struct field field_element(struct field at, size_t index);
static inline bool field_present(struct field at)
{
    return at.value != NULL;
}
bool field_is_object(struct field at);
bool field_is_array(struct field at);
bool field_is_string(struct field at);
size_t field_size(struct field at); /* members or elements; 0 otherwise */

/* STATUS_CONFIG naming file and path when absent, of another type or outside [low, high]. */
enum status field_integer(struct field at, int64_t low, int64_t high, int64_t *value,
                          struct error *error);
enum status field_int(struct field at, int low, int high, int *value, struct error *error);
/* A finite number, or a string that is one ("1e-5"). */
enum status field_number(struct field at, double low, double high, double *value,
                         struct error *error);
enum status field_bool(struct field at, bool *value, struct error *error);
/* UTF-8, owned by the text. */
enum status field_string(struct field at, const char **value, struct error *error);
/* Fails with STATUS_CONFIG unless `at` is an object. */
enum status field_expect_object(struct field at, struct error *error);

/* Calls `visit` for each member of an object in the text's order, until one fails. */
typedef enum status field_visit(void *context, const char *key, struct field at,
                                struct error *error);
enum status field_each(struct field at, field_visit *visit, void *context, struct error *error);

#endif
