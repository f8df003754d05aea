/* sampler.h - the state updates of sampling; the state x is f64.
 *
 *   sample_init  x = f64(noise) * t0
 *   sample_step  SDE (noise given):  x = (1 - t_next) * (x - t_cur * v)
 *                                        + f64(f32(t_next) * noise)
 *                ODE (noise NULL):   x = x - (t_cur - t_next) * v
 *                v f32 (upcast), the noise product in f32, all else f64, no fma
 *   sample_cast  y f32 = f32(x)
 *   sample_combine  y = terms[0].by * terms[0].t + terms[1].by * terms[1].t + ...
 *                in that order, in f64, no fma; y f64, or f32 rounded once; each
 *                t f64 or f32.  y may be one of its terms (same dtype)
 *
 * Shapes equal; x f64; noise, v, y f32.  Source: wan.md 7.1, 7.3.
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
enum { SL_SAMPLE_MAX_TERMS = 4 };

typedef struct {
    double by;
    const sl_tensor *t;
} sl_sample_term;

typedef sl_status sl_sample_combine_fn(sl_exec *exec, const sl_tensor *y,
                                       const sl_sample_term *terms, int term_count, sl_error *err);
sl_sample_init_fn sl_sample_init_cpu, sl_sample_init_cuda, sl_sample_init_check;
sl_sample_step_fn sl_sample_step_cpu, sl_sample_step_cuda, sl_sample_step_check;
sl_sample_cast_fn sl_sample_cast_cpu, sl_sample_cast_cuda, sl_sample_cast_check;
sl_sample_combine_fn sl_sample_combine_cpu, sl_sample_combine_cuda, sl_sample_combine_check;

#endif
