/* unipc.h - UniPC sampling for undistilled checkpoints: order 2, bh2, predicting
 * x0, with the corrector, of lower order at the end.  Source: wan.md 7.3.
 *
 *     sl_unipc_schedule_make(&schedule, steps, shift, err)
 *     state: [SL_UNIPC_STATES * C, ...] zeros, its first C rows noise
 *     sl_unipc_begin(&u, exec, &schedule, &state, 0)
 *     for (i = 0; i < steps; i++)
 *         v = network(u.x, schedule.timestep[i])
 *         sl_unipc_step(&u, &v, err)                 moves u.x to sigma[i + 1]
 *
 * All that a step leaves to the next is in `state`: a run that begins behind some
 * steps with their state goes on as if it had not stopped.  The state is f64,
 * and so are all scalars; the sigmas are the reference's, f32.
 */
#ifndef SL_ENGINE_PIPELINE_UNIPC_H
#define SL_ENGINE_PIPELINE_UNIPC_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

enum {
    SL_UNIPC_MAX_STEPS = 200,
    SL_UNIPC_STATES = 5, /* x, the corrected x before, three predictions */
};

typedef struct {
    int step_count;
    double sigma[SL_UNIPC_MAX_STEPS + 1]; /* f32 values, falling, the last 0 */
    double timestep[SL_UNIPC_MAX_STEPS];  /* 1000 sigma, truncated: what the network takes */
} sl_unipc_schedule;

/* steps 1 to SL_UNIPC_MAX_STEPS; shift finite, above 0. */
sl_status sl_unipc_schedule_make(sl_unipc_schedule *out, int steps, double shift,
                                 sl_error *err) SL_MUST_CHECK;

typedef struct {
    sl_exec *exec;
    const sl_unipc_schedule *schedule;
    sl_tensor x;        /* the state that the network sees; the first rows */
    sl_tensor previous; /* the corrected state of the step before */
    sl_tensor m[3];     /* predictions of x0; that of step i is m[i % 3] */
    int step;           /* the next one */
} sl_unipc;

/* state: f64, its first dimension a multiple of SL_UNIPC_STATES (asserted); step:
 * how many are done. */
void sl_unipc_begin(sl_unipc *unipc, sl_exec *exec, const sl_unipc_schedule *schedule,
                    const sl_tensor *state, int step);
/* v: f32 or f64 of x's shape, the velocity at x.  At most step_count calls. */
sl_status sl_unipc_step(sl_unipc *unipc, const sl_tensor *v, sl_error *err) SL_MUST_CHECK;

#endif
