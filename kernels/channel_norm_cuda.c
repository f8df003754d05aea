#include "kernels/channel_norm_cuda.h"

#include "kernels/cuda.h"
#include "kernels/norm.h"

sl_status sl_channel_norm_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *gamma, bool silu, sl_error *err)
{
    sl_status status = sl_channel_norm_check(exec, y, x, gamma, silu, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const int64_t C = x->dim[x->rank - 1];
    const sl_cuda_channel_norm_call call = {
        .y = y->data,
        .x = x->data,
        .gamma = gamma->data,
        .bf16 = x->dtype == SL_BF16,
        .gamma_bf16 = gamma->dtype == SL_BF16,
        .silu = silu,
        .rows = sl_tensor_count(x) / C,
        .C = C,
    };
    return sl_cuda_end(exec, "channel_norm", sl_cuda_channel_norm(sl_cuda_stream(exec), &call),
                       err);
}
