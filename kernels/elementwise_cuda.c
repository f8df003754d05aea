#include "kernels/elementwise_cuda.h"

#include "kernels/cuda.h"
#include "kernels/elementwise.h"

sl_status sl_add_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                      sl_error *err)
{
    sl_status status = sl_add_check(exec, y, a, b, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "add",
                       sl_cuda_add(sl_cuda_stream(exec), y->data, y->dtype, a->data, a->dtype,
                                   b->data, b->dtype, sl_tensor_count(y)),
                       err);
}

sl_status sl_mul_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                      sl_error *err)
{
    sl_status status = sl_mul_check(exec, y, a, b, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "mul",
                       sl_cuda_mul(sl_cuda_stream(exec), y->data, y->dtype, a->data, a->dtype,
                                   b->data, b->dtype, sl_tensor_count(y)),
                       err);
}

sl_status sl_gated_add_cuda(sl_exec *exec, const sl_tensor *x, const sl_tensor *y,
                            const sl_tensor *gate, sl_error *err)
{
    sl_status status = sl_gated_add_check(exec, x, y, gate, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "gated_add",
                       sl_cuda_gated_add(sl_cuda_stream(exec), x->data, x->dtype, y->data, y->dtype,
                                         gate->data, x->dim[0], x->dim[1]),
                       err);
}

sl_status sl_silu_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_silu_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "silu",
                       sl_cuda_silu(sl_cuda_stream(exec), y->data, y->dtype, x->data, x->dtype,
                                    sl_tensor_count(y)),
                       err);
}

sl_status sl_copy_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_copy_check(exec, y, x, err);
    cudaError_t error = cudaSuccess;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    if (y->data != x->data && sl_tensor_count(y) > 0)
        error = cudaMemcpyAsync(y->data, x->data, sl_tensor_bytes(y), cudaMemcpyDeviceToDevice,
                                sl_cuda_stream(exec));
    return sl_cuda_end(exec, "copy", error, err);
}

sl_status sl_zero_cuda(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    sl_status status = sl_zero_check(exec, y, err);
    cudaError_t error = cudaSuccess;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    if (sl_tensor_count(y) > 0)
        error = cudaMemsetAsync(y->data, 0, sl_tensor_bytes(y), sl_cuda_stream(exec));
    return sl_cuda_end(exec, "zero", error, err);
}

/* The one op that waits: its answer is a number on the host. */
sl_status sl_check_finite_cuda(sl_exec *exec, const sl_tensor *x, int64_t *bad_count, sl_error *err)
{
    int64_t ignored;
    sl_status status = sl_check_finite_check(exec, x, &ignored, err);
    unsigned long long *d_bad, bad = 0;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    d_bad = sl_cuda_workspace(exec);
    cudaError_t error = cudaMemsetAsync(d_bad, 0, sizeof *d_bad, sl_cuda_stream(exec));
    if (error == cudaSuccess)
        error =
            sl_cuda_count_bad(sl_cuda_stream(exec), d_bad, x->data, x->dtype, sl_tensor_count(x));
    status = sl_cuda_end(exec, "check_finite", error, err);
    if (status == SL_OK)
        status = sl_exec_read(exec, &bad, d_bad, sizeof bad, err);
    if (status == SL_OK)
        *bad_count = (int64_t)bad;
    return status;
}
