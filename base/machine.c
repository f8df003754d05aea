#include "base/machine.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number in a file; SIZE_MAX: there is none, or it says "max". */
static size_t read_limit(const char *path)
{
    unsigned long long value = 0;
    FILE *f = fopen(path, "re");

    if (!f)
        return SIZE_MAX;
    const bool is_number = fscanf(f, "%llu", &value) == 1;
    fclose(f);
    return is_number && value < SIZE_MAX ? (size_t)value : SIZE_MAX;
}

/* The least limit of a group and of those that it is in.  A container often sees its
 * own group as the root, whatever its path says. */
static size_t least_limit(const char *mount, const char *group, const char *file, size_t least)
{
    char path[2 * PATH_MAX];
    size_t length = strlen(group);

    for (;;) {
        snprintf(path, sizeof path, "%s%.*s/%s", mount, (int)length, group, file);
        const size_t limit = read_limit(path);
        least = limit < least ? limit : least;
        if (length == 0)
            return least;
        do
            length--;
        while (length > 0 && group[length] != '/');
    }
}

static bool lists_memory(const char *controllers)
{
    const size_t length = strlen("memory");

    for (const char *at = controllers; at && *at; at = strchr(at, ','), at += at != NULL)
        if (strncmp(at, "memory", length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return true;
    return false;
}

/* "0::/user.slice" of version 2, "4:memory:/docker/3fa" of version 1. */
static size_t limit_of_line(char *line, const char *mount, size_t least)
{
    char old_mount[PATH_MAX];
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;

    if (!group)
        return least;
    *controllers++ = *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';
    if (strlen(group) >= PATH_MAX || strstr(group, ".."))
        return least;
    if (strcmp(group, "/") == 0)
        group[0] = '\0';
    if (*controllers == '\0')
        return least_limit(mount, group, "memory.max", least);
    snprintf(old_mount, sizeof old_mount, "%s/memory", mount);
    return lists_memory(controllers) ? least_limit(old_mount, group, "memory.limit_in_bytes", least)
                                     : least;
}

size_t sl_machine_limit_bytes(const char *groups, const char *mount, size_t most_bytes)
{
    char *line = NULL;
    size_t capacity = 0, least = most_bytes;
    FILE *f = fopen(groups, "re");

    while (f && getline(&line, &capacity, f) > 0)
        least = limit_of_line(line, mount, least);
    free(line);
    if (f)
        fclose(f);
    return least;
}

size_t sl_machine_memory_bytes(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);

    if (pages <= 0 || page_bytes <= 0)
        return 0;
    return sl_machine_limit_bytes("/proc/self/cgroup", "/sys/fs/cgroup",
                                  (size_t)pages * (size_t)page_bytes);
}
