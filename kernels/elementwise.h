/* elementwise.h - small ops on equal shapes.
 *
 * add           y = a + b; b any shape with as many elements.  cpu: BF16 too
 * mul           y = a * b
 * gated_add     x[s, c] += y[s, c] * gate[c]; gate [C] f32
 * silu          y = x / (1 + exp(-x))
 * copy          y = x (same dtype and bytes)
 * zero          y = 0
 * check_finite  *bad_count (host memory) = how many elements of x are NaN or
 *               infinite.  act or f64, BF16 on cpu too.  Counting: writes 0
 *
 * Dtypes act, any mix of F32 and BF16, unless stated.  y may be a or b where they
 * have its dtype; x in gated_add is in place.
 */
#ifndef SL_KERNELS_ELEMENTWISE_H
#define SL_KERNELS_ELEMENTWISE_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_add_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *a,
                            const sl_tensor *b, sl_error *err);
typedef sl_status sl_mul_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *a,
                            const sl_tensor *b, sl_error *err);
typedef sl_status sl_gated_add_fn(sl_exec *exec, const sl_tensor *x, const sl_tensor *y,
                                  const sl_tensor *gate, sl_error *err);
typedef sl_status sl_silu_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err);
typedef sl_status sl_copy_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err);
typedef sl_status sl_zero_fn(sl_exec *exec, const sl_tensor *y, sl_error *err);
typedef sl_status sl_check_finite_fn(sl_exec *exec, const sl_tensor *x, int64_t *bad_count,
                                     sl_error *err);
sl_add_fn sl_add_cpu, sl_add_cuda, sl_add_check;
sl_mul_fn sl_mul_cpu, sl_mul_cuda, sl_mul_check;
sl_gated_add_fn sl_gated_add_cpu, sl_gated_add_cuda, sl_gated_add_check;
sl_silu_fn sl_silu_cpu, sl_silu_cuda, sl_silu_check;
sl_copy_fn sl_copy_cpu, sl_copy_cuda, sl_copy_check;
sl_zero_fn sl_zero_cpu, sl_zero_cuda, sl_zero_check;
sl_check_finite_fn sl_check_finite_cpu, sl_check_finite_cuda, sl_check_finite_check;

#endif
