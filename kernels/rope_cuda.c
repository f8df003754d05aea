#include "kernels/rope_cuda.h"

#include "kernels/cuda.h"
#include "kernels/rope.h"

sl_status sl_rope_table_cuda(sl_exec *exec, const sl_tensor *table, sl_error *err)
{
    sl_status status = sl_rope_table_check(exec, table, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "rope_table",
        sl_cuda_rope_table(sl_cuda_stream(exec), table->data, table->dim[0], table->dim[1]), err);
}

sl_status sl_rope_cuda(sl_exec *exec, const sl_tensor *x, const sl_tensor *table, sl_grid grid,
                       sl_error *err)
{
    sl_status status = sl_rope_check(exec, x, table, grid, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "rope",
                       sl_cuda_rope(sl_cuda_stream(exec), x->data, x->dtype, table->data,
                                    table->dim[1], grid.T, grid.H, grid.W, x->dim[1]),
                       err);
}
