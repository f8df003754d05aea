/* Limits of control groups, of both versions, as files say them. */
#include "base/machine.h"

#include "base/test.h"
#include "base/test_dir.h"

#include <string.h>

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    SL_CHECK(f && fputs(text, f) >= 0);
    fclose(f);
}

/* root/a/b: the folders that are made, and the limit in the last one. */
static void make_group(const char *path, const char *file, const char *text)
{
    char at[600];

    for (const char *p = path; (p = strchr(p, '/')) != NULL; p++) {
        snprintf(at, sizeof at, "%.*s", (int)(p - path), path);
        SL_CHECK(mkdir(at, 0700) == 0 || errno == EEXIST);
    }
    SL_CHECK(mkdir(path, 0700) == 0 || errno == EEXIST);
    snprintf(at, sizeof at, "%s/%s", path, file);
    write_text(at, text);
}

static size_t limit(const char *groups)
{
    char path[600];

    snprintf(path, sizeof path, "%s/groups", root);
    write_text(path, groups);
    return sl_machine_limit_bytes(path, root, 1000);
}

SL_TEST(the_least_limit_counts)
{
    char path[500];

    SL_CHECK(limit("") == 1000 && limit("nonsense\n:\n::\n3:\n") == 1000);
    SL_CHECK(limit("0::/one/two\n") == 1000); /* no such files */
    snprintf(path, sizeof path, "%s/one", root);
    make_group(path, "memory.max", "600\n");
    snprintf(path, sizeof path, "%s/one/two", root);
    make_group(path, "memory.max", "max\n");
    SL_CHECK(limit("0::/one/two\n") == 600 && limit("0::/two\n") == 1000);
    make_group(path, "memory.max", "500\n");
    SL_CHECK(limit("0::/one/two\n") == 500 && limit("0::/one\n") == 600);
    SL_CHECK(limit("0::/one/../one/two\n") == 1000);
    make_group(path, "memory.max", "5000000000\n");
    SL_CHECK(limit("0::/one/two\n") == 600);

    snprintf(path, sizeof path, "%s/memory/box", root);
    make_group(path, "memory.limit_in_bytes", "300\n");
    SL_CHECK(limit("5:cpu,memory:/box\n0::/one\n") == 300);
    SL_CHECK(limit("5:cpu,memoryless:/box\n") == 1000);
    snprintf(path, sizeof path, "%s/memory", root);
    make_group(path, "memory.limit_in_bytes", "200\n"); /* a container sees itself as the root */
    SL_CHECK(limit("4:memory:/elsewhere/box\n") == 200);
}

SL_TEST(this_machine_has_memory)
{
    (void)err;
    SL_CHECK(sl_machine_memory_bytes() > (size_t)64 << 20);
    SL_CHECK(sl_machine_limit_bytes("/nowhere", "/nowhere", 7) == 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(the_least_limit_counts),
        SL_RUN(this_machine_has_memory),
    };

    return cmocka_run_group_tests(tests, make_root, remove_root);
}
