/* param_cpu.h - parameters (f32 or bf16) as f32, and tiles, for cpu ops. */
#ifndef SL_KERNELS_PARAM_CPU_H
#define SL_KERNELS_PARAM_CPU_H

#include "kernels/tensor.h"
#include "kernels/vmath.h"

/* Upcasts count bf16 values. */
SL_INLINE void sl_upcast_bf16(float *dst, const uint16_t *src, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        dst[i] = sl_bf16_to_f32(src[i]);
}

/* All elements of t as f32: its own data, or `buf` (as many floats) filled
 * from bf16.  NULL for NULL. */
static inline const float *sl_param_f32(const sl_tensor *t, float *buf)
{
    if (!t)
        return NULL;
    if (t->dtype == SL_F32)
        return t->data;
    sl_upcast_bf16(buf, t->data, sl_tensor_count(t));
    return buf;
}

/* Elements of tile i when count elements are cut in tiles of tile_size. */
static inline int64_t sl_tile_length(int64_t i, int64_t tile_size, int64_t count)
{
    const int64_t left = count - i * tile_size;

    return left < tile_size ? left : tile_size;
}

#endif
