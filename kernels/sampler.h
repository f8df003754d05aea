/* sampler.h - the state updates of rCM sampling; the state x is f64.
 *
 *   sample_init  x = f64(noise) * t0
 *   sample_step  SDE (noise given):  x = (1 - t_next) * (x - t_cur * v)
 *                                        + f64(f32(t_next) * noise)
 *                ODE (noise NULL):   x = x - (t_cur - t_next) * v
 *                v f32 (upcast), the noise product in f32, all else f64, no fma
 *   sample_cast  y f32 = f32(x)
 *
 * Shapes equal; x f64; noise, v, y f32.  Source: wan.md 7.1.
 */
#ifndef SL_KERNELS_SAMPLER_H
#define SL_KERNELS_SAMPLER_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_sample_init_fn(sl_exec *exec, const sl_tensor *x, const sl_tensor *noise,
                                    double t0, sl_error *err);
typedef sl_status sl_sample_step_fn(sl_exec *exec, const sl_tensor *x, const sl_tensor *v,
                                    const sl_tensor *noise, double t_cur, double t_next,
                                    sl_error *err);
typedef sl_status sl_sample_cast_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                    sl_error *err);
sl_sample_init_fn sl_sample_init_cpu, sl_sample_init_check;
sl_sample_step_fn sl_sample_step_cpu, sl_sample_step_check;
sl_sample_cast_fn sl_sample_cast_cpu, sl_sample_cast_check;

#endif
