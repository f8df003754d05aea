/* linear_int8 on cuda: the wgmma kernel where the chip has it, else mma.  Both
 * give the same bits. */
#include "kernels/linear_int8.h"

#include "kernels/linear8_maps.h"

sl_status sl_quantize_int8_cuda(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                const sl_tensor *x, sl_error *err)
{
    const sl_status status = sl_quantize_int8_check(exec, q, scale, x, err);

    if (status != SL_OK)
        return status;
    return sl_cuda_quantize8(exec, "quantize_int8", sl_cuda_quantize_int8, q, scale, x, err);
}

sl_status sl_linear_int8_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *x_scale, const sl_tensor *w,
                              const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                              sl_error *err)
{
    static const sl_cuda_linear8_kernels kernels = {
        .op = "linear_int8",
        .mma = sl_cuda_linear_int8_mma,
        .wgmma = sl_cuda_linear_int8_wgmma,
    };
    const sl_status status = sl_linear_int8_check(exec, y, x, x_scale, w, w_scale, b, act, err);

    if (status != SL_OK)
        return status;
    return sl_cuda_linear8_run(exec, &kernels, y, x, x_scale, w, w_scale, b, act, err);
}
