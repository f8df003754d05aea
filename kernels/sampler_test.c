#include "kernels/sampler.h"

#include "kernels/op_test.h"

static const int64_t sizes[] = { 0, 1, 7, 4096, 32769, 100003 };

typedef struct {
    sl_tensor x, was, v, noise, y;
} operands;

static operands make(int64_t count)
{
    operands t = {
        .x = OP_TEST_TENSOR(SL_F64, 2, 1, count),
        .was = OP_TEST_TENSOR(SL_F64, 2, 1, count),
        .v = OP_TEST_TENSOR(SL_F32, 2, 1, count),
        .noise = OP_TEST_TENSOR(SL_F32, 2, 1, count),
        .y = OP_TEST_TENSOR(SL_F32, 2, 1, count),
    };

    op_test_fill(&t.x, 1, 2.0f);
    for (int64_t i = 0; i < count; i++) /* digits that f32 does not have */
        ((double *)t.x.data)[i] *= 1.0 / 3.0;
    memcpy(t.was.data, t.x.data, sl_tensor_bytes(&t.x));
    op_test_fill(&t.v, 2, 1.0f);
    op_test_fill(&t.noise, 3, 3.0f);
    op_test_poison(&t.y);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->x);
    op_test_free(&t->was);
    op_test_free(&t->v);
    op_test_free(&t->noise);
    op_test_free(&t->y);
}

/* Every operation is rounded on its own; volatile forbids anything else. */
static double rounded(double v)
{
    volatile double kept = v;

    return kept;
}

static float rounded_f32(float v)
{
    volatile float kept = v;

    return kept;
}

static double sde(double x, float v, float noise, double t_cur, double t_next)
{
    const double moved = rounded(x - rounded(t_cur * (double)v));
    const double kept = rounded(rounded(1.0 - t_next) * moved);

    return kept + (double)rounded_f32((float)t_next * noise);
}

static double ode(double x, float v, double t_cur, double t_next)
{
    return x - rounded(rounded(t_cur - t_next) * (double)v);
}

SL_TEST(follows_the_formulas_to_the_bit)
{
    const double t0 = 0.98765432098765427, t1 = 0.93378106141685802;
    op_test t;

    op_test_open(&t, 3);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        operands a = make(sizes[i]);
        const double *x = a.x.data, *was = a.was.data;
        const float *v = a.v.data, *noise = a.noise.data;
        SL_CHECK_OK(sl_sample_step_cpu(t.exec, &a.x, &a.v, &a.noise, t0, t1, err));
        for (int64_t k = 0; k < sizes[i]; k++)
            SL_CHECK(x[k] == sde(was[k], v[k], noise[k], t0, t1));
        memcpy(a.x.data, a.was.data, sl_tensor_bytes(&a.x));
        SL_CHECK_OK(sl_sample_step_cpu(t.exec, &a.x, &a.v, NULL, t0, t1, err));
        for (int64_t k = 0; k < sizes[i]; k++)
            SL_CHECK(x[k] == ode(was[k], v[k], t0, t1));
        SL_CHECK_OK(sl_sample_cast_cpu(t.exec, &a.y, &a.x, err));
        for (int64_t k = 0; k < sizes[i]; k++)
            SL_CHECK(((const float *)a.y.data)[k] == (float)x[k]);
        op_test_poison(&a.x);
        SL_CHECK_OK(sl_sample_init_cpu(t.exec, &a.x, &a.noise, t0, err));
        for (int64_t k = 0; k < sizes[i]; k++)
            SL_CHECK(x[k] == (double)noise[k] * t0);
        drop(&a);
    }
    op_test_close(&t);
}

/* The last step: t_next is 0 and the noise must not matter. */
SL_TEST(last_step_drops_the_noise)
{
    operands a = make(100);
    op_test t;

    op_test_open(&t, 1);
    SL_CHECK_OK(sl_sample_step_cpu(t.exec, &a.x, &a.v, &a.noise, 0.6, 0.0, err));
    for (int64_t k = 0; k < 100; k++)
        SL_CHECK(op_test_get(&a.x, k) ==
                 op_test_get(&a.was, k) - rounded(0.6 * op_test_get(&a.v, k)));
    op_test_close(&t);
    drop(&a);
}

