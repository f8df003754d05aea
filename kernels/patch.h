/* patch.h - changes of layout between latents, tokens, frames and pixels.
 *
 * patchify          y [T*(h/2)*(w/2), C*4] from x [C, T, h, w]; feature
 *                   c*4 + kh*2 + kw (channel slowest).  Source: wan.md 4.1
 * unpatchify        y [C, T, h, w] from x [T*(h/2)*(w/2), 4*C]; feature
 *                   (kh*2 + kw)*C + c (channel fastest).  Source: wan.md 4.7
 * latent_to_frames  y [n, h, w, C] from frames [first, first + n) of
 *                   x [C, T, h, w], y = x * scale[c] + shift[c]; scale, shift
 *                   [C] f32 or NULL (1 and 0)
 * frames_to_rgb     y u8 from x act, same shape [..., 3]:
 *                   trunc(255 * clamp((1 + clamp(v, -1, 1)) / 2, 0, 1) + 0.5).
 *                   NaN gives 0.  Source: wan.md 9.4
 * rgb_to_frames     y act from x u8, same shape [..., 3]:
 *                   (x / 255 - 0.5) / 0.5.  Source: wan.md 9.3
 * frames_to_latent  frames [first, first + n) of y [C, T, h, w] from
 *                   x [n, h, w, C], y = (x - shift[c]) * scale[c]; the other
 *                   frames of y stay; scale, shift [C] f32 or NULL (1 and 0)
 * known_mask        y [C, T, h, w]: 1 in frame 0, 0 in all others.
 *                   Source: wan.md 4.8
 *
 * Dtypes act, any mix, unless stated; known_mask f32.  cpu: BF16 too, but in
 * patchify and unpatchify.
 */
#ifndef SL_KERNELS_PATCH_H
#define SL_KERNELS_PATCH_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_patchify_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                 sl_error *err);
typedef sl_status sl_unpatchify_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   sl_error *err);
typedef sl_status sl_latent_to_frames_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                         const sl_tensor *scale, const sl_tensor *shift,
                                         int64_t first, sl_error *err);
typedef sl_status sl_frames_to_rgb_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                      sl_error *err);
typedef sl_status sl_rgb_to_frames_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                      sl_error *err);
typedef sl_status sl_frames_to_latent_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                         const sl_tensor *scale, const sl_tensor *shift,
                                         int64_t first, sl_error *err);
typedef sl_status sl_known_mask_fn(sl_exec *exec, const sl_tensor *y, sl_error *err);
sl_patchify_fn sl_patchify_cpu, sl_patchify_cuda, sl_patchify_check;
sl_unpatchify_fn sl_unpatchify_cpu, sl_unpatchify_cuda, sl_unpatchify_check;
sl_latent_to_frames_fn sl_latent_to_frames_cpu, sl_latent_to_frames_cuda, sl_latent_to_frames_check;
sl_frames_to_rgb_fn sl_frames_to_rgb_cpu, sl_frames_to_rgb_cuda, sl_frames_to_rgb_check;
sl_rgb_to_frames_fn sl_rgb_to_frames_cpu, sl_rgb_to_frames_cuda, sl_rgb_to_frames_check;
sl_frames_to_latent_fn sl_frames_to_latent_cpu, sl_frames_to_latent_cuda, sl_frames_to_latent_check;
sl_known_mask_fn sl_known_mask_cpu, sl_known_mask_cuda, sl_known_mask_check;

#endif
