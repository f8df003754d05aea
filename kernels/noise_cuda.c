#include "kernels/noise_cuda.h"

#include "kernels/cuda.h"
#include "kernels/noise.h"

sl_status sl_randn_cuda(sl_exec *exec, const sl_tensor *y, uint64_t seed, uint32_t draw,
                        sl_error *err)
{
    sl_status status = sl_randn_check(exec, y, seed, draw, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "randn",
                       sl_cuda_randn(sl_cuda_stream(exec), y->data, sl_tensor_count(y), seed, draw),
                       err);
}
