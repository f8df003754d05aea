/* linear8.cuh - what products of 8-bit codes share: the order of tiles, bias, and
 * stores.  What differs is a type Codes (linear_int8.cu, linear_fp8.cu):
 *
 *   number                   of an inner sum over 128 of I: int or float
 *   row_scales               whether each row of x has its own scale
 *   multiply                 wgmma of 64 x 128 x 32
 *   multiply_add             mma of 16 x 8 x 32
 *   x_scale, w_scale         those of a step
 *   add                      sum + number * scale
 *   bias, finish             the epilogue
 */
#ifndef SL_KERNELS_LINEAR8_CUH
#define SL_KERNELS_LINEAR8_CUH

#include "kernels/act_cuda.cuh"
#include "kernels/linear8_cuda.h"

namespace
{

enum { STEP = 128 }; /* of I: one scale */

/* Tile i of rows x cols of them: bands of 8 rows, so that tiles which run at the
 * same time share both operands in L2. */
__device__ __forceinline__ void tile_at(int64_t i, int rows, int cols, int *row, int *col)
{
    enum { BAND = 8 };
    const int64_t in_band = (int64_t)BAND * cols;
    const int first = (int)(i / in_band) * BAND, left = rows - first;
    const int high = left < BAND ? left : BAND, at = (int)(i % in_band);

    *row = first + at % high;
    *col = at / high;
}

/* Two outputs of row s from column o, which is even. */
template <typename TY>
__device__ __forceinline__ void store_pair(const sl_cuda_linear8 &l, int64_t s, int64_t o,
                                           float first, float second)
{
    TY *y = (TY *)l.y + s * l.O + o;

    if (l.O % 2 == 0 && sizeof(TY) == 4) {
        *(float2 *)y = make_float2(first, second);
    } else if (l.O % 2 == 0) {
        *(__nv_bfloat162 *)y = __floats2bfloat162_rn(first, second);
    } else {
        y[0] = sl_from_f32<TY>(first);
        if (o + 1 < l.O)
            y[1] = sl_from_f32<TY>(second);
    }
}

/* The sums of a pair of columns in rows s and s + 8, as accumulators hold them. */
template <typename Codes, typename TY, sl_act act>
__device__ __forceinline__ void finish_pairs(const sl_cuda_linear8 &l, const float *sum, int64_t s,
                                             int64_t o, float bias0, float bias1)
{
    const float bias[2] = { bias0, bias1 };

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float v[2] = { sum[2 * half], sum[2 * half + 1] };

        Codes::finish(v, l.b != NULL, bias);
        if (s + 8 * half < l.S && o < l.O)
            store_pair<TY>(l, s + 8 * half, o, sl_act_apply(v[0], act), sl_act_apply(v[1], act));
    }
}

template <typename Codes>
__device__ __forceinline__ float bias_at(const sl_cuda_linear8 &l, int64_t o)
{
    if (!l.b || o >= l.O)
        return 0.0f;
    return Codes::bias(l.b_bf16 ? __bfloat162float(((const __nv_bfloat16 *)l.b)[o])
                                : ((const float *)l.b)[o]);
}

} // namespace

#endif
