/* linear_int8.cuh - what both int8 products share: the order of tiles, how an
 * exact i32 sum enters the f32 one, and the epilogue. */
#ifndef SL_KERNELS_LINEAR_INT8_CUH
#define SL_KERNELS_LINEAR_INT8_CUH

#include "kernels/act_cuda.cuh"
#include "kernels/linear_int8_cuda.h"

enum { SL_INT8_STEP = 128 }; /* of I: one scale */

/* Tile i of rows x cols of them: bands of 8 rows, so that tiles which run at the
 * same time share both operands in L2. */
__device__ __forceinline__ void sl_int8_tile(int64_t i, int rows, int cols, int *row, int *col)
{
    enum { BAND = 8 };
    const int64_t in_band = (int64_t)BAND * cols;
    const int first = (int)(i / in_band) * BAND, left = rows - first;
    const int high = left < BAND ? left : BAND, at = (int)(i % in_band);

    *row = first + at % high;
    *col = at / high;
}

/* sum + f32(part) * scale, |part| <= 2^21.  Adding the bits of 1.5 * 2^23 and
 * taking the number off again converts at the rate of additions; the conversion
 * instruction would be the kernel's slowest part. */
__device__ __forceinline__ float sl_int8_add(float sum, int part, float scale)
{
    const float exact = __fadd_rn(__int_as_float(part + 0x4b400000), -12582912.0f);

    return __fadd_rn(sum, __fmul_rn(exact, scale));
}

__device__ __forceinline__ float sl_int8_bias(const sl_cuda_linear_int8 &l, int64_t o)
{
    return l.b_bf16 ? __bfloat162float(((const __nv_bfloat16 *)l.b)[o])
                    : sl_round_bf16(((const float *)l.b)[o]);
}

template <sl_act act>
__device__ __forceinline__ float sl_int8_finish(float d, bool biased, float bias)
{
    d = sl_round_bf16(d);
    return sl_act_apply(biased ? sl_round_bf16(__fadd_rn(d, bias)) : d, act);
}

/* Two outputs of row s from column o, which is even. */
template <typename TY>
__device__ __forceinline__ void sl_int8_store(const sl_cuda_linear_int8 &l, int64_t s, int64_t o,
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

#endif
