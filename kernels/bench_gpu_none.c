#include "kernels/bench_gpu.h"

sl_status sl_bench_gpu(const char *only, bool json, int *failed, sl_error *err)
{
    (void)only, (void)json, (void)failed;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "this program was built without CUDA");
}
