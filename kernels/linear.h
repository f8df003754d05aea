/* linear.h - y = act(x . W^T + b)
 *
 * Shapes    x [S, I], w [O, I], b [O] or NULL, y [S, O]; S 0 or more
 * Dtypes    x, y act (cpu: BF16 too), any mix; w, b f32 or bf16.  bf16 is upcast
 *           exactly; products and sums are f32, and so are bias and act, before the
 *           one rounding.  x F32 with w BF16 is f32 arithmetic: x is not rounded.
 *           cuda may round b to bf16 where x, w and y are all bf16
 * act       SL_ACT_NONE; SL_ACT_GELU_TANH: 0.5 v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3)));
 *           SL_ACT_SILU: v / (1 + exp(-v)).  f32, after the bias
 * Aliasing  y overlaps nothing
 * Cost      2*S*I*O FLOP
 */
#ifndef SL_KERNELS_LINEAR_H
#define SL_KERNELS_LINEAR_H

#include "base/status.h"
#include "kernels/act.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_linear_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *w, const sl_tensor *b, sl_act act, sl_error *err);
sl_linear_fn sl_linear_cpu, sl_linear_cuda, sl_linear_check;

#endif
