/* unipc.c - see unipc.h.
 *
 * alpha = 1 - sigma, lambda = ln(alpha / sigma), x0 is predicted as
 * m = x - sigma v.  Every update is a sum of states with scalar weights, so a
 * step is three calls of one op: m, the corrected state, the next state.
 */
#include "engine/pipeline/unipc.h"

#include "kernels/ops.h"

#include <math.h>
#include <stdbool.h>

enum { TRAIN_TIMESTEPS = 1000 };

sl_status sl_unipc_schedule_make(sl_unipc_schedule *out, int steps, double shift, sl_error *err)
{
    /* The reference keeps its largest sigma, 1 - 1/1000, as f32. */
    const double first = (double)(float)(1.0 - 1.0 / TRAIN_TIMESTEPS);
    sl_unipc_schedule schedule = { .step_count = steps };

    if (steps < 1 || steps > SL_UNIPC_MAX_STEPS)
        return sl_fail(err, SL_ERR_INVALID, "%d UniPC steps: expected 1 to %d", steps,
                       (int)SL_UNIPC_MAX_STEPS);
    if (!(shift > 0.0) || !isfinite(shift))
        return sl_fail(err, SL_ERR_INVALID, "shift %g: expected a finite number above 0", shift);
    for (int i = 0; i < steps; i++) {
        const double even = first - (double)i * (first / steps);
        const double sigma = shift * even / (1.0 + (shift - 1.0) * even);

        schedule.sigma[i] = (double)(float)sigma;
        schedule.timestep[i] = trunc(TRAIN_TIMESTEPS * sigma);
    }
    schedule.sigma[steps] = 0.0;
    *out = schedule;
    return SL_OK;
}

void sl_unipc_begin(sl_unipc *unipc, sl_exec *exec, const sl_unipc_schedule *schedule,
                    const sl_tensor *state, int step)
{
    const int64_t rows = state->dim[0] / SL_UNIPC_STATES;

    SL_ASSERT(state->dtype == SL_F64 && state->dim[0] % SL_UNIPC_STATES == 0);
    *unipc = (sl_unipc){
        .exec = exec,
        .schedule = schedule,
        .x = sl_tensor_rows(state, 0, rows),
        .previous = sl_tensor_rows(state, rows, rows),
        .step = step,
    };
    for (int i = 0; i < 3; i++)
        unipc->m[i] = sl_tensor_rows(state, (2 + i) * rows, rows);
}

/* That of the prediction behind step i. */
static int order_of(const sl_unipc *u, int i)
{
    const int left = u->schedule->step_count - i;
    const int most = left < 2 ? left : 2;

    return most < i + 1 ? most : i + 1;
}

/* The prediction of x0 that was made in step i. */
static const sl_tensor *made_in(const sl_unipc *u, int i)
{
    return &u->m[(i + 3) % 3];
}

static double lambda_of(const sl_unipc *u, int i)
{
    const double sigma = u->schedule->sigma[i];

    return log1p(-sigma) - log(sigma);
}

/* previous: from the corrected state of step i - 1 to that of step i, now that
 * x0 is predicted there. */
static sl_status correct(sl_unipc *u, int i, sl_error *err)
{
    const double *sigma = u->schedule->sigma;
    const double h = lambda_of(u, i) - lambda_of(u, i - 1);
    const double phi = expm1(-h), alpha = 1.0 - sigma[i];
    double by_m0 = -0.5 * alpha * phi, by_m1 = -alpha * phi - by_m0, by_m2 = 0.0;

    const bool second = order_of(u, i - 1) == 2;

    if (second) {
        const double r = (lambda_of(u, i - 2) - lambda_of(u, i - 1)) / h;
        const double phi2 = phi / -h - 1.0, phi3 = phi2 / -h - 0.5;
        const double b1 = phi2 / phi, b2 = 2.0 * phi3 / phi;
        const double rho1 = (b2 - b1) / (r - 1.0), rho2 = b1 - rho1;

        by_m0 = -alpha * phi * rho2;
        by_m2 = -alpha * phi * rho1 / r;
        by_m1 = -alpha * phi - by_m0 - by_m2;
    }
    const sl_sample_term terms[] = {
        { sigma[i] / sigma[i - 1], &u->previous },
        { by_m1, made_in(u, i - 1) },
        { by_m0, made_in(u, i) },
        { by_m2, made_in(u, i - 2) },
    };
    return sl_exec_ops(u->exec)->sample_combine(u->exec, &u->previous, terms, second ? 4 : 3, err);
}

/* x: the state at sigma[i + 1], from the corrected one at sigma[i]. */
static sl_status predict(sl_unipc *u, int i, sl_error *err)
{
    const double *sigma = u->schedule->sigma;
    const sl_ops *ops = sl_exec_ops(u->exec);
    const bool second = order_of(u, i) == 2;

    if (sigma[i + 1] == 0.0) { /* lambda is infinite there: the limit is m */
        const sl_sample_term only = { 1.0, made_in(u, i) };
        return ops->sample_combine(u->exec, &u->x, &only, 1, err);
    }
    const double h = lambda_of(u, i + 1) - lambda_of(u, i);
    const double phi = expm1(-h), alpha = 1.0 - sigma[i + 1];
    double by_m1 = 0.0;

    if (second)
        by_m1 = -0.5 * alpha * phi * h / (lambda_of(u, i - 1) - lambda_of(u, i));
    const sl_sample_term terms[] = {
        { sigma[i + 1] / sigma[i], &u->previous },
        { -alpha * phi - by_m1, made_in(u, i) },
        { by_m1, made_in(u, i - 1) },
    };
    return ops->sample_combine(u->exec, &u->x, terms, second ? 3 : 2, err);
}

sl_status sl_unipc_step(sl_unipc *u, const sl_tensor *v, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(u->exec);
    const int i = u->step;
    sl_status status;

    SL_ASSERT(i < u->schedule->step_count);
    const sl_sample_term x0[] = { { 1.0, &u->x }, { -u->schedule->sigma[i], v } };
    status = ops->sample_combine(u->exec, made_in(u, i), x0, 2, err);
    if (status == SL_OK)
        status = i == 0 ? ops->copy(u->exec, &u->previous, &u->x, err) : correct(u, i, err);
    if (status == SL_OK)
        status = predict(u, i, err);
    u->step = i + 1;
    return status;
}
