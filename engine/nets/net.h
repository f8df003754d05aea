/* net.h - what the networks and pipelines share: leaving on failure, taps.
 *
 * Private to engine/nets and engine/pipeline.
 */
#ifndef SL_ENGINE_NETS_NET_H
#define SL_ENGINE_NETS_NET_H

#include "engine/nets/tap.h"
#include "kernels/exec.h"

#include <stdio.h>

/* A network is a long straight line of ops.  Sets the function's `status` and
 * leaves through its `done:` at the first failure. */
#define SL_TRY(expr)                                                                               \
    do {                                                                                           \
        status = (expr);                                                                           \
        if (status != SL_OK)                                                                       \
            goto done;                                                                             \
    } while (0)

static inline bool sl_tap_wanted(const sl_exec *exec, const sl_tap *tap)
{
    return tap && tap->fn && !sl_exec_is_counting(exec);
}

static inline void sl_tap_show(const sl_exec *exec, const sl_tap *tap, const char *name,
                               const sl_tensor *tensor)
{
    if (sl_tap_wanted(exec, tap))
        tap->fn(tap->arg, name, tensor);
}

/* "<stem><index>" */
static inline void sl_tap_show_index(const sl_exec *exec, const sl_tap *tap, const char *stem,
                                     int64_t index, const sl_tensor *tensor)
{
    char name[64];

    if (!sl_tap_wanted(exec, tap))
        return;
    snprintf(name, sizeof name, "%s%lld", stem, (long long)index);
    tap->fn(tap->arg, name, tensor);
}

#endif
