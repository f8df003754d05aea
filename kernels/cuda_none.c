/* cuda_none.c - what a build without CUDA says when it is asked for a card. */
#include "kernels/exec.h"

sl_status sl_exec_create_cuda(sl_exec **out, sl_device *device, const sl_numerics *numerics,
                              const atomic_uint *cancel, sl_error *err)
{
    (void)out, (void)device, (void)numerics, (void)cancel;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "this build has no CUDA");
}
