#include "kernels/softmax_cpu.h"

#include "kernels/vmath.h"

#include <math.h>

enum { LANES = 16 };

/* max(top, s[..]); a NaN never wins, but its exp is NaN all the same. */
SL_MULTIARCH static float row_max(const float *s, int64_t n, float top)
{
    float part[LANES];
    const int64_t whole = n - n % LANES;

    for (int j = 0; j < LANES; j++)
        part[j] = top;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] = s[i + j] > part[j] ? s[i + j] : part[j];
    for (int64_t i = whole; i < n; i++)
        part[i - whole] = s[i] > part[i - whole] ? s[i] : part[i - whole];
    for (int j = 0; j < LANES; j++)
        top = part[j] > top ? part[j] : top;
    return top;
}

/* y = exp(s - top); returns the sum, of n terms in LANES partial sums. */
SL_MULTIARCH static float row_exp(float *y, const float *s, int64_t n, float top)
{
    float part[LANES] = { 0 };
    const int64_t whole = n - n % LANES;
    float sum = 0.0f;

    SL_IVDEP
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_expf(s[i] - top);
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] += y[i + j];
    for (int64_t i = whole; i < n; i++)
        part[i - whole] += y[i];
    for (int j = 0; j < LANES; j++)
        sum += part[j];
    return sum;
}

SL_MULTIARCH void sl_scale_row(float *y, const float *x, float by, int64_t n)
{
    SL_IVDEP
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * by;
}

void sl_softmax_row(float *s, int64_t n, bool first, float *top, double *sum, float *product,
                    int64_t D)
{
    const float now = row_max(s, n, first ? -INFINITY : *top);

    if (first) {
        *sum = 0.0;
    } else if (now > *top) {
        const float by = sl_expf(*top - now);
        sl_scale_row(product, product, by, D);
        *sum *= (double)by;
    }
    *top = now;
    *sum += (double)row_exp(s, s, n, now);
}

void sl_softmax_whole(float *y, const float *x, int64_t n)
{
    const float sum = row_exp(y, x, n, row_max(x, n, -INFINITY));

    sl_scale_row(y, y, 1.0f / sum, n);
}
