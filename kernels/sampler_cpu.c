#include "kernels/sampler.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/vmath.h"

#include <stdio.h>
#include <string.h>

enum { TILE = 1 << 15, F32 = SL_BIT(SL_F32), F64 = SL_BIT(SL_F64) };

typedef struct {
    const sl_tensor *x, *v, *noise, *y;
    double t_cur, t_next;
    const sl_sample_term *terms;
    int term_count;
    int64_t count;
} job;

static sl_status run(sl_exec *exec, job *j, sl_tile_fn fn, sl_error *err)
{
    j->count = sl_tensor_count(j->x);
    return sl_exec_parallel(exec, sl_ceil_div(j->count, TILE), fn, j, err);
}

/* --- sample_init --- */

sl_status sl_sample_init_check(sl_exec *exec, const sl_tensor *x, const sl_tensor *noise, double t0,
                               sl_error *err)
{
    sl_status status = sl_op_expect_like("sample_init", "x", x, F64, x, err);

    (void)exec, (void)t0;
    if (status == SL_OK)
        status = sl_op_expect_like("sample_init", "noise", noise, F32, x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("sample_init", "x", x, "noise", noise, err);
    return status;
}

SL_MULTIARCH static void init_f64(double *restrict x, const float *restrict noise, double t0,
                                  int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = (double)noise[i] * t0;
}

static void init_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE;

    (void)thread, (void)workspace;
    init_f64((double *)j->x->data + first, (const float *)j->noise->data + first, j->t_cur,
             sl_tile_length(i, TILE, j->count));
}

sl_status sl_sample_init_cpu(sl_exec *exec, const sl_tensor *x, const sl_tensor *noise, double t0,
                             sl_error *err)
{
    const sl_status status = sl_sample_init_check(exec, x, noise, t0, err);
    job j = { .x = x, .noise = noise, .t_cur = t0 };

    return status == SL_OK ? run(exec, &j, init_tile, err) : status;
}

/* --- sample_step --- */

sl_status sl_sample_step_check(sl_exec *exec, const sl_tensor *x, const sl_tensor *v,
                               const sl_tensor *noise, double t_cur, double t_next, sl_error *err)
{
    sl_status status = sl_op_expect_like("sample_step", "x", x, F64, x, err);

    (void)exec, (void)t_cur, (void)t_next;
    if (status == SL_OK)
        status = sl_op_expect_like("sample_step", "v", v, F32, x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("sample_step", "x", x, "v", v, err);
    if (status == SL_OK && noise)
        status = sl_op_expect_like("sample_step", "noise", noise, F32, x, err);
    if (status == SL_OK && noise)
        status = sl_op_expect_apart("sample_step", "x", x, "noise", noise, err);
    return status;
}

SL_MULTIARCH static void step_sde(double *restrict x, const float *restrict v,
                                  const float *restrict noise, double t_cur, double t_next,
                                  int64_t count)
{
    const double keep = 1.0 - t_next;
    const float noise_scale = (float)t_next;

    for (int64_t i = 0; i < count; i++)
        x[i] = keep * (x[i] - t_cur * (double)v[i]) + (double)(noise_scale * noise[i]);
}

SL_MULTIARCH static void step_ode(double *restrict x, const float *restrict v, double dt,
                                  int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] - dt * (double)v[i];
}

static void step_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE, count = sl_tile_length(i, TILE, j->count);
    double *x = (double *)j->x->data + first;
    const float *v = (const float *)j->v->data + first;

    (void)thread, (void)workspace;
    if (j->noise)
        step_sde(x, v, (const float *)j->noise->data + first, j->t_cur, j->t_next, count);
    else
        step_ode(x, v, j->t_cur - j->t_next, count);
}

sl_status sl_sample_step_cpu(sl_exec *exec, const sl_tensor *x, const sl_tensor *v,
                             const sl_tensor *noise, double t_cur, double t_next, sl_error *err)
{
    const sl_status status = sl_sample_step_check(exec, x, v, noise, t_cur, t_next, err);
    job j = { .x = x, .v = v, .noise = noise, .t_cur = t_cur, .t_next = t_next };

    return status == SL_OK ? run(exec, &j, step_tile, err) : status;
}

/* --- sample_cast --- */

sl_status sl_sample_cast_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_op_expect_like("sample_cast", "y", y, F32, y, err);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like("sample_cast", "x", x, F64, y, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("sample_cast", "y", y, "x", x, err);
    return status;
}

SL_MULTIARCH static void cast_f32(float *restrict y, const double *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)x[i];
}

static void cast_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE;

    (void)thread, (void)workspace;
    cast_f32((float *)j->y->data + first, (const double *)j->x->data + first,
             sl_tile_length(i, TILE, j->count));
}

sl_status sl_sample_cast_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    const sl_status status = sl_sample_cast_check(exec, y, x, err);
    job j = { .y = y, .x = x };

    return status == SL_OK ? run(exec, &j, cast_tile, err) : status;
}

/* --- sample_combine --- */

sl_status sl_sample_combine_check(sl_exec *exec, const sl_tensor *y, const sl_sample_term *terms,
                                  int term_count, sl_error *err)
{
    static const char op[] = "sample_combine";
    sl_status status = sl_op_expect_like(op, "y", y, F32 | F64, y, err);

    (void)exec;
    if (status == SL_OK && (term_count < 1 || term_count > SL_SAMPLE_MAX_TERMS))
        status = sl_fail(err, SL_ERR_INVALID, "%s: %d terms, expected 1 to %d", op, term_count,
                         (int)SL_SAMPLE_MAX_TERMS);
    for (int i = 0; i < term_count && status == SL_OK; i++) {
        char name[24];

        snprintf(name, sizeof name, "term %d", i);
        status = sl_op_expect_like(op, name, terms[i].t, F32 | F64, y, err);
        if (status == SL_OK)
            status = sl_op_expect_apart_or_same(op, "y", y, name, terms[i].t, err);
    }
    return status;
}

SL_MULTIARCH static void add_f64(double *restrict sum, const double *restrict t, double by,
                                 int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] = sum[i] + by * t[i];
}

SL_MULTIARCH static void add_f32(double *restrict sum, const float *restrict t, double by,
                                 int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] = sum[i] + by * (double)t[i];
}

/* The sum is complete in the workspace before y, which may be a term, changes.
 * It starts at -0, to which adding anything is exact. */
static void combine_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE, count = sl_tile_length(i, TILE, j->count);
    double *sum = workspace;

    (void)thread;
    for (int64_t k = 0; k < count; k++)
        sum[k] = -0.0;
    for (int k = 0; k < j->term_count; k++) {
        const sl_tensor *t = j->terms[k].t;
        if (t->dtype == SL_F64)
            add_f64(sum, (const double *)t->data + first, j->terms[k].by, count);
        else
            add_f32(sum, (const float *)t->data + first, j->terms[k].by, count);
    }
    if (j->y->dtype == SL_F64)
        memcpy((double *)j->y->data + first, sum, (size_t)count * sizeof *sum);
    else
        cast_f32((float *)j->y->data + first, sum, count);
}

_Static_assert(TILE * sizeof(double) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

sl_status sl_sample_combine_cpu(sl_exec *exec, const sl_tensor *y, const sl_sample_term *terms,
                                int term_count, sl_error *err)
{
    const sl_status status = sl_sample_combine_check(exec, y, terms, term_count, err);
    job j = { .x = y, .y = y, .terms = terms, .term_count = term_count };

    return status == SL_OK ? run(exec, &j, combine_tile, err) : status;
}
