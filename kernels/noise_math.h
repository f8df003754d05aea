/* noise_math.h - the arithmetic of noise, for C and CUDA alike.
 *
 * Only +, -, *, / and sqrt on f64, each correctly rounded, in a fixed order:
 * every device that follows IEEE 754 gives the same bits.  No product may be
 * fused with a sum: the build says -ffp-contract=off, device code multiplies
 * through an intrinsic that never fuses.
 *
 * Philox-4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011.
 */
#ifndef SL_KERNELS_NOISE_MATH_H
#define SL_KERNELS_NOISE_MATH_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define SL_NOISE_FN __host__ __device__ static inline
#else
#define SL_NOISE_FN static inline
#endif

#ifdef __CUDA_ARCH__
#define SL_NOISE_MUL(a, b) __dmul_rn((a), (b))
#define SL_NOISE_SQRT(a)   __dsqrt_rn(a)
#else
#define SL_NOISE_MUL(a, b) ((a) * (b))
#define SL_NOISE_SQRT(a)   sqrt(a)
#endif

typedef struct {
    uint32_t word[4];
} sl_philox;

SL_NOISE_FN sl_philox sl_philox_4x32_10(sl_philox counter, uint32_t key0, uint32_t key1)
{
    sl_philox c = counter;

    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)c.word[0] * 0xd2511f53u;
        const uint64_t p1 = (uint64_t)c.word[2] * 0xcd9e8d57u;
        const sl_philox next = { { (uint32_t)(p1 >> 32) ^ c.word[1] ^ key0, (uint32_t)p1,
                                   (uint32_t)(p0 >> 32) ^ c.word[3] ^ key1, (uint32_t)p0 } };
        c = next;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return c;
}

/* Horner's rule over n coefficients, the highest power first. */
SL_NOISE_FN double sl_noise_poly(const double *coefficient, int n, double x)
{
    double sum = coefficient[0];

    for (int i = 1; i < n; i++)
        sum = SL_NOISE_MUL(sum, x) + coefficient[i];
    return sum;
}

/* ln(x) for normal x > 0.  x = m * 2^e with m in [sqrt(1/2), sqrt(2)), then
 * ln m = 2 atanh(s), s = (m-1)/(m+1), |s| < 0.172: the series to s^23, whose
 * rest is below 2^-60 of it. */
SL_NOISE_FN double sl_noise_ln(double x)
{
    const double series[] = { 2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
                              2.0 / 11, 2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3 };
    /* ln 2 in two parts; the high one has 21 trailing zero bits, so that its
     * product with an exponent is exact. */
    const double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
    union {
        double f;
        uint64_t u;
    } v;

    v.f = x;
    int e = (int)(v.u >> 52) - 1023;
    v.u = (v.u & 0x000fffffffffffffu) | 0x3ff0000000000000u; /* [1, 2) */
    if (v.f >= 1.4142135623730951) {
        v.f = v.f / 2.0;
        e++;
    }
    const double f = v.f - 1.0; /* exact */
    const double s = f / (2.0 + f);
    const double s2 = SL_NOISE_MUL(s, s);
    const double tail = SL_NOISE_MUL(SL_NOISE_MUL(s, s2), sl_noise_poly(series, 11, s2));
    const double low = SL_NOISE_MUL((double)e, ln2_low) + tail;
    return SL_NOISE_MUL((double)e, ln2_high) + (SL_NOISE_MUL(2.0, s) + low);
}

/* sin and cos of 2 pi (word + 1/2) / 2^32.  The quarter turn is taken out in
 * integers, which is exact; what remains is within pi/4, where the Taylor
 * series to x^17 and x^16 leave less than 2^-57. */
SL_NOISE_FN void sl_noise_sincos(uint32_t word, double *sin_out, double *cos_out)
{
    const double sine[] = {
        1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
        1.0 / 362880,          -1.0 / 5040,          1.0 / 120,        -1.0 / 6
    };
    const double cosine[] = {
        1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
        1.0 / 40320,          -1.0 / 720,         1.0 / 24
    };
    const uint32_t quarter = (uint32_t)(((uint64_t)word + 0x20000000u) >> 30); /* 0 to 4 */
    /* In units of 2^-33 turns, odd, within 2^30 of 0. */
    const int64_t rest = 2 * (int64_t)word + 1 - ((int64_t)quarter << 31);
    const double x = SL_NOISE_MUL((double)rest, 0x1.921fb54442d18p-31); /* 2 pi / 2^33 */
    const double x2 = SL_NOISE_MUL(x, x);
    const double s = x + SL_NOISE_MUL(SL_NOISE_MUL(x, x2), sl_noise_poly(sine, 8, x2));
    /* 1 - x2/2 and what its rounding lost, then the rest of the series. */
    const double half = SL_NOISE_MUL(0.5, x2);
    const double head = 1.0 - half;
    const double lost = (1.0 - head) - half;
    const double c =
        head + (lost + SL_NOISE_MUL(SL_NOISE_MUL(x2, x2), sl_noise_poly(cosine, 7, x2)));

    switch (quarter & 3) {
    case 0:
        *sin_out = s;
        *cos_out = c;
        break;
    case 1:
        *sin_out = c;
        *cos_out = -s;
        break;
    case 2:
        *sin_out = -s;
        *cos_out = -c;
        break;
    default:
        *sin_out = -c;
        *cos_out = s;
        break;
    }
}

/* Elements 4 * group to 4 * group + 3 of a draw. */
SL_NOISE_FN void sl_noise_group(uint64_t seed, uint32_t draw, uint64_t group, float out[4])
{
    const sl_philox counter = { { (uint32_t)group, (uint32_t)(group >> 32), draw, 0 } };
    const sl_philox random = sl_philox_4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));

    for (int pair = 0; pair < 2; pair++) {
        const double u = SL_NOISE_MUL((double)random.word[2 * pair] + 0.5, 0x1p-32);
        const double r = SL_NOISE_SQRT(SL_NOISE_MUL(-2.0, sl_noise_ln(u)));
        double s, c;
        sl_noise_sincos(random.word[2 * pair + 1], &s, &c);
        out[2 * pair] = (float)SL_NOISE_MUL(r, s);
        out[2 * pair + 1] = (float)SL_NOISE_MUL(r, c);
    }
}

#endif
