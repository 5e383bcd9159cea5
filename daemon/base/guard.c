#include "daemon/base/guard.h"

#ifndef JETD_GUARD

void guard_enter(const char *what)
{
    (void)what;
}

void guard_leave(void)
{
}

#else

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* Names that the linker's --wrap gives. */
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
int __real_posix_memalign(void **memory, size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes);

static _Thread_local const char *section;

void guard_enter(const char *what)
{
    section = what;
}

void guard_leave(void)
{
    section = NULL;
}

static void check(const char *function, size_t bytes)
{
    if (section == NULL)
        return;
    const char *what = section;
    section = NULL; /* the message itself may allocate */
    fprintf(stderr, "guard: %s(%zu) inside %s\n", function, bytes, what);
    abort();
}

void *__wrap_malloc(size_t bytes)
{
    check("malloc", bytes);
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    check("calloc", count * bytes);
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    check("realloc", bytes);
    return __real_realloc(memory, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    check("aligned_alloc", bytes);
    return __real_aligned_alloc(alignment, bytes);
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    check("posix_memalign", bytes);
    return __real_posix_memalign(memory, alignment, bytes);
}

#endif
