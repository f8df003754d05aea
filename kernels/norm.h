/* norm.h - normalisation over the last dimension.
 *
 * layer_norm    y = (x - mean) / sqrt(var + eps) [* w + b] [* (1 + scale) + shift]
 *               var is the biased variance.  w, b both or neither [C];
 *               scale, shift both or neither [C].  padding, 0 or more, is what
 *               TurboDiffusion's kernel adds by mistake: so many zeros behind the
 *               row deviate from the mean, too, but do not count in the divisor:
 *               var + padding / C * mean^2.  Source: wan.md 4.5.
 * rms_norm      y = x / sqrt(mean(x^2) + eps) * w.  Source: wan.md 4.5, 3.3.
 * channel_norm  y = x / max(||x||_2, 1e-12) * sqrt(C) * gamma, then silu if
 *               `silu`: the VAE's RMS_norm.  Source: wan.md 8.1.
 *
 * Shapes    x, y [..., C] of any rank (rows = all leading dims), C 1 to 2^19;
 *           parameters [C] (or any shape with C elements)
 * Dtypes    x, y act, any mix, but alike in channel_norm (cpu: BF16 too there);
 *           parameters f32 or bf16; sums in f32 or better
 * Aliasing  y may be x if it has its dtype
 */
#ifndef SL_KERNELS_NORM_H
#define SL_KERNELS_NORM_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_layer_norm_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *scale,
                                   const sl_tensor *shift, float eps, int64_t padding,
                                   sl_error *err);
typedef sl_status sl_rms_norm_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                 const sl_tensor *w, float eps, sl_error *err);
typedef sl_status sl_channel_norm_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                     const sl_tensor *gamma, bool silu, sl_error *err);
sl_layer_norm_fn sl_layer_norm_cpu, sl_layer_norm_cuda, sl_layer_norm_check;
sl_rms_norm_fn sl_rms_norm_cpu, sl_rms_norm_cuda, sl_rms_norm_check;
sl_channel_norm_fn sl_channel_norm_cpu, sl_channel_norm_cuda, sl_channel_norm_check;

#endif
