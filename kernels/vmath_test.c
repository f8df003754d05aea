#include "kernels/vmath.h"

#include "base/test.h"

enum { N = 4096 };

SL_MULTIARCH static void exp_all(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = sl_expf(x[i]);
}

SL_MULTIARCH static void gelu_all(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = sl_gelu_tanhf(x[i]);
}

SL_MULTIARCH static void silu_all(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = sl_siluf(x[i]);
}

static double rel(float got, double want)
{
    return want == 0.0 ? fabs((double)got) : fabs((double)got - want) / fabs(want);
}

SL_TEST(exp_is_within_its_bound)
{
    static float x[N], y[N];
    double worst = 0.0;

    for (int block = 0; block < 200; block++) {
        for (int i = 0; i < N; i++)
            x[i] = -87.3f + 175.9f * (float)(block * N + i) / (200.0f * N);
        exp_all(y, x, N);
        for (int i = 0; i < N; i++) {
            const double r = rel(y[i], exp((double)x[i]));
            SL_CHECK(r < 1.2e-7);
            worst = r > worst ? r : worst;
        }
    }
    SL_CHECK(worst > 1e-9); /* the comparison has teeth */
}

SL_TEST(exp_at_the_ends)
{
    const float x[] = {
        0.0f, -0.0f, 88.8f, 1e30f, INFINITY, -104.1f, -INFINITY, NAN, -NAN, -100.0f
    };
    float y[SL_COUNT(x)];

    exp_all(y, x, SL_COUNT(x));
    SL_CHECK(y[0] == 1.0f && y[1] == 1.0f);
    SL_CHECK(isinf(y[2]) && isinf(y[3]) && isinf(y[4]));
    SL_CHECK(y[5] < 1e-44f && y[6] < 1e-44f);
    SL_CHECK(isnan(y[7]) && isnan(y[8]));
    SL_CHECK(fabs((double)y[9] - exp(-100.0)) < 2e-45); /* a subnormal: one step */
}

SL_TEST(activations_are_within_a_few_ulp)
{
    static float x[N], gelu[N], silu[N];

    for (int i = 0; i < N; i++)
        x[i] = -5.0f + 10.0f * (float)i / N;
    gelu_all(gelu, x, N);
    silu_all(silu, x, N);
    for (int i = 0; i < N; i++) {
        const double v = (double)x[i];
        const double u = sqrt(2.0 / 3.14159265358979323846) * (v + 0.044715 * v * v * v);
        /* exp magnifies the rounding of its argument, up to |2u| = 17 here. */
        SL_CHECK(rel(gelu[i], v / (1.0 + exp(-2.0 * u))) < 3e-6);
        SL_CHECK(fabs((double)gelu[i] - v / (1.0 + exp(-2.0 * u))) < 4e-7 * (1.0 + fabs(v)));
        SL_CHECK(rel(silu[i], v / (1.0 + exp(-v))) < 4e-7);
    }
}

SL_TEST_MAIN(SL_RUN(exp_is_within_its_bound), SL_RUN(exp_at_the_ends),
             SL_RUN(activations_are_within_a_few_ulp))
