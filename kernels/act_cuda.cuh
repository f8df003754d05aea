/* act_cuda.cuh - for device code: activations, and elements of f32 or bf16. */
#ifndef SL_KERNELS_ACT_CUDA_CUH
#define SL_KERNELS_ACT_CUDA_CUH

#include "kernels/act.h"

#include <cuda_bf16.h>
#include <stdint.h>

/* Both divide by 1 + exp(..), which does not cancel for negative v.  Where that
 * leaves f32's range the quotient is 0, as it should be. */
__device__ __forceinline__ float sl_act_apply(float v, sl_act act)
{
    if (act == SL_ACT_GELU_TANH) {
        const float u = 0.797884560802865356f * (v + 0.044715f * (v * v * v));
        return __fdividef(v, 1.0f + expf(-2.0f * u));
    }
    if (act == SL_ACT_SILU)
        return __fdividef(v, 1.0f + expf(-v));
    return v;
}

__device__ __forceinline__ float sl_to_f32(float x)
{
    return x;
}

__device__ __forceinline__ float sl_to_f32(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

__device__ __forceinline__ float sl_round_bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

template <typename T> __device__ __forceinline__ T sl_from_f32(float x);

template <> __device__ __forceinline__ float sl_from_f32<float>(float x)
{
    return x;
}

template <> __device__ __forceinline__ __nv_bfloat16 sl_from_f32<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}

#endif
