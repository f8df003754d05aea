/* param_cpu.h - parameters and activations (f32 or bf16) as f32, and tiles, for cpu
 * ops. */
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

/* Rounds count values to bf16. */
SL_INLINE void sl_round_bf16(uint16_t *dst, const float *src, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        dst[i] = sl_bf16_from_f32(src[i]);
}

/* Elements [first, first + count) of an activation as f32: its own data, or `buf`
 * filled from bf16. */
static inline const float *sl_load_f32(const sl_tensor *t, int64_t first, int64_t count, float *buf)
{
    if (t->dtype == SL_F32)
        return (const float *)t->data + first;
    sl_upcast_bf16(buf, (const uint16_t *)t->data + first, count);
    return buf;
}

/* Where such elements are to be written: its own data, or `buf`, which
 * sl_store_f32 then rounds into it. */
static inline float *sl_target_f32(const sl_tensor *t, int64_t first, float *buf)
{
    return t->dtype == SL_F32 ? (float *)t->data + first : buf;
}

static inline void sl_store_f32(const sl_tensor *t, int64_t first, int64_t count, const float *buf)
{
    if (t->dtype == SL_BF16)
        sl_round_bf16((uint16_t *)t->data + first, buf, count);
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
