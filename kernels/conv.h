/* conv.h - causal convolution over frames, channels last, with a cache.
 *
 * The input sequence is [zeros | cache | x] along time: `zero_frames` frames
 * of zeros, then the cached input frames, then x.
 *
 *   conv         y[to, ho, wo, o] = b[o] + sum w[o, a, c, d, i] *
 *                in[to*stride_t + a, (ho*stride_hw + c - pad_top) / up,
 *                   (wo*stride_hw + d - pad_left) / up, i]   [+ residual]
 *   pair_frames  y [2n, H, W, C] from x [n, H, W, 2C]: y[2t] = x[t, .., 0:C],
 *                y[2t+1] = x[t, .., C:2C] (the two halves of up3d's time_conv)
 *
 * upsample = 2 reads its input enlarged twice in H and W by pixel duplication
 * without storing it; the position is taken in the enlarged image, outside of
 * which there are zeros.
 *
 * Shapes    x [T, H, W, I], cache [0..2, H, W, I] (or NULL), w [O, kt, kh, kw, I]
 *           (repacked from the checkpoint's [O, I, kt, kh, kw]; kt = 1 for 2-D
 *           convolutions), b [O] or NULL, residual NULL or the shape of y,
 *           y [To, Ho, Wo, O] with
 *             To = (zero + cached + T - kt) / stride_t + 1
 *             Ho = (up*H + pad_top + pad_bottom - kh) / stride_hw + 1, Wo alike
 *           I and O 1 to 2^20, kt*kh*kw*I below 2^31
 * Dtypes    x, cache, residual, y act, all alike; w, b f32 or bf16 (cuda rounds f32
 *           ones to bf16 beside a bf16 x); sums f32, with bias and residual added
 *           before the one rounding.  pair_frames: x, y act, alike.  cpu: BF16 too
 * Aliasing  y may be residual, overlaps nothing else
 * Memory    panels in the exec's workspace only
 * Source    wan.md 8.1, 8.3
 */
#ifndef SL_KERNELS_CONV_H
#define SL_KERNELS_CONV_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef struct {
    int zero_frames;                              /* in front of the cache */
    int stride_t, stride_hw;                      /* 1 or 2 */
    int pad_top, pad_bottom, pad_left, pad_right; /* zeros around each (enlarged) frame */
    int upsample;                                 /* 1 or 2 */
} sl_conv_params;

typedef sl_status sl_conv_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *cache, const sl_tensor *w, const sl_tensor *b,
                             const sl_tensor *residual, const sl_conv_params *params,
                             sl_error *err);
typedef sl_status sl_pair_frames_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                    sl_error *err);
sl_conv_fn sl_conv_cpu, sl_conv_cuda, sl_conv_check;
sl_pair_frames_fn sl_pair_frames_cpu, sl_pair_frames_cuda, sl_pair_frames_check;

#endif
