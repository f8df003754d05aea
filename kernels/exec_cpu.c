#include "kernels/exec.h"

#include "kernels/exec_part.h"
#include "kernels/gemm.h"
#include "kernels/ops.h"

#include <stdlib.h>
#include <string.h>

static void cpu_destroy(sl_exec *exec)
{
    sl_exec_head_fini(exec);
    free(exec);
}

static sl_status cpu_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                           sl_error *err)
{
    (void)exec, (void)err; /* a copy between host addresses cannot fail */
    if (size_bytes)
        memcpy(d_dst, src, size_bytes);
    return SL_OK;
}

static sl_status cpu_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                          sl_error *err)
{
    return cpu_write(exec, dst, d_src, size_bytes, err);
}

static sl_status cpu_wait(sl_exec *exec, sl_error *err)
{
    (void)exec, (void)err; /* an op returns when it is done */
    return SL_OK;
}

static const sl_exec_kind kind_cpu = {
    .destroy = cpu_destroy,
    .write = cpu_write,
    .read = cpu_read,
    .wait = cpu_wait,
};

sl_status sl_exec_create_cpu(sl_exec **out, sl_device *device, int threads,
                             const atomic_uint *cancel, sl_error *err)
{
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CPU, false);
    sl_status status = SL_OK;
    sl_exec *exec = NULL;

    if (threads < 0 || threads > SL_POOL_MAX_THREADS) {
        status = sl_fail(err, SL_ERR_INVALID, "%d cpu threads: expected 0 (one per core) to %d",
                         threads, SL_POOL_MAX_THREADS);
        goto done;
    }
    exec = malloc(sizeof *exec);
    if (!exec) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
        goto done;
    }
    sl_exec_head_init(exec, &kind_cpu, &sl_ops_cpu, device, &numerics, cancel);
    if (threads == 0)
        threads = sl_pool_online_cores();

    const size_t size_bytes = (size_t)threads * SL_CPU_WORKSPACE_PER_THREAD;
    status = sl_region_create(&exec->workspace, device, "workspace", size_bytes, err);
    if (status == SL_OK)
        status = sl_region_map(exec->workspace, size_bytes, err);
    if (status == SL_OK)
        status = sl_pool_create(&exec->pool, threads, sl_region_data(exec->workspace), cancel, err);
    if (status != SL_OK)
        goto done;
    /* Tiles are our unit of parallel work; the library runs inside of one. */
    sl_gemm_set_threads(1);
    *out = exec;
    exec = NULL; /* handed to the caller */
done:
    sl_exec_destroy(exec);
    return status;
}
