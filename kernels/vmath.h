/* vmath.h - loops over elements that the compiler turns into vector code.
 *
 * SL_MULTIARCH in front of a function builds it for AVX-512, AVX2 and the
 * base instruction set and picks at load time.  Nothing here fuses or
 * reorders, so every build gives the same bits.  What such a function calls
 * must be inlined into it: mark it SL_INLINE.
 *
 * Off under the sanitizers: the code that picks runs before they are ready.
 */
#ifndef SL_KERNELS_VMATH_H
#define SL_KERNELS_VMATH_H

#include <stdint.h>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SL_MULTIARCH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SL_MULTIARCH
#endif

/* Before a loop whose output is one of its inputs or overlaps none of them. */
#ifdef __clang__
#define SL_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define SL_IVDEP _Pragma("GCC ivdep")
#endif

#define SL_INLINE static inline __attribute__((always_inline))

/* 2^n for n in [-126, 127]. */
SL_INLINE float sl_exp2i(int32_t n)
{
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)(n + 127) << 23 };
    return v.f;
}

/* exp(x): 0 and infinity past the ends, NaN for NaN, else within 2 ulp (1.2e-7
 * relative where the result is a normal number; vmath_test.c measures it).
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in two exact parts.
 * exp(r) = 1 + r + r^2 P(r); P interpolates at the Chebyshev nodes of
 * |r| <= 1.001 ln(2)/2 and is good to 1.1e-8. */
SL_INLINE float sl_expf(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    union {
        float f;
        uint32_t u;
    } shifted;

    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    shifted.f = x * 1.44269504088896341f + magic;
    const float n = shifted.f - magic;
    const int32_t k = (int32_t)(shifted.u - 0x4b400000u);
    const float r = (x - n * 0.693145751953125f) - n * 1.42860682e-06f;

    float p = 0.00139262508f;
    p = p * r + 0.00836323288f;
    p = p * r + 0.0416665542f;
    p = p * r + 0.166665767f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    /* In two steps, so that neither factor leaves the range of exponents. */
    const int32_t half = k >> 1;
    return p * sl_exp2i(half) * sl_exp2i(k - half);
}

/* v / (1 + exp(-v)) */
SL_INLINE float sl_siluf(float v)
{
    return v / (1.0f + sl_expf(-v));
}

/* 0.5 v (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2/pi) (v + 0.044715 v^3):
 * the right side does not cancel for negative v. */
SL_INLINE float sl_gelu_tanhf(float v)
{
    const float u = 0.797884560802865356f * (v + 0.044715f * (v * v * v));

    return v / (1.0f + sl_expf(-2.0f * u));
}

#endif
