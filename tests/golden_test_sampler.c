/* golden_test_sampler.c - schedules and state updates, without a network. */
#include "tests/golden_test.h"

#include "engine/pipeline/schedule.h"
#include "engine/pipeline/unipc.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- sampler: closed-form velocity v = 0.3 x + 0.1 sin(tau / 100) ---- */

/* The largest differences over all schedules of the case. */
typedef struct {
    int schedule_count;
    double t, timestep, sde, ode;
} sampler_errors;

static sl_status check_schedule(golden_case *c, const char *stem, const sl_rcm_schedule *schedule,
                                sampler_errors *worst, sl_error *err)
{
    char name[96];
    sl_status status = SL_OK;
    golden_array want;

    snprintf(name, sizeof name, "%s.t_steps", stem);
    GOLDEN_TRY(golden_get(c, name, &want, err));
    if (want.count != schedule->step_count + 1)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of steps", name);
    worst->t = fmax(worst->t, golden_max_abs(schedule->t, want.v, want.count));
    snprintf(name, sizeof name, "%s.timesteps_bf16", stem);
    GOLDEN_TRY(golden_get(c, name, &want, err));
    if (want.count != schedule->step_count)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of steps", name);
    worst->timestep = fmax(worst->timestep, golden_max_abs(schedule->timestep, want.v, want.count));
done:
    return status;
}

/* Noise `index` of the case, as f32 in scratch. */
static sl_status upload_noise(golden_case *c, int index, sl_tensor *out, sl_error *err)
{
    char name[32];
    golden_array noise;
    float *values;
    sl_status status;

    snprintf(name, sizeof name, "in.noise%d", index);
    status = golden_get_f32(c, name, &noise, &values, err);
    if (status == SL_OK)
        status = sl_scratch_take(&c->env->scratch, out, err, SL_F32, noise.rank, noise.dim);
    if (status == SL_OK)
        status = sl_exec_write(c->env->exec, out->data, values, sl_tensor_bytes(out), err);
    return status;
}

/* The op takes f32 velocities and the closed form is f64: what f32 leaves over
 * goes in first, by itself, as an update from t_cur to 0 (x - t_cur v). */
static sl_status sampler_step(golden_case *c, const sl_tensor *x, const sl_tensor *noise,
                              double t_cur, double t_next, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    const double tau = 1000.0 * t_cur;
    sl_status status = SL_OK;
    sl_tensor high, low;

    const int64_t count = sl_tensor_count(x);
    const double *state = golden_f64_of(c, x, err);
    float *rounded = golden_alloc(c, count, sizeof *rounded, err);
    float *left = golden_alloc(c, count, sizeof *left, err);
    if (!state || !rounded || !left)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        const double v = 0.3 * state[i] + 0.1 * sin(tau / 100.0);

        rounded[i] = (float)v;
        left[i] = (float)(v - (double)(float)v);
    }
    GOLDEN_TRY(golden_put(c, &high, SL_F32, x->rank, x->dim, rounded, err));
    GOLDEN_TRY(golden_put(c, &low, SL_F32, x->rank, x->dim, left, err));
    GOLDEN_TRY(ops->sample_step(c->env->exec, x, &low, NULL, t_cur, noise ? 0.0 : t_next, err));
    GOLDEN_TRY(ops->sample_step(c->env->exec, x, &high, noise, t_cur, t_next, err));
done:
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

