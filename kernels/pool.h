/* pool.h - the threads of an exec: tiles handed out to them one by one.
 *
 * Which thread does a tile is chance, what a tile does is not: results never
 * depend on the number of threads.
 *
 * Ownership: the exec owns its pool; the workspace and the cancel word are
 *            borrowed and outlive it.
 * Threads:   one run at a time.
 */
#ifndef SL_KERNELS_POOL_H
#define SL_KERNELS_POOL_H

#include "kernels/exec.h"

enum { SL_POOL_MAX_THREADS = 64 };

typedef struct sl_pool sl_pool;

int sl_pool_online_cores(void); /* 1 to SL_POOL_MAX_THREADS */

/* workspace: threads * SL_CPU_WORKSPACE_PER_THREAD bytes.  The calling thread is
 * one of `threads`.  cancel may be NULL. */
sl_status sl_pool_create(sl_pool **out, int threads, void *workspace, const atomic_uint *cancel,
                         sl_error *err) SL_MUST_CHECK;
void sl_pool_destroy(sl_pool *pool); /* joins; NULL is fine */
int sl_pool_thread_count(const sl_pool *pool);
/* As sl_exec_parallel. */
sl_status sl_pool_run(sl_pool *pool, int64_t count, sl_tile_fn fn, void *arg,
                      sl_error *err) SL_MUST_CHECK;

#endif
