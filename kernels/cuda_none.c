/* cuda_none.c - what a build without CUDA says when it is asked for a card. */
#include "kernels/copy_part.h"
#include "kernels/device_backend.h"
#include "kernels/exec.h"

static sl_status none_open(void **self, const sl_device_spec *spec, size_t *capacity_out,
                           sl_error *err)
{
    (void)self, (void)spec, (void)capacity_out;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "this build has no CUDA");
}

const sl_device_backend sl_device_backend_cuda = { .open = none_open };
const sl_copy_backend sl_copy_backend_cuda = { .open = NULL }; /* there is no such device */

sl_status sl_exec_create_cuda(sl_exec **out, sl_device *device, const sl_numerics *numerics,
                              const atomic_uint *cancel, sl_error *err)
{
    (void)out, (void)device, (void)numerics, (void)cancel;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "this build has no CUDA");
}
