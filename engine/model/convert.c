#include "engine/model/convert.h"

#include "base/status.h"

#include <math.h>
#include <string.h>

/* f64 to f32 rounded to odd: a later rounding to bf16 then sees whether
 * anything was cut off, so that both together round once. */
static float f64_to_f32_odd(double x)
{
    union {
        float f;
        uint32_t u;
    } v = { (float)x };

    if (isnan(x) || (double)v.f == x)
        return v.f;
    if (fabs((double)v.f) > fabs(x))
        v.u--; /* one step towards zero: now cut off, not rounded */
    v.u |= 1;
    return v.f;
}

static inline float load_f32(const unsigned char *src)
{
    float x;
    memcpy(&x, src, sizeof x);
    return x;
}

static inline double load_f64(const unsigned char *src)
{
    double x;
    memcpy(&x, src, sizeof x);
    return x;
}

static inline uint16_t load_u16(const unsigned char *src)
{
    uint16_t x;
    memcpy(&x, src, sizeof x);
    return x;
}

/* src [count] with a stride, dst contiguous. */
static void to_f32(float *dst, const unsigned char *src, sl_dtype dtype, int64_t count,
                   size_t stride_bytes)
{
    switch (dtype) {
    case SL_F32:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = load_f32(src);
        return;
    case SL_BF16:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = sl_bf16_to_f32(load_u16(src));
        return;
    case SL_F16:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = sl_f16_to_f32(load_u16(src));
        return;
    case SL_F64:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = (float)load_f64(src);
        return;
    default:
        SL_ASSERT(!"dtype was checked before");
    }
}

static void to_bf16(uint16_t *dst, const unsigned char *src, sl_dtype dtype, int64_t count,
                    size_t stride_bytes)
{
    switch (dtype) {
    case SL_F32:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = sl_bf16_from_f32(load_f32(src));
        return;
    case SL_BF16:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = load_u16(src);
        return;
    case SL_F16:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = sl_bf16_from_f32(sl_f16_to_f32(load_u16(src)));
        return;
    case SL_F64:
        for (int64_t i = 0; i < count; i++, src += stride_bytes)
            dst[i] = sl_bf16_from_f32(f64_to_f32_odd(load_f64(src)));
        return;
    default:
        SL_ASSERT(!"dtype was checked before");
    }
}

static void convert(unsigned char *dst, sl_dtype dst_dtype, const unsigned char *src,
                    sl_dtype src_dtype, int64_t count, size_t stride_bytes)
{
    if (dst_dtype == SL_F32)
        to_f32((float *)(void *)dst, src, src_dtype, count, stride_bytes);
    else
        to_bf16((uint16_t *)(void *)dst, src, src_dtype, count, stride_bytes);
}

void sl_convert(void *dst, sl_dtype dst_dtype, const void *src, sl_dtype src_dtype, int64_t count)
{
    if (dst_dtype == src_dtype)
        memcpy(dst, src, (size_t)count * sl_dtype_bytes(dst_dtype));
    else
        convert(dst, dst_dtype, src, src_dtype, count, sl_dtype_bytes(src_dtype));
}

void sl_convert_channels_last(void *dst, sl_dtype dst_dtype, const void *src, sl_dtype src_dtype,
                              int64_t I, int64_t K)
{
    const size_t to_bytes = sl_dtype_bytes(dst_dtype), from_bytes = sl_dtype_bytes(src_dtype);

    for (int64_t k = 0; k < K; k++)
        convert((unsigned char *)dst + (size_t)(k * I) * to_bytes, dst_dtype,
                (const unsigned char *)src + (size_t)k * from_bytes, src_dtype, I,
                (size_t)K * from_bytes);
}
