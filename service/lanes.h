/* lanes.h - what a worker's lanes take: how many there are by default, their
 * workspaces together, and what a card holds beside the arena.
 *
 * The daemon expects this much until the worker says what it really is, and
 * `sluice budget` plans with it.
 *
 * Threads: any.
 */
#ifndef SL_SERVICE_LANES_H
#define SL_SERVICE_LANES_H

#include "kernels/device.h"
#include "kernels/exec.h"

#include <unistd.h>

enum {
    SL_LANES_LOADER_THREADS = 2, /* at most; of the lane that loads beside the jobs' */
    SL_LANES_MAX_THREADS = 64,   /* of one lane, as kernels/exec.h has it */
};

/* Of a card, beside the arena: context, modules, library handles (kernels/device.h
 * calls it the reserve).  On the safe side until a worker has measured its own: an
 * H200 has 527 MiB of context before the first op, and 12 for each exec. */
#define SL_LANES_CUDA_RESERVE_BYTES ((size_t)1 << 30)

/* What a device of this limit has for weights, activations and workspaces. */
static inline size_t sl_lanes_arena_bytes(sl_device_kind kind, size_t limit_bytes)
{
    const size_t reserve_bytes = kind == SL_DEVICE_CUDA ? SL_LANES_CUDA_RESERVE_BYTES : 0;

    return limit_bytes > reserve_bytes + SL_GRANULE_BYTES ? limit_bytes - reserve_bytes
                                                          : SL_GRANULE_BYTES;
}

/* Jobs side by side when the configuration does not say. */
static inline int sl_lanes_default(sl_device_kind kind)
{
    return kind == SL_DEVICE_CPU ? 2 : 1;
}

/* running: job lanes, beside which there is the loader's.  threads: of each on cpu;
 * 0: one per core. */
static inline size_t sl_lanes_workspace_bytes(sl_device_kind kind, int running, int threads)
{
    if (kind == SL_DEVICE_CUDA)
        return (size_t)(running + 1) * SL_CUDA_WORKSPACE_BYTES;
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    long each = threads > 0 ? threads : online > 0 ? online : 1;

    if (each > SL_LANES_MAX_THREADS)
        each = SL_LANES_MAX_THREADS;
    const long loader = each < SL_LANES_LOADER_THREADS ? each : SL_LANES_LOADER_THREADS;
    return (size_t)(running * each + loader) * SL_CPU_WORKSPACE_PER_THREAD;
}

#endif
