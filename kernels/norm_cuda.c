#include "kernels/norm_cuda.h"

#include "kernels/cuda.h"
#include "kernels/norm.h"

static sl_norm_call call_over(const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *const params[SL_NORM_PARAMS], float eps)
{
    const int64_t C = x->dim[x->rank - 1];
    sl_norm_call call = { .y = y->data,
                          .x = x->data,
                          .y_dtype = y->dtype,
                          .x_dtype = x->dtype,
                          .rows = sl_tensor_count(x) / C,
                          .C = C,
                          .eps = eps };

    for (int i = 0; i < SL_NORM_PARAMS; i++)
        if (params[i]) {
            call.param[i] = params[i]->data;
            call.param_dtype[i] = params[i]->dtype;
        }
    return call;
}

sl_status sl_layer_norm_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *w, const sl_tensor *b, const sl_tensor *scale,
                             const sl_tensor *shift, float eps, int64_t padding, sl_error *err)
{
    const sl_tensor *const params[SL_NORM_PARAMS] = { w, b, scale, shift };
    sl_status status = sl_layer_norm_check(exec, y, x, w, b, scale, shift, eps, padding, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    sl_norm_call call = call_over(y, x, params, eps);
    call.padding = (float)padding;
    return sl_cuda_end(exec, "layer_norm", sl_cuda_layer_norm(sl_cuda_stream(exec), &call), err);
}

sl_status sl_rms_norm_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                           const sl_tensor *w, float eps, sl_error *err)
{
    const sl_tensor *const params[SL_NORM_PARAMS] = { w };
    sl_status status = sl_rms_norm_check(exec, y, x, w, eps, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const sl_norm_call call = call_over(y, x, params, eps);
    return sl_cuda_end(exec, "rms_norm", sl_cuda_rms_norm(sl_cuda_stream(exec), &call), err);
}