static sl_status check_trajectory(golden_case *c, const char *stem, const char *mode,
                                  const sl_rcm_schedule *schedule, double *worst, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    const bool noisy = strcmp(mode, "sde") == 0;
    sl_status status = SL_OK;
    sl_tensor x, noise;
    golden_array want;
    char name[96];

    snprintf(name, sizeof name, "%s.%s", stem, mode);
    GOLDEN_TRY(golden_get(c, name, &want, err));
    GOLDEN_TRY(upload_noise(c, 0, &noise, err));
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &x, err, SL_F64, noise.rank, noise.dim));
    const int64_t count = sl_tensor_count(&x);
    if (want.count != count * (schedule->step_count + 1))
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of states", name);
    GOLDEN_TRY(ops->sample_init(c->env->exec, &x, &noise, schedule->t[0], err));
    for (int i = 0; i <= schedule->step_count; i++) {
        const double *state = golden_f64_of(c, &x, err);
        if (!state)
            return SL_ERR_NO_MEMORY;
        *worst = fmax(*worst, golden_max_abs(state, want.v + i * count, count));
        if (i == schedule->step_count)
            break;
        if (noisy)
            GOLDEN_TRY(upload_noise(c, i + 1, &noise, err));
        GOLDEN_TRY(
            sampler_step(c, &x, noisy ? &noise : NULL, schedule->t[i], schedule->t[i + 1], err));
    }
done:
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

/* The largest differences over all UniPC schedules of the case. */
typedef struct {
    int schedule_count;
    double sigma, timestep, exact_scalars, reference;
} unipc_errors;

/* The trajectory, compared with two tellings of it: scalars in f64 and in f32. */
static sl_status check_unipc_states(golden_case *c, const char *stem,
                                    const sl_unipc_schedule *schedule, unipc_errors *worst,
                                    sl_error *err)
{
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    golden_array exact, reference;
    sl_status status = SL_OK;
    sl_tensor noise, state, v;
    sl_unipc unipc;
    int64_t dim[SL_MAX_RANK];
    char name[96];

    snprintf(name, sizeof name, "%s.trajectory_f64_scalars", stem);
    GOLDEN_TRY(golden_get(c, name, &exact, err));
    snprintf(name, sizeof name, "%s.trajectory", stem);
    GOLDEN_TRY(golden_get(c, name, &reference, err));
    GOLDEN_TRY(upload_noise(c, 0, &noise, err));
    memcpy(dim, noise.dim, sizeof dim);
    dim[0] *= SL_UNIPC_STATES;
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &state, err, SL_F64, noise.rank, dim));
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &v, err, SL_F64, noise.rank, noise.dim));
    const int64_t count = sl_tensor_count(&noise), states = count * (schedule->step_count + 1);
    if (exact.count != states || reference.count != states)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of states", name);
    double *velocity = golden_alloc(c, count, sizeof *velocity, err);
    if (!velocity)
        return SL_ERR_NO_MEMORY;
    GOLDEN_TRY(golden_poison(c, &state, err)); /* nothing of it is read */
    sl_unipc_begin(&unipc, c->env->exec, schedule, &state, 0);
    GOLDEN_TRY(ops->sample_init(c->env->exec, &unipc.x, &noise, 1.0, err));
    for (int i = 0; i <= schedule->step_count; i++) {
        const double *x = golden_f64_of(c, &unipc.x, err);
        if (!x)
            return SL_ERR_NO_MEMORY;
        worst->exact_scalars =
            fmax(worst->exact_scalars, golden_max_abs(x, exact.v + i * count, count));
        worst->reference =
            fmax(worst->reference, golden_max_abs(x, reference.v + i * count, count));
        if (i == schedule->step_count)
            break;
        for (int64_t k = 0; k < count; k++)
            velocity[k] = 0.3 * x[k] + 0.1 * sin(schedule->timestep[i] / 100.0);
        GOLDEN_TRY(golden_write(c, &v, velocity, err));
        GOLDEN_TRY(sl_unipc_step(&unipc, &v, err));
    }
done:
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

