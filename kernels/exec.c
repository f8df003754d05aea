#include "kernels/exec.h"

#include "kernels/exec_part.h"
#include "kernels/ops.h"

#include <stdlib.h>

sl_numerics sl_numerics_of(sl_device_kind kind, bool exact)
{
    if (kind == SL_DEVICE_CPU)
        return (sl_numerics){
            .kind = kind, .activation = SL_F32, .frames = SL_F32, .tile_tokens = 2048
        };
    return (sl_numerics){ .kind = kind,
                          .activation = exact ? SL_F32 : SL_BF16,
                          .frames = exact ? SL_F32 : SL_BF16,
                          .tile_tokens = 16384 };
}

void sl_exec_head_init(sl_exec *exec, const sl_exec_kind *kind, const sl_ops *ops,
                       sl_device *device, const sl_numerics *numerics, const atomic_uint *cancel)
{
    *exec = (sl_exec){
        .kind = kind, .ops = ops, .device = device, .numerics = *numerics, .cancel = cancel
    };
}

void sl_exec_head_fini(sl_exec *exec)
{
    sl_pool_destroy(exec->pool);
    sl_region_destroy(exec->workspace);
    exec->pool = NULL;
    exec->workspace = NULL;
}

void sl_exec_destroy(sl_exec *exec)
{
    if (exec)
        exec->kind->destroy(exec);
}

/* ---- counting ---- */

static void counting_destroy(sl_exec *exec)
{
    free(exec);
}

static sl_status counting_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                                sl_error *err)
{
    (void)exec, (void)d_dst, (void)src, (void)size_bytes, (void)err;
    return SL_OK;
}

static sl_status counting_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                               sl_error *err)
{
    (void)exec, (void)dst, (void)d_src, (void)size_bytes, (void)err;
    return SL_OK;
}

static sl_status counting_wait(sl_exec *exec, sl_error *err)
{
    (void)exec, (void)err;
    return SL_OK;
}

static const sl_exec_kind kind_counting = {
    .destroy = counting_destroy,
    .write = counting_write,
    .read = counting_read,
    .wait = counting_wait,
};

sl_status sl_exec_create_counting(sl_exec **out, const sl_numerics *numerics, sl_error *err)
{
    const sl_numerics cpu = sl_numerics_of(SL_DEVICE_CPU, false);
    sl_exec *exec = malloc(sizeof *exec);

    if (!exec)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
    if (!numerics)
        numerics = &cpu;
    sl_exec_head_init(exec, &kind_counting,
                      numerics->kind == SL_DEVICE_CPU ? &sl_ops_counting : &sl_ops_counting_cuda,
                      NULL, numerics, NULL);
    exec->counting = true;
    *out = exec;
    return SL_OK;
}

/* ---- any kind ---- */

const sl_ops *sl_exec_ops(const sl_exec *exec)
{
    return exec->ops;
}

const sl_numerics *sl_exec_numerics(const sl_exec *exec)
{
    return &exec->numerics;
}

void sl_exec_set_numerics(sl_exec *exec, const sl_numerics *numerics)
{
    SL_ASSERT(numerics->kind == exec->numerics.kind);
    exec->numerics = *numerics;
}

bool sl_exec_is_counting(const sl_exec *exec)
{
    return exec->counting;
}

void sl_exec_lend_scratch(sl_exec *exec, sl_scratch *scratch)
{
    exec->scratch = scratch;
}

sl_scratch *sl_exec_scratch(sl_exec *exec)
{
    return exec->scratch;
}

size_t sl_exec_workspace_bytes(const sl_exec *exec)
{
    return exec->workspace ? sl_region_mapped_bytes(exec->workspace) : 0;
}

int sl_exec_thread_count(const sl_exec *exec)
{
    return exec->pool ? sl_pool_thread_count(exec->pool) : 1;
}

bool sl_exec_cancelled(const sl_exec *exec)
{
    return exec->cancel && atomic_load_explicit(exec->cancel, memory_order_relaxed) != 0;
}

sl_status sl_exec_wait(sl_exec *exec, sl_error *err)
{
    return exec->kind->wait(exec, err);
}

sl_status sl_exec_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                        sl_error *err)
{
    return exec->kind->write(exec, d_dst, src, size_bytes, err);
}

sl_status sl_exec_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err)
{
    return exec->kind->read(exec, dst, d_src, size_bytes, err);
}

sl_status sl_exec_open_copy(sl_copy **out, sl_exec *exec, sl_error *err)
{
    SL_ASSERT(!exec->counting);
    return sl_copy_open(out, exec->device, exec->cancel, err);
}

sl_status sl_exec_parallel(sl_exec *exec, int64_t count, sl_tile_fn fn, void *arg, sl_error *err)
{
    return exec->counting ? SL_OK : sl_pool_run(exec->pool, count, fn, arg, err);
}
