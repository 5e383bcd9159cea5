#include "daemon/base/cgroup.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t cgroup_limit_parse(const char *text)
{
    if (text[0] < '0' || text[0] > '9') /* strtoull takes signs */
        return UINT64_MAX;
    return strtoull(text, NULL, 10); /* ULLONG_MAX when out of range */
}

/* Whether `name` is in the list "cpu,memory" of `length` bytes. */
static bool list_has(const char *list, size_t length, const char *name)
{
    size_t wanted = strlen(name);
    for (const char *end = list + length; list < end;) {
        const char *comma = memchr(list, ',', (size_t)(end - list));
        size_t item = (size_t)((comma != NULL ? comma : end) - list);
        if (item == wanted && memcmp(list, name, wanted) == 0)
            return true;
        list += item + 1;
    }
    return false;
}

/* Lines are "number:controllers:path"; v2 has no controllers. */
bool cgroup_path_parse(const char *text, const char *controller, char *path, size_t room)
{
    for (const char *line = text; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        const char *list = memchr(line, ':', length);
        const char *rest =
            list != NULL ? memchr(list + 1, ':', length - (size_t)(list + 1 - line)) : NULL;
        if (rest != NULL) {
            size_t listed = (size_t)(rest - list - 1), bytes = length - (size_t)(rest + 1 - line);
            bool found = controller == NULL ? listed == 0 : list_has(list + 1, listed, controller);
            if (found && bytes < room) {
                memcpy(path, rest + 1, bytes);
                path[bytes] = '\0';
                return true;
            }
        }
        line += length + (line[length] == '\n');
    }
    return false;
}

/* The file's first bytes as text; false where it cannot be read. */
static bool read_text(const char *path, char *text, size_t room)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    size_t length = fread(text, 1, room - 1, file);
    fclose(file);
    text[length] = '\0';
    return length > 0;
}

/* From the group up to the mount itself, which inside a container is often all that is seen: the
 * group's path is then the host's, and its own files are missing. */
static uint64_t least_upwards(const char *root, const char *mount, char *group, const char *file)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        char path[PATH_MAX], text[64];
        int length = snprintf(path, sizeof path, "%s%s%s/%s", root, mount, group, file);
        if (length > 0 && (size_t)length < sizeof path && read_text(path, text, sizeof text)) {
            uint64_t limit = cgroup_limit_parse(text);
            least = limit < least ? limit : least;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return least;
        *slash = '\0';
    }
}

uint64_t cgroup_memory_limit(const char *root)
{
    char path[PATH_MAX], text[8192], group[PATH_MAX];
    uint64_t least = UINT64_MAX;
    int length = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (length < 0 || (size_t)length >= sizeof path || !read_text(path, text, sizeof text))
        return least;
    if (cgroup_path_parse(text, NULL, group, sizeof group))
        least = least_upwards(root, "/sys/fs/cgroup", group, "memory.max");
    if (cgroup_path_parse(text, "memory", group, sizeof group)) {
        uint64_t old = least_upwards(root, "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
        least = old < least ? old : least;
    }
    return least;
}