static sl_status check_unipc(golden_case *c, const char *stem, double shift, int steps,
                             unipc_errors *worst, sl_error *err)
{
    sl_unipc_schedule schedule;
    sl_status status = SL_OK;
    golden_array want;
    char name[96];

    GOLDEN_TRY(sl_unipc_schedule_make(&schedule, steps, shift, err));
    snprintf(name, sizeof name, "%s.sigmas", stem);
    GOLDEN_TRY(golden_get(c, name, &want, err));
    if (want.count != steps + 1)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of steps", name);
    worst->sigma = fmax(worst->sigma, golden_max_abs(schedule.sigma, want.v, want.count));
    snprintf(name, sizeof name, "%s.timesteps", stem);
    GOLDEN_TRY(golden_get(c, name, &want, err));
    if (want.count != steps)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another number of steps", name);
    worst->timestep = fmax(worst->timestep, golden_max_abs(schedule.timestep, want.v, want.count));
    GOLDEN_TRY(check_unipc_states(c, stem, &schedule, worst, err));
    worst->schedule_count++;
done:
    return status;
}

/* Finds its schedules by their names: out.unipc_shift<shift>_n<steps>.sigmas. */
static sl_status run_unipc(golden_case *c, sl_error *err)
{
    unipc_errors worst = { .schedule_count = 0 };
    sl_status status = SL_OK;
    char what[48];

    for (int64_t i = 0; c->io && i < sl_ckpt_count(c->io); i++) {
        const char *name = sl_ckpt_get(c->io, i)->name;
        char stem[64];
        double shift;
        int steps, used = 0;

        if (sscanf(name, "out.unipc_shift%lf_n%d%n", &shift, &steps, &used) != 2 ||
            strcmp(name + used, ".sigmas") != 0)
            continue;
        snprintf(stem, sizeof stem, "%.*s", used, name);
        GOLDEN_TRY(check_unipc(c, stem, shift, steps, &worst, err));
    }
    if (worst.schedule_count == 0)
        goto done;
    snprintf(what, sizeof what, "%d UniPC schedules", worst.schedule_count);
    golden_check(c, what, "max_abs", worst.sigma, 0.0);
    golden_check(c, "UniPC timesteps", "max_abs", worst.timestep, 0.0);
    golden_check(c, "UniPC states, f64 scalars", "max_abs", worst.exact_scalars,
                 golden_tolerance(c, "unipc_abs_vs_f64_scalars"));
    golden_check(c, "UniPC states, reference", "max_abs", worst.reference,
                 golden_tolerance(c, "unipc_abs_vs_reference"));
done:
    return status;
}

/* Finds its schedules by their names: out.rcm_s<sigma>_n<steps>.t_steps. */
sl_status golden_run_sampler(golden_case *c, sl_error *err)
{
    sampler_errors worst = { .schedule_count = 0 };
    sl_status status = SL_OK;

    for (int64_t i = 0; c->io && i < sl_ckpt_count(c->io); i++) {
        const char *name = sl_ckpt_get(c->io, i)->name;
        sl_rcm_schedule schedule;
        char stem[64];
        double sigma;
        int steps, used = 0;

        if (sscanf(name, "out.rcm_s%lf_n%d%n", &sigma, &steps, &used) != 2 ||
            strcmp(name + used, ".t_steps") != 0)
            continue;
        snprintf(stem, sizeof stem, "%.*s", used, name);
        GOLDEN_TRY(sl_rcm_schedule_make(&schedule, steps, sigma, err));
        GOLDEN_TRY(check_schedule(c, stem, &schedule, &worst, err));
        GOLDEN_TRY(check_trajectory(c, stem, "sde", &schedule, &worst.sde, err));
        GOLDEN_TRY(check_trajectory(c, stem, "ode", &schedule, &worst.ode, err));
        worst.schedule_count++;
    }
    if (worst.schedule_count > 0) {
        char what[48];

        snprintf(what, sizeof what, "%d rCM schedules", worst.schedule_count);
        golden_check(c, what, "max_abs", worst.t, golden_tolerance(c, "t_steps_abs"));
        golden_check(c, "timesteps", "max_abs", worst.timestep, 0.0);
        golden_check(c, "SDE states", "max_abs", worst.sde, golden_tolerance(c, "rcm_abs"));
        golden_check(c, "ODE states", "max_abs", worst.ode, golden_tolerance(c, "rcm_abs"));
    }
    GOLDEN_TRY(run_unipc(c, err));
done:
    return status;
}