SL_TEST(combines_in_the_order_of_its_terms)
{
    const double by[3] = { 1.0 / 3.0, -7.1, 0.25 };
    op_test t;

    op_test_open(&t, 3);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        operands a = make(sizes[i]);
        const sl_sample_term terms[3] = { { by[0], &a.v }, { by[1], &a.x }, { by[2], &a.noise } };
        const float *v = a.v.data, *noise = a.noise.data;
        const double *x = a.x.data, *was = a.was.data;

        SL_CHECK_OK(sl_sample_combine_cpu(t.exec, &a.y, terms, 3, err));
        SL_CHECK_OK(sl_sample_combine_cpu(t.exec, &a.x, terms, 3, err)); /* y is a term */
        for (int64_t k = 0; k < sizes[i]; k++) {
            const double two = rounded(by[0] * (double)v[k]) + rounded(by[1] * was[k]);
            const double want = rounded(two) + rounded(by[2] * (double)noise[k]);

            SL_CHECK(x[k] == want);
            SL_CHECK(((const float *)a.y.data)[k] == (float)want);
        }
        drop(&a);
    }
    op_test_close(&t);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    operands a = make(24);
    const sl_tensor f32_x = sl_tensor_of(a.x.data, SL_F32, 2, 1, 24);
    const sl_tensor f64_v = sl_tensor_of(a.v.data, SL_F64, 2, 1, 12);
    const sl_tensor flat_v = sl_tensor_of(a.v.data, SL_F32, 1, 24);
    const sl_tensor short_noise = sl_tensor_of(a.noise.data, SL_F32, 2, 1, 23);
    const sl_tensor x_as_noise = sl_tensor_of(a.x.data, SL_F32, 2, 1, 24);
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&a.x);
    SL_CHECK_STATUS(sl_sample_init_cpu(t.exec, &f32_x, &a.noise, 1.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_init_cpu(t.exec, &a.x, &short_noise, 1.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_init_cpu(t.exec, &a.x, &x_as_noise, 1.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_step_cpu(t.exec, &a.x, &f64_v, NULL, 1.0, 0.5, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_step_cpu(t.exec, &a.x, &flat_v, NULL, 1.0, 0.5, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_step_cpu(t.exec, &a.x, &a.v, &short_noise, 1.0, 0.5, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_step_cpu(t.exec, &f32_x, &a.v, NULL, 1.0, 0.5, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_cast_cpu(t.exec, &a.y, &a.v, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_cast_cpu(t.exec, &f32_x, &a.x, err), SL_ERR_INVALID);
    const sl_tensor behind_x = sl_tensor_of((double *)a.x.data + 1, SL_F64, 2, 1, 24);
    const sl_sample_term good = { 1.0, &a.was }, short_term = { 1.0, &short_noise },
                         overlapping = { 1.0, &behind_x };
    SL_CHECK_STATUS(sl_sample_combine_cpu(t.exec, &a.x, &good, 0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_combine_cpu(t.exec, &a.x, &good, SL_SAMPLE_MAX_TERMS + 1, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_combine_cpu(t.exec, &a.x, &short_term, 1, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sample_combine_cpu(t.exec, &a.x, &overlapping, 1, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&a.x) && op_test_is_poison(&a.y));
    op_test_close(&t);
    drop(&a);
}

SL_TEST(check_touches_no_memory)
{
    const sl_tensor x =
        sl_tensor_of((void *)(uintptr_t)0x7000000000000000u, SL_F64, 4, 16, 21, 60, 104);
    const sl_tensor v =
        sl_tensor_of((void *)(uintptr_t)0x7100000000000000u, SL_F32, 4, 16, 21, 60, 104);

    SL_CHECK_OK(sl_sample_init_check(NULL, &x, &v, 1.0, err));
    SL_CHECK_OK(sl_sample_step_check(NULL, &x, &v, &v, 1.0, 0.5, err));
    SL_CHECK_OK(sl_sample_cast_check(NULL, &v, &x, err));
    const sl_sample_term terms[2] = { { 1.0, &x }, { 2.0, &v } };
    SL_CHECK_OK(sl_sample_combine_check(NULL, &x, terms, 2, err));
}

SL_TEST_MAIN(SL_RUN(follows_the_formulas_to_the_bit), SL_RUN(last_step_drops_the_noise),
             SL_RUN(combines_in_the_order_of_its_terms), SL_RUN(refuses_what_the_contract_excludes),
             SL_RUN(check_touches_no_memory))
