/* unipc.h - UniPC sampling for undistilled checkpoints: order 2, bh2, predicting
 * x0, with the corrector, of lower order at the end.  Source: wan.md 7.3.
 *
 *     sl_unipc_schedule_make(&schedule, steps, shift, err)
 *     mark = sl_scratch_mark(scratch);
 *     sl_unipc_begin(&u, exec, scratch, &schedule, &x, err)      takes 4 states
 *     for (i = 0; i < steps; i++)
 *         v = network(x, schedule.timestep[i])
 *         sl_unipc_step(&u, &v, err)                             moves x to sigma[i + 1]
 *     sl_scratch_release(scratch, mark);
 *
 * The state is f64, and so are all scalars; the sigmas are the reference's, f32.
 */
#ifndef SL_ENGINE_PIPELINE_UNIPC_H
#define SL_ENGINE_PIPELINE_UNIPC_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

enum { SL_UNIPC_MAX_STEPS = 200 };

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
    sl_tensor x;        /* f64, the caller's: the state that the network sees */
    sl_tensor previous; /* the corrected state of the step before */
    sl_tensor m[3];     /* predictions of x0: of this step and the two before */
    int step;           /* the next one */
    int last_order;     /* of the last prediction */
} sl_unipc;

/* x of any shape, at sigma[0]: the noise itself. */
sl_status sl_unipc_begin(sl_unipc *unipc, sl_exec *exec, sl_scratch *scratch,
                         const sl_unipc_schedule *schedule, const sl_tensor *x,
                         sl_error *err) SL_MUST_CHECK;
/* v: f32 or f64 of x's shape, the velocity at x.  At most step_count calls. */
sl_status sl_unipc_step(sl_unipc *unipc, const sl_tensor *v, sl_error *err) SL_MUST_CHECK;

#endif
