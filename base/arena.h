/* arena.h - host memory of one lifetime (a request, a model, the process).
 *
 * A bump allocator over malloc'd blocks, with cleanups that run in reverse
 * order when the arena ends, so that files, leases and events end with it.
 *
 * Ownership: the creator destroys it; whatever it handed out dies with it.
 * Threads:   one thread at a time.
 */
#ifndef SL_BASE_ARENA_H
#define SL_BASE_ARENA_H

#include "base/status.h"

#include <stddef.h>

typedef struct sl_arena sl_arena;
typedef void (*sl_cleanup_fn)(void *arg);

/* limit_bytes: the most that sl_arena_alloc will hand out; 0 is no limit. */
sl_status sl_arena_create(sl_arena **out, size_t limit_bytes, sl_error *err) SL_MUST_CHECK;
void sl_arena_destroy(sl_arena *arena); /* cleanups in reverse, then memory; NULL is fine */

/* Zeroed, 16-byte aligned.  NULL when memory or the limit is exhausted. */
void *sl_arena_alloc(sl_arena *arena, size_t size_bytes);
/* The same, not zeroed: for what is about to be filled, and large. */
void *sl_arena_alloc_raw(sl_arena *arena, size_t size_bytes);
char *sl_arena_strdup(sl_arena *arena, const char *text);
char *sl_arena_printf(sl_arena *arena, const char *fmt, ...) SL_PRINTF(2, 3);

/* Runs fn(arg) when the arena ends.  On failure fn has not been registered
 * and the caller still owns arg. */
sl_status sl_arena_on_end(sl_arena *arena, sl_cleanup_fn fn, void *arg,
                          sl_error *err) SL_MUST_CHECK;

size_t sl_arena_used_bytes(const sl_arena *arena);

#endif
