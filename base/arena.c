#include "base/arena.h"

#include "base/size.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 16 * 1024, ALIGN = 16 };

typedef struct block {
    struct block *next;
    size_t size_bytes;
    size_t used_bytes;
    size_t pad; /* keeps data[] 16-byte aligned */
    unsigned char data[];
} block;

typedef struct cleanup {
    struct cleanup *next;
    sl_cleanup_fn fn;
    void *arg;
} cleanup;

struct sl_arena {
    block *blocks;
    cleanup *cleanups;
    size_t limit_bytes;
    size_t used_bytes;
};

_Static_assert(offsetof(block, data) % ALIGN == 0, "block data must be aligned");

sl_status sl_arena_create(sl_arena **out, size_t limit_bytes, sl_error *err)
{
    sl_arena *arena = calloc(1, sizeof *arena);

    if (!arena)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an arena");
    arena->limit_bytes = limit_bytes;
    *out = arena;
    return SL_OK;
}

void sl_arena_destroy(sl_arena *arena)
{
    if (!arena)
        return;
    while (arena->cleanups) {
        /* The record itself lives in a block, which is still there. */
        cleanup *c = arena->cleanups;
        arena->cleanups = c->next;
        c->fn(c->arg);
    }
    while (arena->blocks) {
        block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
    free(arena);
}

void *sl_arena_alloc_raw(sl_arena *arena, size_t size_bytes)
{
    size_t need, total;

    if (!sl_size_align(size_bytes ? size_bytes : 1, ALIGN, &need) ||
        !sl_size_add(arena->used_bytes, need, &total))
        return NULL;
    if (arena->limit_bytes && total > arena->limit_bytes)
        return NULL;
    block *b = arena->blocks;
    if (!b || b->size_bytes - b->used_bytes < need) {
        const size_t data_bytes = need > BLOCK_BYTES ? need : (size_t)BLOCK_BYTES;
        size_t bytes;
        if (!sl_size_add(data_bytes, sizeof *b, &bytes))
            return NULL;
        b = malloc(bytes);
        if (!b)
            return NULL;
        b->size_bytes = data_bytes;
        b->used_bytes = 0;
        b->next = arena->blocks;
        arena->blocks = b;
    }
    void *p = b->data + b->used_bytes;
    b->used_bytes += need;
    arena->used_bytes = total;
    return p;
}

void *sl_arena_alloc(sl_arena *arena, size_t size_bytes)
{
    void *p = sl_arena_alloc_raw(arena, size_bytes);

    return p ? memset(p, 0, size_bytes) : NULL;
}

char *sl_arena_strdup(sl_arena *arena, const char *text)
{
    const size_t bytes = strlen(text) + 1;
    char *copy = sl_arena_alloc(arena, bytes);

    if (copy)
        memcpy(copy, text, bytes);
    return copy;
}

char *sl_arena_printf(sl_arena *arena, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    const int length = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (length < 0)
        return NULL;
    char *text = sl_arena_alloc(arena, (size_t)length + 1);
    if (text) {
        va_start(args, fmt);
        vsnprintf(text, (size_t)length + 1, fmt, args);
        va_end(args);
    }
    return text;
}

sl_status sl_arena_on_end(sl_arena *arena, sl_cleanup_fn fn, void *arg, sl_error *err)
{
    cleanup *c = sl_arena_alloc(arena, sizeof *c);

    if (!c)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a cleanup record");
    c->fn = fn;
    c->arg = arg;
    c->next = arena->cleanups;
    arena->cleanups = c;
    return SL_OK;
}

size_t sl_arena_used_bytes(const sl_arena *arena)
{
    return arena->used_bytes;
}
