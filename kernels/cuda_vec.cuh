/* cuda_vec.cuh - activations (F32 or BF16) in kernels: as floats, eight at once.
 *
 * Eight elements are 32 bytes of F32 or 16 of BF16, moved 16 bytes at a time: their
 * address must be a multiple of 16 (sl_aligned16).  Everything else moves element
 * by element.
 */
#ifndef SL_KERNELS_CUDA_VEC_CUH
#define SL_KERNELS_CUDA_VEC_CUH

#include "kernels/tensor.h"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

typedef __nv_bfloat16 sl_bf16;

/* Runs the statements with T as the type of an activation's elements; nests. */
#define SL_BY_DTYPE(dtype, T, ...)                                                                 \
    do {                                                                                           \
        if ((dtype) == SL_BF16) {                                                                  \
            typedef sl_bf16 T;                                                                     \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            typedef float T;                                                                       \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

struct sl_vec8 {
    float v[8];
};

static inline bool sl_aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

/* Threads that each do one of `count` things, in blocks of `threads`; kernels go
 * on in steps of the whole grid when there are more. */
static inline unsigned sl_grid_for(int64_t count, int threads)
{
    const int64_t blocks = (count + threads - 1) / threads;

    return (unsigned)(blocks < 1 ? 1 : blocks > 65535 ? 65535 : blocks);
}

static __device__ __forceinline__ int64_t sl_thread_index(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t sl_thread_count(void)
{
    return (int64_t)gridDim.x * blockDim.x;
}

static __device__ __forceinline__ float sl_get(const float *p)
{
    return *p;
}

static __device__ __forceinline__ float sl_get(const sl_bf16 *p)
{
    return __bfloat162float(*p);
}

static __device__ __forceinline__ void sl_put(float *p, float v)
{
    *p = v;
}

static __device__ __forceinline__ void sl_put(sl_bf16 *p, float v)
{
    *p = __float2bfloat16_rn(v);
}

static __device__ __forceinline__ sl_vec8 sl_get8(const float *p)
{
    const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];

    return { { a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w } };
}

static __device__ __forceinline__ float sl_bf16_low(uint32_t two)
{
    return __uint_as_float(two << 16);
}

static __device__ __forceinline__ float sl_bf16_high(uint32_t two)
{
    return __uint_as_float(two & 0xffff0000u);
}

static __device__ __forceinline__ sl_vec8 sl_get8(const sl_bf16 *p)
{
    const uint4 a = *(const uint4 *)p;

    return { { sl_bf16_low(a.x), sl_bf16_high(a.x), sl_bf16_low(a.y), sl_bf16_high(a.y),
               sl_bf16_low(a.z), sl_bf16_high(a.z), sl_bf16_low(a.w), sl_bf16_high(a.w) } };
}

static __device__ __forceinline__ void sl_put8(float *p, const sl_vec8 &x)
{
    ((float4 *)p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    ((float4 *)p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

/* Two floats as bf16 in one word, the first in the low half. */
static __device__ __forceinline__ uint32_t sl_bf16_pair(float low, float high)
{
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);

    return *(const uint32_t *)&two;
}

static __device__ __forceinline__ void sl_put8(sl_bf16 *p, const sl_vec8 &x)
{
    *(uint4 *)p = make_uint4(sl_bf16_pair(x.v[0], x.v[1]), sl_bf16_pair(x.v[2], x.v[3]),
                             sl_bf16_pair(x.v[4], x.v[5]), sl_bf16_pair(x.v[6], x.v[7]));
}

/* A parameter vector (f32 or bf16, by row of a table or by channel). */
struct sl_param {
    const void *data; /* NULL: absent */
    bool bf16;
};

static __device__ __forceinline__ float sl_param_get(const sl_param &p, int64_t i)
{
    return p.bf16 ? sl_get((const sl_bf16 *)p.data + i) : sl_get((const float *)p.data + i);
}

static __device__ __forceinline__ sl_vec8 sl_param_get8(const sl_param &p, int64_t i)
{
    return p.bf16 ? sl_get8((const sl_bf16 *)p.data + i) : sl_get8((const float *)p.data + i);
}

#endif
