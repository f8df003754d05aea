/* exec_part.h - the head that an exec of any kind begins with; for exec*.c and
 * the files that implement ops only.
 *
 * A kind embeds the head as its first member, fills it with sl_exec_head_init
 * and frees everything in its destroy, where sl_exec_head_fini undoes the head.
 */
#ifndef SL_KERNELS_EXEC_PART_H
#define SL_KERNELS_EXEC_PART_H

#include "kernels/exec.h"
#include "kernels/pool.h"

/* What differs between kinds behind exec.h. */
typedef struct {
    void (*destroy)(sl_exec *exec); /* also of a half-built one */
    sl_status (*write)(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                       sl_error *err);
    sl_status (*read)(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                      sl_error *err);
    sl_status (*wait)(sl_exec *exec, sl_error *err);
} sl_exec_kind;

struct sl_exec {
    const sl_exec_kind *kind;
    const sl_ops *ops;
    sl_device *device; /* NULL when counting */
    sl_numerics numerics;
    bool counting;
    const atomic_uint *cancel; /* may be NULL */
    sl_scratch *scratch;       /* lent; may be NULL */
    sl_region *workspace;      /* NULL when counting */
    sl_pool *pool;             /* NULL when counting */
};

void sl_exec_head_init(sl_exec *exec, const sl_exec_kind *kind, const sl_ops *ops,
                       sl_device *device, const sl_numerics *numerics, const atomic_uint *cancel);
/* Stops the pool, then unmaps the workspace. */
void sl_exec_head_fini(sl_exec *exec);

#endif
