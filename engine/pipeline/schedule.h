/* schedule.h - the times of rCM sampling.
 *
 * t[0..steps] in f64, t[i] = sin(tau)/(sin(tau)+cos(tau)) of tau = atan(sigma_max),
 * 1.5, 1.4, 1.0, then 0; and what the network is fed, bf16(1000 t).
 * Source: wan.md 7.1.
 */
#ifndef SL_ENGINE_PIPELINE_SCHEDULE_H
#define SL_ENGINE_PIPELINE_SCHEDULE_H

#include "base/status.h"

enum { SL_RCM_MAX_STEPS = 4 };

typedef struct {
    int step_count;
    double t[SL_RCM_MAX_STEPS + 1];
    double timestep[SL_RCM_MAX_STEPS]; /* bf16-rounded 1000 t */
} sl_rcm_schedule;

/* steps 1 to 4; sigma_max finite, above 0. */
sl_status sl_rcm_schedule_make(sl_rcm_schedule *out, int steps, double sigma_max,
                               sl_error *err) SL_MUST_CHECK;

/* The first step that a low-noise expert takes; step_count: none.  A step is its
 * own where t is below boundary, and all steps behind it are; every step is
 * where sigma_max is below 9.  Source: wan.md 7.2. */
int sl_rcm_low_from(const sl_rcm_schedule *schedule, double sigma_max, double boundary);

#endif
