#include "engine/pipeline/schedule.h"

#include "kernels/tensor.h"

#include <math.h>

sl_status sl_rcm_schedule_make(sl_rcm_schedule *out, int steps, double sigma_max, sl_error *err)
{
    /* atan(sigma_max) comes before these. */
    static const double later_taus[SL_RCM_MAX_STEPS - 1] = { 1.5, 1.4, 1.0 };
    sl_rcm_schedule schedule = { .step_count = steps };

    if (steps < 1 || steps > SL_RCM_MAX_STEPS)
        return sl_fail(err, SL_ERR_INVALID, "%d sampling steps: expected 1 to %d", steps,
                       (int)SL_RCM_MAX_STEPS);
    if (!(sigma_max > 0.0) || !isfinite(sigma_max))
        return sl_fail(err, SL_ERR_INVALID, "sigma_max %g: expected a finite number above 0",
                       sigma_max);
    for (int i = 0; i < steps; i++) {
        const double tau = i == 0 ? atan(sigma_max) : later_taus[i - 1];

        schedule.t[i] = sin(tau) / (sin(tau) + cos(tau));
        /* The reference casts f64 to bf16 by way of f32. */
        schedule.timestep[i] = sl_bf16_to_f32(sl_bf16_from_f32((float)(1000.0 * schedule.t[i])));
    }
    schedule.t[steps] = 0.0;
    *out = schedule;
    return SL_OK;
}

int sl_rcm_low_from(const sl_rcm_schedule *schedule, double sigma_max, double boundary)
{
    const double least_high_sigma = 9.0;
    int i = 0;

    if (sigma_max < least_high_sigma)
        return 0;
    while (i < schedule->step_count && !(schedule->t[i] < boundary))
        i++;
    return i;
}
