/* noise.h - counter-based normal noise, the same bits on every device.
 *
 * Element i of draw d for a seed depends on (seed, d, i) alone: Philox-4x32-10
 * with key = seed and counter (i/4 low, i/4 high, d, 0) gives 4 words; words
 * (0,1) and (2,3) give two Box-Muller pairs: U = (w_a + 0.5) * 2^-32,
 * V = 2 pi (w_b + 0.5) * 2^-32, r = sqrt(-2 ln U), (r sin V, r cos V).
 * Evaluated in f64 with our own ln, sin and cos (fixed polynomials, no fma, no
 * libm but sqrt), rounded once to f32: identical on cpu and cuda.
 *
 *   randn  y f32 of any shape, n elements
 */
#ifndef SL_KERNELS_NOISE_H
#define SL_KERNELS_NOISE_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_randn_fn(sl_exec *exec, const sl_tensor *y, uint64_t seed, uint32_t draw,
                              sl_error *err);
sl_randn_fn sl_randn_cpu, sl_randn_cuda, sl_randn_check;

#endif
