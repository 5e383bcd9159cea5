/* How much memory the control groups of this process allow: in a container far less than the pages
 * that the host has. */
#ifndef JETD_BASE_CGROUP_H
#define JETD_BASE_CGROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes; UINT64_MAX where nothing limits it. The least of the own group and all above it, of either
 * version, where they are mounted at the usual places. `root` stands before /proc and /sys: "" but
 * for tests. */
uint64_t cgroup_memory_limit(const char *root);

/* The text of memory.max (v2) or memory.limit_in_bytes (v1): UINT64_MAX for "max" and for what is
 * no number. */
uint64_t cgroup_limit_parse(const char *text);

/* The group of this process in the text of /proc/self/cgroup: of the v1 controller "memory", or of
 * v2 for NULL. False: none, or longer than `room`. */
bool cgroup_path_parse(const char *text, const char *controller, char *path, size_t room);

#endif
