/* Memory named by lifetime: an arena is freed all at once (a request's bytes, a parsed file).
 * Not for two threads at once. */
#ifndef JETD_BASE_ARENA_H
#define JETD_BASE_ARENA_H

#include <stddef.h>

struct arena;

/* `limit` caps the bytes ever handed out; past it allocations return NULL. NULL: out of memory. */
struct arena *arena_create(size_t limit);
void arena_destroy(struct arena *arena); /* NULL is fine */

/* 16-byte aligned, zeroed; NULL past the limit or out of memory. bytes = count * size, checked. */
void *arena_allocate(struct arena *arena, size_t count, size_t size);
/* A NUL-terminated copy of `length` bytes. */
char *arena_string(struct arena *arena, const char *text, size_t length);
void *arena_copy(struct arena *arena, const void *from, size_t count, size_t size);

#endif
