/* act_cuda.cuh - for device code: activations, and elements of f32 or bf16. */
#ifndef SL_KERNELS_ACT_CUDA_CUH
#define SL_KERNELS_ACT_CUDA_CUH

#include "kernels/act.h"

#include <cuda_bf16.h>
#include <stdint.h>

/* v / (1 + 2^q) by the approximate instructions: within some 1e-6.  Where 2^q leaves
 * f32's range the quotient is 0, as it should be. */
__device__ __forceinline__ float sl_act_sigmoid(float v, float q)
{
    float power, inverse;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(q));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return v * inverse;
}

/* 0.5 v (1 + tanh(u)) = v / (1 + exp(-2u)), which does not cancel for negative v. */
__device__ __forceinline__ float sl_act_apply(float v, sl_act act)
{
    const float log2e = 1.44269504088896341f, two_u = 2.0f * 0.797884560802865356f;

    if (act == SL_ACT_GELU_TANH)
        return sl_act_sigmoid(v, v * fmaf(v * v, -two_u * 0.044715f * log2e, -two_u * log2e));
    if (act == SL_ACT_SILU)
        return sl_act_sigmoid(v, v * -log2e);
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
