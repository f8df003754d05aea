#include "base/file.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

sl_status sl_make_directory(const char *dir, unsigned mode, sl_error *err)
{
    char path[4096];
    struct stat st;

    if (dir[0] == '\0')
        return sl_fail(err, SL_ERR_INVALID, "could not make a directory without a name");
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return sl_fail(err, SL_ERR_INVALID, "path \"%.100s...\" is too long", dir);
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST)
            return sl_fail_errno(err, "could not make the directory \"%s\"", path);
        *p = '/';
    }
    if (mkdir(path, mode) != 0 && errno != EEXIST)
        return sl_fail_errno(err, "could not make the directory \"%s\"", path);
    if (stat(path, &st) != 0)
        return sl_fail_errno(err, "could not look at \"%s\"", path);
    if (!S_ISDIR(st.st_mode))
        return sl_fail(err, SL_ERR_EXISTS, "\"%s\" is there and is no directory", path);
    return SL_OK;
}
