/* exec.h - what an op runs on: threads, a fixed workspace, a cancel word.
 *
 * An sl_exec carries everything of one execution context that an op may use
 * beside its tensors.  There is no global state.  On `cpu` it owns a pool of
 * threads and, for each, a slice of the workspace (packing buffers, im2col
 * panels): a fixed number of bytes mapped once from the device, so that no op
 * allocates.  On a counting exec nothing is computed at all.
 *
 * Cancel: *cancel != 0 makes any op return SL_ERR_CANCELLED at its next tile,
 * within some milliseconds.  Outputs are then undefined.  The word stays set
 * at least until the op has returned.
 *
 * Ownership: the worker creates one per device; the cancel word outlives it.
 * Threads:   one op at a time on an exec; the cancel word is set from any.
 */
#ifndef SL_KERNELS_EXEC_H
#define SL_KERNELS_EXEC_H

#include "base/status.h"
#include "kernels/device.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct sl_ops sl_ops; /* kernels/ops.h */
typedef struct sl_exec sl_exec;

#define SL_CPU_WORKSPACE_PER_THREAD ((size_t)8 << 20)

/* threads: 0 means one per online core (at most 64).  Maps threads *
 * SL_CPU_WORKSPACE_PER_THREAD from `device`.  cancel may be NULL. */
sl_status sl_exec_create_cpu(sl_exec **out, sl_device *device, int threads,
                             const atomic_uint *cancel, sl_error *err) SL_MUST_CHECK;
sl_status sl_exec_create_counting(sl_exec **out, sl_error *err) SL_MUST_CHECK;
void sl_exec_destroy(sl_exec *exec); /* joins its threads; NULL is fine */

/* The table of ops that run on this exec. */
const sl_ops *sl_exec_ops(const sl_exec *exec);
bool sl_exec_is_counting(const sl_exec *exec);
size_t sl_exec_workspace_bytes(const sl_exec *exec); /* what create mapped */
int sl_exec_thread_count(const sl_exec *exec);
bool sl_exec_cancelled(const sl_exec *exec);

/* Host <-> device.  Counting: nothing happens and host memory is untouched. */
sl_status sl_exec_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                        sl_error *err) SL_MUST_CHECK;
sl_status sl_exec_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;

/* For cpu ops and loaders: runs fn(arg, i, thread, workspace) for i in
 * [0, count) over the pool, i handed out dynamically but each i always doing
 * the same work, so that results never depend on the number of threads.
 * Stops early and returns SL_ERR_CANCELLED once the cancel word is set; a long
 * tile polls sl_exec_cancelled itself and may return half-way.
 * workspace: SL_CPU_WORKSPACE_PER_THREAD bytes of the calling thread, undefined
 * on entry, aligned to 64 bytes or better.  fn must not call sl_exec_parallel.
 * Counting: fn is never called. */
typedef void (*sl_tile_fn)(void *arg, int64_t i, int thread, void *workspace);
sl_status sl_exec_parallel(sl_exec *exec, int64_t count, sl_tile_fn fn, void *arg,
                           sl_error *err) SL_MUST_CHECK;

#endif
