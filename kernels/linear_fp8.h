/* linear_fp8.h - linear layers of e4m3 codes: x scaled by 128 of a row, w by tiles
 * of 128 x 128.
 *
 * quantize_fp8   over each 128 columns of a row: amax = max(1e-8, max |x|),
 *                q = e4m3(x * (448 / amax)), scale = amax / 448
 * linear_fp8     y = act(d + b), d[s, o] = sum over kb of
 *                (sum_{k in kb} x[s, k] w[o, k]) * (x_scale[kb, s] * w_scale[o / 128, kb])
 *                kb: steps of 128 along I, in increasing order
 *
 * Shapes    quantize_fp8: x, q [S, I]; scale [I/128, S]
 *           linear_fp8: x [S, I], w [O, I], b [O] or NULL, y [S, O]; x_scale
 *           [I/128, S], w_scale [ceil(O/128), I/128].  I a multiple of 128; S 0
 *           or more
 * Dtypes    quantize_fp8: x act, not rounded before; q F8_E4M3
 *           linear_fp8: x, w F8_E4M3; scales f32; y act; b f32 or bf16
 * act       as in linear.h
 * Rounding  products are exact, sums f32, y once.  On sm_90 the matrix units drop
 *           what lies about 2^-13 below the largest of 32 products; sums over
 *           different kb are f32 there too
 * NaN       128 elements with NaN or infinity have such a scale, which reaches y
 * Aliasing  outputs overlap nothing
 * Cost      2*S*I*O fp8 operations
 *
 * Both ways run own kernels on cuda: the library has block scales on one chip only,
 * and there without an epilogue in f32.
 */
#ifndef SL_KERNELS_LINEAR_FP8_H
#define SL_KERNELS_LINEAR_FP8_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/linear.h"
#include "kernels/tensor.h"

enum { SL_FP8_TILE = 128 };

typedef sl_status sl_quantize_fp8_fn(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                     const sl_tensor *x, sl_error *err);
typedef sl_status sl_linear_fp8_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   const sl_tensor *x_scale, const sl_tensor *w,
                                   const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                                   sl_error *err);
/* Up to 128 rows of weights on the calling thread, for loaders: x [rows, C] bf16,
 * q [rows, C], scale [ceil(C/128)], of tiles as in linear_fp8's w. */
void sl_quantize_fp8_rows(uint8_t *q, float *scale, const uint16_t *x, int64_t rows, int64_t C);

sl_quantize_fp8_fn sl_quantize_fp8_cpu, sl_quantize_fp8_cuda, sl_quantize_fp8_check;
sl_linear_fp8_fn sl_linear_fp8_cpu, sl_linear_fp8_cuda, sl_linear_fp8_check;

#endif
