/* golden_test_accel.c - the accelerated ops alone: int8 linears. */
#include "tests/golden_test.h"

#include "kernels/linear_int8.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A tensor of the case, as f32 in scratch, under its own shape. */
static sl_status upload(golden_case *c, const char *name, sl_tensor *out, sl_error *err)
{
    golden_array in;
    float *values;
    sl_status status = golden_get_f32(c, name, &in, &values, err);

    if (status == SL_OK)
        status = sl_scratch_take(&c->env->scratch, out, err, SL_F32, in.rank, in.dim);
    if (status == SL_OK)
        status = sl_exec_write(c->env->exec, out->data, values, sl_tensor_bytes(out), err);
    return status;
}

/* ---- int8 linears ---- */

typedef struct {
    sl_tensor q, scale;
} quantised;

/* Codes that differ; the reference kernel's 128 / amax may be off by two ulp, so
 * that a product as good as half-way between two codes may go to either. */
static int64_t wrong_codes(const int8_t *q, const float *scale, int64_t scale_cols,
                           const golden_array *x, const golden_array *want)
{
    const int64_t cols = x->dim[1];
    int64_t wrong = 0;

    for (int64_t i = 0; i < want->count; i++) {
        const int64_t tile = i / cols / SL_INT8_TILE * scale_cols + i % cols / SL_INT8_TILE;
        const double exact = fabs(x->v[i] / (double)scale[tile]);
        const bool tie = fabs(exact - floor(exact) - 0.5) < 1e-5;
        const double off = fabs((double)q[i] - want->v[i]);

        wrong += !(off == 0.0 || (tie && off <= 1.0));
    }
    return wrong;
}

/* Quantises in.NAME and compares with out.NAME.q and out.NAME.scale. */
static sl_status check_quantised(golden_case *c, const char *name, quantised *out, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    golden_array in, want_q, want_scale;
    sl_status status = SL_OK;
    char full[64];
    sl_tensor x;

    snprintf(full, sizeof full, "in.%s", name);
    GOLDEN_TRY(upload(c, full, &x, err));
    GOLDEN_TRY(golden_get(c, full, &in, err));
    snprintf(full, sizeof full, "out.%s.q", name);
    GOLDEN_TRY(golden_get(c, full, &want_q, err));
    snprintf(full, sizeof full, "out.%s.scale", name);
    GOLDEN_TRY(golden_get(c, full, &want_scale, err));
    GOLDEN_TRY(sl_scratch_take(scratch, &out->q, err, SL_I8, want_q.rank, want_q.dim));
    GOLDEN_TRY(sl_scratch_take(scratch, &out->scale, err, SL_F32, want_scale.rank, want_scale.dim));
    GOLDEN_TRY(ops->quantize_int8(c->env->exec, &out->q, &out->scale, &x, err));
    golden_check(c, full, "max_abs",
                 golden_max_abs(golden_f64_of(c, &out->scale, err), want_scale.v, want_scale.count),
                 0.0);
    snprintf(full, sizeof full, "out.%s.q", name);
    golden_check(c, full, "wrong",
                 (double)wrong_codes(out->q.data, out->scale.data, want_scale.dim[1], &in, &want_q),
                 0.0);
done:
    return status;
}

/* The distance of two bf16 values in steps of bf16. */
static double bf16_steps(double a, double b)
{
    const double most = fmax(fabs(a), fabs(b));

    return a == b ? 0.0 : fabs(a - b) / ldexp(1.0, ilogb(most) - 7);
}

static sl_status check_linear(golden_case *c, const quantised *x, const quantised *w,
                              const sl_tensor *bias, const char *want_name, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    sl_status status = SL_OK;
    golden_array want;
    double worst = 0.0;
    sl_tensor y;

    GOLDEN_TRY(golden_get(c, want_name, &want, err));
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &y, err, SL_F32, want.rank, want.dim));
    GOLDEN_TRY(ops->linear_int8(c->env->exec, &y, &x->q, &x->scale, &w->q, &w->scale, bias,
                                SL_ACT_NONE, err));
    for (int64_t i = 0; i < want.count; i++) {
        const double steps = bf16_steps((double)((float *)y.data)[i], want.v[i]);
        if (!(steps <= worst))
            worst = isnan(steps) ? INFINITY : steps;
    }
    golden_check(c, want_name, "ulp", worst, golden_tolerance(c, "y_bf16_ulp"));
done:
    return status;
}

sl_status golden_run_int8_linear(golden_case *c, sl_error *err)
{
    sl_status status = SL_OK;
    quantised x, w, other;
    sl_tensor bias;

    GOLDEN_TRY(check_quantised(c, "aligned", &other, err));
    GOLDEN_TRY(check_quantised(c, "ragged", &other, err));
    GOLDEN_TRY(check_quantised(c, "ties", &other, err));
    GOLDEN_TRY(check_quantised(c, "x", &x, err));
    GOLDEN_TRY(check_quantised(c, "w", &w, err));
    GOLDEN_TRY(upload(c, "in.bias", &bias, err));
    GOLDEN_TRY(check_linear(c, &x, &w, NULL, "out.y_nobias", err));
    GOLDEN_TRY(check_linear(c, &x, &w, &bias, "out.y", err));
done:
    return status;
}
