#include "kernels/patch_cuda.h"

#include "kernels/cuda.h"
#include "kernels/patch.h"

sl_status sl_patchify_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_patchify_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "patchify",
                       sl_cuda_patchify(sl_cuda_stream(exec), y->data, y->dtype, x->data, x->dtype,
                                        x->dim[0], x->dim[1], x->dim[2], x->dim[3]),
                       err);
}

sl_status sl_unpatchify_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_unpatchify_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "unpatchify",
                       sl_cuda_unpatchify(sl_cuda_stream(exec), y->data, y->dtype, x->data,
                                          x->dtype, y->dim[0], y->dim[1], y->dim[2], y->dim[3]),
                       err);
}

static sl_cuda_frames_call frames_call(const sl_tensor *y, const sl_tensor *x,
                                       const sl_tensor *latent, const sl_tensor *frames,
                                       const sl_tensor *scale, const sl_tensor *shift,
                                       int64_t first)
{
    return (sl_cuda_frames_call){ .y = y->data,
                                  .x = x->data,
                                  .y_dtype = y->dtype,
                                  .x_dtype = x->dtype,
                                  .scale = scale ? scale->data : NULL,
                                  .shift = shift ? shift->data : NULL,
                                  .C = latent->dim[0],
                                  .T = latent->dim[1],
                                  .h = latent->dim[2],
                                  .w = latent->dim[3],
                                  .first = first,
                                  .n = frames->dim[0] };
}

sl_status sl_latent_to_frames_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                   sl_error *err)
{
    sl_status status = sl_latent_to_frames_check(exec, y, x, scale, shift, first, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const sl_cuda_frames_call call = frames_call(y, x, x, y, scale, shift, first);
    return sl_cuda_end(exec, "latent_to_frames",
                       sl_cuda_latent_to_frames(sl_cuda_stream(exec), &call), err);
}

sl_status sl_frames_to_latent_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                   sl_error *err)
{
    sl_status status = sl_frames_to_latent_check(exec, y, x, scale, shift, first, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const sl_cuda_frames_call call = frames_call(y, x, y, x, scale, shift, first);
    return sl_cuda_end(exec, "frames_to_latent",
                       sl_cuda_frames_to_latent(sl_cuda_stream(exec), &call), err);
}

sl_status sl_known_mask_cuda(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    sl_status status = sl_known_mask_check(exec, y, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "known_mask",
                       sl_cuda_known_mask(sl_cuda_stream(exec), y->data, y->dim[0], y->dim[1],
                                          y->dim[2] * y->dim[3]),
                       err);
}

sl_status sl_frames_to_rgb_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                sl_error *err)
{
    sl_status status = sl_frames_to_rgb_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "frames_to_rgb",
        sl_cuda_frames_to_rgb(sl_cuda_stream(exec), y->data, x->data, x->dtype, sl_tensor_count(x)),
        err);
}

sl_status sl_rgb_to_frames_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                sl_error *err)
{
    sl_status status = sl_rgb_to_frames_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "rgb_to_frames",
        sl_cuda_rgb_to_frames(sl_cuda_stream(exec), y->data, y->dtype, x->data, sl_tensor_count(x)),
        err);
}
