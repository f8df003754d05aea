/* linear_int8.h - W8A8 linear layers, quantised in tiles of 128 x 128.
 *
 * quantize_int8   v = bf16(x); over each tile amax = max(1e-8, max |v|),
 *                 q = sat(rne(v * (128 / amax))) in [-128, 127], scale = amax / 128
 * linear_int8     y = act(bf16(bf16(d) + bf16(b))),
 *                 d[s, o] = sum over kb of f32(sum_{k in kb} x[s, k] w[o, k]) *
 *                           (x_scale[s / 128, kb] * w_scale[o / 128, kb])
 *                 kb: tiles of 128 along I, in increasing order; the inner sum
 *                 exact in i32, all else f32 without fma
 *
 * Shapes    quantize_int8: x, q [R, C]; scale [ceil(R/128), ceil(C/128)].  In a
 *           ragged tile what is missing does not count
 *           linear_int8: x [S, I], w [O, I], b [O] or NULL, y [S, O]; x_scale
 *           [ceil(S/128), I/128], w_scale [ceil(O/128), I/128].  I a multiple
 *           of 128; S 0 or more
 * Dtypes    quantize_int8: x f32 or bf16.  The reference quantises bf16, so f32
 *           is rounded to it first; values that are bf16 already stay
 *           linear_int8: x, w i8; scales f32; y act; b f32 or bf16
 * act       as in linear.h, in f32 on the bf16 sum; y F32 is then not rounded
 *           again (the next quantisation does), which makes y BF16 the same
 * NaN       a tile with NaN or infinity has such a scale, which reaches y
 * Aliasing  outputs overlap nothing
 * Source    wan.md 6; the tiles of x span 128 rows, so a result depends on which
 *           rows are given together: cut long inputs at multiples of 128
 * Cost      2*S*I*O int8 operations
 */
#ifndef SL_KERNELS_LINEAR_INT8_H
#define SL_KERNELS_LINEAR_INT8_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/linear.h"
#include "kernels/tensor.h"

enum { SL_INT8_TILE = 128 };

typedef sl_status sl_quantize_int8_fn(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                      const sl_tensor *x, sl_error *err);
typedef sl_status sl_linear_int8_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                    const sl_tensor *x_scale, const sl_tensor *w,
                                    const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                                    sl_error *err);
/* quantize_int8 of up to 128 rows on the calling thread, for loaders and writers
 * of checkpoints: x [rows, C] bf16, q [rows, C], scale [ceil(C/128)].
 * space: SL_QUANTIZE_INT8_SPACE_BYTES, aligned to 4. */
#define SL_QUANTIZE_INT8_SPACE_BYTES ((size_t)SL_INT8_TILE * SL_INT8_TILE * sizeof(float))
void sl_quantize_int8_rows(int8_t *q, float *scale, const uint16_t *x, int64_t rows, int64_t C,
                           void *space);

sl_quantize_int8_fn sl_quantize_int8_cpu, sl_quantize_int8_cuda, sl_quantize_int8_check;
sl_linear_int8_fn sl_linear_int8_cpu, sl_linear_int8_cuda, sl_linear_int8_check;

#endif
