/* test_dir.h - a folder of its own for a test program, gone when it ends.
 *
 *     cmocka_run_group_tests(tests, make_root, remove_root)
 *     FILE *f = fopen(at("models", "a.bin"), "w");
 *
 * The folder is made where the program runs: in the build folder.
 */
#ifndef SL_BASE_TEST_DIR_H
#define SL_BASE_TEST_DIR_H

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static char root[256];

static inline int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "%s.XXXXXX", program_invocation_short_name);
    return mkdtemp(root) ? 0 : -1;
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline int remove_root(void **state)
{
    (void)state;
    remove_tree(root);
    return 0;
}

/* "<root>/<a>/<b>", b may be NULL; four live at a time. */
static inline const char *at(const char *a, const char *b)
{
    static char bufs[4][512];
    static int next;
    char *buf = bufs[next++ % 4];

    snprintf(buf, sizeof bufs[0], "%s/%s%s%s", root, a, b ? "/" : "", b ? b : "");
    return buf;
}

#endif
