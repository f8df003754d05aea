/* e4m3.h - 8-bit floats with 4 bits of exponent and 3 of mantissa, no infinity:
 * conversion to nearest, ties to even, saturating at 448.  Not for NaN.
 */
#ifndef SL_KERNELS_E4M3_H
#define SL_KERNELS_E4M3_H

#include "kernels/vmath.h"

#include <stdint.h>

#define SL_E4M3_MAX 448.0f

/* |x| rounded to what e4m3 can hold.  Below 2^-6 the steps are 2^-9, which are
 * also those of f32 at 24576. */
SL_INLINE float sl_e4m3_round_magnitude(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };

    v.u &= 0x7fffffffu;
    v.f = v.f < SL_E4M3_MAX ? v.f : SL_E4M3_MAX;
    const float small = (v.f + 24576.0f) - 24576.0f;
    const uint32_t is_small = v.f < 0x1p-6f;
    v.u = (v.u + 0x7ffffu + ((v.u >> 20) & 1u)) & 0xfff00000u;
    return is_small ? small : v.f;
}

/* The exponents of f32 are 120 larger; e4m3's subnormals are f32's. */
SL_INLINE uint8_t sl_e4m3_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } sign = { x }, v = { sl_e4m3_round_magnitude(x) * 0x1p-120f };

    return (uint8_t)(v.u >> 20 | (sign.u >> 24 & 0x80u));
}

SL_INLINE float sl_e4m3_to_f32(uint8_t code)
{
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)(code & 0x7fu) << 20 };

    v.f *= 0x1p120f;
    v.u |= (uint32_t)(code & 0x80u) << 24;
    return v.f;
}

#endif
