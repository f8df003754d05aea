/* size.h - arithmetic on sizes that come from files, sockets and requests.
 *
 * Each function returns false and leaves *out alone when the exact result
 * does not fit.  Memory is size_t, element counts and offsets int64_t.
 */
#ifndef SL_BASE_SIZE_H
#define SL_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_KIB ((size_t)1 << 10)
#define SL_MIB ((size_t)1 << 20)
#define SL_GIB ((size_t)1 << 30)

static inline bool sl_size_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool sl_size_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool sl_count_mul(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* Rounds up to a multiple of align, which is a power of two. */
static inline bool sl_size_align(size_t n, size_t align, size_t *out)
{
    size_t r;
    if (!sl_size_add(n, align - 1, &r))
        return false;
    *out = r & ~(align - 1);
    return true;
}

static inline int64_t sl_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Parses "8GiB", "512MiB", "12GB", "4096" (bytes).  Suffixes: B, KiB, MiB,
 * GiB, TiB and decimal KB, MB, GB, TB; a fraction is allowed before a suffix.
 * False for anything else, for overflow and for a result below 1 byte. */
bool sl_size_parse(const char *text, size_t *out);

/* "7.53 GiB"; buf holds at least 32 bytes; returns buf. */
char *sl_size_format(size_t size_bytes, char *buf, size_t buf_bytes);

#endif
