/* exec.h - what an op runs on: threads or a stream, a fixed workspace, a
 * cancel word.
 *
 * An sl_exec carries everything of one execution context that an op may use
 * beside its tensors.  There is no global state.  On `cpu` it owns a pool of
 * threads and, for each, a slice of the workspace (packing buffers, im2col
 * panels): a fixed number of bytes mapped once from the device, so that no op
 * allocates.  On `cuda` it owns a stream and the library handles on it; ops are
 * queued, in order, and have only been started when they return.  On a counting
 * exec nothing is computed at all.
 *
 * Cancel: *cancel != 0 makes any op return SL_ERR_CANCELLED at its next tile,
 * within some milliseconds (cuda: at its next launch; what is queued by then,
 * at most about half a second, still runs).  Outputs are then undefined.  The
 * word stays set at least until the op has returned.
 *
 * Failures on cuda: SL_ERR_DEVICE means that the context is lost and that the
 * process must be replaced; anything else leaves the exec usable.  Since ops
 * are queued, a later call may report what an earlier one has done.
 *
 * Ownership: the worker creates one per device; the cancel word outlives it.
 * Threads:   one op at a time on an exec; the cancel word is set from any.
 */
#ifndef SL_KERNELS_EXEC_H
#define SL_KERNELS_EXEC_H

#include "base/status.h"
#include "kernels/copy.h"
#include "kernels/device.h"
#include "kernels/scratch.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct sl_ops sl_ops; /* kernels/ops.h */
typedef struct sl_exec sl_exec;

#define SL_CPU_WORKSPACE_PER_THREAD ((size_t)8 << 20)
#define SL_CUDA_WORKSPACE_BYTES     ((size_t)64 << 20)

/* How the engine computes on a kind of device: what it puts into the tensors
 * that ops hand to each other.  Residual streams, latents and the sampler's
 * state are F32 or F64 whatever this says. */
typedef struct {
    sl_device_kind kind;
    sl_dtype activation; /* of the transformers: SL_F32 or SL_BF16 */
    sl_dtype frames;     /* of the video VAE, the same */
    int64_t tile_tokens; /* rows that the DiT works on at once, a multiple of 128 */
} sl_numerics;

/* cpu: F32 in tiles of 2048.  cuda: BF16 in tiles of 16384; `exact` makes that
 * F32, which is slow and what golden vectors are compared with.  A job may ask
 * for other frames. */
sl_numerics sl_numerics_of(sl_device_kind kind, bool exact);

/* threads: 0 means one per online core (at most 64).  Maps threads *
 * SL_CPU_WORKSPACE_PER_THREAD from `device`.  cancel may be NULL. */
sl_status sl_exec_create_cpu(sl_exec **out, sl_device *device, int threads,
                             const atomic_uint *cancel, sl_error *err) SL_MUST_CHECK;
/* Maps SL_CUDA_WORKSPACE_BYTES from `device`, which is a cuda one.  Creates every
 * library handle, so that nothing is left to allocate later.  SL_ERR_UNIMPLEMENTED
 * when the build has no CUDA. */
sl_status sl_exec_create_cuda(sl_exec **out, sl_device *device, const sl_numerics *numerics,
                              const atomic_uint *cancel, sl_error *err) SL_MUST_CHECK;
/* Counts for the device that `numerics` is of; NULL: cpu's. */
sl_status sl_exec_create_counting(sl_exec **out, const sl_numerics *numerics,
                                  sl_error *err) SL_MUST_CHECK;
void sl_exec_destroy(sl_exec *exec); /* waits, joins its threads; NULL is fine */

const sl_numerics *sl_exec_numerics(const sl_exec *exec);
/* For what is called from now on; numerics of the exec's own kind (asserted). */
void sl_exec_set_numerics(sl_exec *exec, const sl_numerics *numerics);
/* Ops that need temporary memory (cuda's only) take it from here and give it
 * back before they return; counting takes the same bytes, so that a plan stays
 * exact.  Lent for as long as ops are called; NULL ends it. */
void sl_exec_lend_scratch(sl_exec *exec, sl_scratch *scratch);
sl_scratch *sl_exec_scratch(sl_exec *exec); /* NULL: none was lent */
/* Returns when all that was queued is done (cpu: at once).  Does not look at
 * the cancel word: memory that queued work uses may be given back after it. */
sl_status sl_exec_wait(sl_exec *exec, sl_error *err) SL_MUST_CHECK;

/* The table of ops that run on this exec. */
const sl_ops *sl_exec_ops(const sl_exec *exec);
bool sl_exec_is_counting(const sl_exec *exec);
size_t sl_exec_workspace_bytes(const sl_exec *exec); /* what create mapped */
int sl_exec_thread_count(const sl_exec *exec);
bool sl_exec_cancelled(const sl_exec *exec);

/* Host <-> device, in order with the ops.  src may be changed, and dst holds the
 * bytes, when they return.  For small things: bulk goes through kernels/copy.h.
 * Counting: nothing happens and host memory is untouched. */
sl_status sl_exec_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                        sl_error *err) SL_MUST_CHECK;
sl_status sl_exec_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;

/* Bulk copies to and from the exec's device, beside its ops, which its cancel word
 * stops too.  Not on a counting exec. */
sl_status sl_exec_open_copy(sl_copy **out, sl_exec *exec, sl_error *err) SL_MUST_CHECK;

/* For cpu ops and loaders: runs fn(arg, i, thread, workspace) for i in
 * [0, count) over the pool, i handed out dynamically but each i always doing
 * the same work, so that results never depend on the number of threads.
 * Stops early and returns SL_ERR_CANCELLED once the cancel word is set; a long
 * tile polls sl_exec_cancelled itself and may return half-way.
 * workspace: SL_CPU_WORKSPACE_PER_THREAD bytes of the calling thread, undefined
 * on entry, aligned to 64 bytes or better.  fn must not call sl_exec_parallel.
 * On cuda the pool is of host threads and addresses of the device are none that
 * fn could touch.  Counting: fn is never called. */
typedef void (*sl_tile_fn)(void *arg, int64_t i, int thread, void *workspace);
sl_status sl_exec_parallel(sl_exec *exec, int64_t count, sl_tile_fn fn, void *arg,
                           sl_error *err) SL_MUST_CHECK;

#endif
