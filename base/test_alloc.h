/* test_alloc.h - the n-th allocation of a test program fails.
 *
 *     allocations = 0;
 *     fail_at = n;                      (0: none fails)
 *     status = f(...);
 *     const bool reached = allocations >= n;
 *     fail_at = 0;
 *
 * Included by one file of a program that sl_test_wrap_allocations() has named:
 * the linker sends the program's own calls, not its libraries', through here.
 * One thread only.
 */
#ifndef SL_BASE_TEST_ALLOC_H
#define SL_BASE_TEST_ALLOC_H

#include <errno.h>
#include <stddef.h>

static int fail_at, allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_reallocarray(void *p, size_t n, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
char *__wrap_strdup(const char *text);

static int refuse_allocation(void)
{
    if (fail_at == 0 || ++allocations != fail_at)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *__wrap_malloc(size_t size)
{
    return refuse_allocation() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return refuse_allocation() ? NULL : __real_calloc(n, size);
}

void *__wrap_reallocarray(void *p, size_t n, size_t size)
{
    return refuse_allocation() ? NULL : __real_reallocarray(p, n, size);
}

char *__wrap_strdup(const char *text)
{
    return refuse_allocation() ? NULL : __real_strdup(text);
}

#endif
