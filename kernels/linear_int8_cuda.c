/* linear_int8 on cuda: the wgmma kernel where the chip has it, else mma.  Both
 * give the same bits. */
#include "kernels/linear_int8.h"

#include "kernels/linear8_maps.h"

sl_status sl_quantize_int8_cuda(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_quantize_int8_check(exec, q, scale, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "quantize_int8",
                       sl_cuda_quantize_int8(sl_cuda_stream(exec), q->data, scale->data, x->data,
                                             x->dtype == SL_BF16, x->dim[0], x->dim[1]),
                       err);
}

static cudaError_t run_wgmma(sl_exec *exec, const sl_cuda_linear8 *l)
{
    sl_cuda_linear8_maps maps;
    const cudaError_t error = sl_cuda_linear8_maps_make(&maps, exec, l);

    return error == cudaSuccess ? sl_cuda_linear_int8_wgmma(sl_cuda_stream(exec), l, &maps) : error;
}

sl_status sl_linear_int8_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *x_scale, const sl_tensor *w,
                              const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                              sl_error *err)
{
    sl_status status = sl_linear_int8_check(exec, y, x, x_scale, w, w_scale, b, act, err);
    cudaError_t error;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const sl_cuda_linear8 l = {
        .y = y->data,
        .x = x->data,
        .w = w->data,
        .x_scale = x_scale->data,
        .w_scale = w_scale->data,
        .b = b ? b->data : NULL,
        .y_bf16 = y->dtype == SL_BF16,
        .b_bf16 = b && b->dtype == SL_BF16,
        .act = act,
        .S = x->dim[0],
        .I = x->dim[1],
        .O = w->dim[0],
    };
    error = sl_cuda_linear8_has_wgmma(exec, &l) ? run_wgmma(exec, &l)
                                                : sl_cuda_linear_int8_mma(sl_cuda_stream(exec), &l);
    return sl_cuda_end(exec, "linear_int8", error, err);
}
