#include "kernels/scratch.h"

#include "base/size.h"

/* Upper half of what a 47-bit address space gives to mmap, below the usual
 * place of libraries and stacks: nothing of ours is ever there. */
#define COUNTING_BASE ((uintptr_t)1 << 46)

void sl_scratch_init(sl_scratch *scratch, void *base, size_t size_bytes)
{
    SL_ASSERT((uintptr_t)base % SL_SCRATCH_ALIGN == 0);
    *scratch = (sl_scratch){ .base = base, .size_bytes = size_bytes };
}

void sl_scratch_init_counting(sl_scratch *scratch)
{
    *scratch = (sl_scratch){ .base = (unsigned char *)COUNTING_BASE, .size_bytes = COUNTING_BASE };
}

sl_status sl_scratch_alloc(sl_scratch *scratch, void **out, size_t size_bytes, sl_error *err)
{
    const size_t left = scratch->size_bytes - scratch->used_bytes;
    size_t taken;

    if (!sl_size_align(size_bytes, SL_SCRATCH_ALIGN, &taken) || taken > left) {
        return sl_fail(err, SL_ERR_NO_MEMORY,
                       "activations: need %zu bytes, %zu of %zu are free: the plan was too small, "
                       "which is a bug",
                       size_bytes, left, scratch->size_bytes);
    }
    *out = scratch->base + scratch->used_bytes;
    scratch->used_bytes += taken;
    if (scratch->used_bytes > scratch->peak_bytes)
        scratch->peak_bytes = scratch->used_bytes;
    return SL_OK;
}

sl_status sl_scratch_take(sl_scratch *scratch, sl_tensor *out, sl_error *err, sl_dtype dtype,
                          int rank, const int64_t *dim)
{
    sl_tensor t = sl_tensor_make(NULL, dtype, rank, dim);
    const sl_status status = sl_scratch_alloc(scratch, &t.data, sl_tensor_bytes(&t), err);

    if (status == SL_OK)
        *out = t;
    return status;
}

size_t sl_scratch_mark(const sl_scratch *scratch)
{
    return scratch->used_bytes;
}

void sl_scratch_release(sl_scratch *scratch, size_t mark)
{
    SL_ASSERT(mark <= scratch->used_bytes);
    scratch->used_bytes = mark;
}
