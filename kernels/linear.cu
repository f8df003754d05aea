/* Linear layers in f32 on the plain cores, for operands that the matrix library
 * does not take: mixed dtypes, few rows, odd alignments.  Every sum's order follows
 * from the shape. */
#include "kernels/act_cuda.cuh"
#include "kernels/linear_cuda.h"

namespace
{

enum {
    WARP = 32,
    FEW_WARPS = 8,  /* of a block of dot products: as many columns of y */
    TILE = 64,      /* rows and columns of y in a block */
    STEP = 16,      /* of I */
    PER_THREAD = 4, /* rows and columns of y of a thread */
    TILE_THREADS = (TILE / PER_THREAD) * (TILE / PER_THREAD),
    MAP_THREADS = 256,
};

/* The bias is of another dtype than all else, and small: chosen at run time. */
__device__ __forceinline__ float bias_at(const void *b, bool bf16, int64_t o)
{
    if (!b)
        return 0.0f;
    return bf16 ? __bfloat162float(((const __nv_bfloat16 *)b)[o]) : ((const float *)b)[o];
}

/* ---- few rows ---- */

/* 8 elements at p + i, which is aligned to their size. */
__device__ __forceinline__ void load8(float (&out)[8], const float *p)
{
    const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];

    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

__device__ __forceinline__ void load8(float (&out)[8], const __nv_bfloat16 *p)
{
    const uint4 v = *(const uint4 *)p;
    const uint32_t pair[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(pair[i] << 16);
        out[2 * i + 1] = __uint_as_float(pair[i] & 0xffff0000u);
    }
}

/* A warp makes one column of y.  WIDE: I is a multiple of 8, all is aligned. */
template <typename TY, typename TX, typename TW, bool WIDE>
__global__ void __launch_bounds__(FEW_WARPS *WARP)
    few_rows(TY *y, const TX *x, const TW *w, const void *b, bool b_bf16, sl_act act, int S,
             int64_t I, int64_t O)
{
    const int64_t o = (int64_t)blockIdx.x * FEW_WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    float sum[SL_CUDA_LINEAR_FEW_ROWS] = { 0 };

    if (o >= O)
        return;
    w += o * I;
    if (WIDE) {
        for (int64_t i = lane * 8; i < I; i += WARP * 8) {
            float wv[8], xv[8];
            load8(wv, w + i);
#pragma unroll
            for (int s = 0; s < SL_CUDA_LINEAR_FEW_ROWS; s++) {
                if (s < S) {
                    load8(xv, x + s * I + i);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        sum[s] = fmaf(xv[j], wv[j], sum[s]);
                }
            }
        }
    } else {
        for (int64_t i = lane; i < I; i += WARP) {
            const float wv = sl_to_f32(w[i]);
#pragma unroll
            for (int s = 0; s < SL_CUDA_LINEAR_FEW_ROWS; s++)
                if (s < S)
                    sum[s] = fmaf(sl_to_f32(x[s * I + i]), wv, sum[s]);
        }
    }
#pragma unroll
    for (int s = 0; s < SL_CUDA_LINEAR_FEW_ROWS; s++)
        for (int d = WARP / 2; d > 0; d /= 2)
            sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], d);
    const float bias = bias_at(b, b_bf16, o);
#pragma unroll
    for (int s = 0; s < SL_CUDA_LINEAR_FEW_ROWS; s++)
        if (s < S && lane == s)
            y[s * O + o] = sl_from_f32<TY>(sl_act_apply(sum[s] + bias, act));
}

/* ---- tiles ---- */

/* TILE rows from `first` and STEP columns from k of m [rows, I], transposed; what
 * is outside is 0. */
template <typename T>
__device__ __forceinline__ void take_tile(float (&to)[STEP][TILE + 4], const T *m, int64_t first,
                                          int64_t rows, int64_t k, int64_t I)
{
    const int r = threadIdx.x / (STEP / 4), c = threadIdx.x % (STEP / 4) * 4;
    const bool inside = first + r < rows;

#pragma unroll
    for (int i = 0; i < 4; i++)
        to[c + i][r] = inside && k + c + i < I ? sl_to_f32(m[(first + r) * I + k + c + i]) : 0.0f;
}

template <typename TY, typename TX, typename TW>
__global__ void __launch_bounds__(TILE_THREADS)
    tile(TY *y, const TX *x, const TW *w, const void *b, bool b_bf16, sl_act act, int64_t S,
         int64_t I, int64_t O)
{
    __shared__ __align__(16) float xs[STEP][TILE + 4], ws[STEP][TILE + 4];
    const int64_t s0 = (int64_t)blockIdx.x * TILE, o0 = (int64_t)blockIdx.y * TILE;
    const int r = threadIdx.x / (TILE / PER_THREAD) * PER_THREAD;
    const int c = threadIdx.x % (TILE / PER_THREAD) * PER_THREAD;
    float sum[PER_THREAD][PER_THREAD] = { { 0 } };

    for (int64_t k = 0; k < I; k += STEP) {
        take_tile(xs, x, s0, S, k, I);
        take_tile(ws, w, o0, O, k, I);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            const float4 a = *(const float4 *)&xs[i][r], v = *(const float4 *)&ws[i][c];
            const float left[4] = { a.x, a.y, a.z, a.w }, right[4] = { v.x, v.y, v.z, v.w };
#pragma unroll
            for (int p = 0; p < PER_THREAD; p++)
#pragma unroll
                for (int q = 0; q < PER_THREAD; q++)
                    sum[p][q] = fmaf(left[p], right[q], sum[p][q]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < PER_THREAD; q++) {
        const int64_t o = o0 + c + q;
        const float bias = o < O ? bias_at(b, b_bf16, o) : 0.0f;
#pragma unroll
        for (int p = 0; p < PER_THREAD; p++)
            if (s0 + r + p < S && o < O)
                y[(s0 + r + p) * O + o] = sl_from_f32<TY>(sl_act_apply(sum[p][q] + bias, act));
    }
}

/* ---- epilogue ---- */

template <typename TY>
__global__ void __launch_bounds__(MAP_THREADS)
    finish(TY *y, const void *b, bool b_bf16, sl_act act, int64_t S, int64_t O)
{
    for (int64_t s = blockIdx.y; s < S; s += gridDim.y)
        for (int64_t o = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x; o < O;
             o += (int64_t)gridDim.x * MAP_THREADS)
            y[s * O + o] =
                sl_from_f32<TY>(sl_act_apply(sl_to_f32(y[s * O + o]) + bias_at(b, b_bf16, o), act));
}

__global__ void __launch_bounds__(MAP_THREADS)
    round_bf16(__nv_bfloat16 *dst, const float *src, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * MAP_THREADS)
        dst[i] = __float2bfloat16_rn(src[i]);
}

/* ---- launching ---- */

bool aligned16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

template <typename TY, typename TX, typename TW>
cudaError_t launch(cudaStream_t stream, const sl_cuda_linear *l, bool few)
{
    TY *y = (TY *)l->y;
    const TX *x = (const TX *)l->x;
    const TW *w = (const TW *)l->w;

    if (few) {
        const unsigned blocks = (unsigned)((l->O + FEW_WARPS - 1) / FEW_WARPS);
        if (l->I % 8 == 0 && aligned16(x) && aligned16(w))
            few_rows<TY, TX, TW, true><<<blocks, FEW_WARPS * WARP, 0, stream>>>(
                y, x, w, l->b, l->b_bf16, l->act, (int)l->S, l->I, l->O);
        else
            few_rows<TY, TX, TW, false><<<blocks, FEW_WARPS * WARP, 0, stream>>>(
                y, x, w, l->b, l->b_bf16, l->act, (int)l->S, l->I, l->O);
    } else {
        const dim3 grid((unsigned)((l->S + TILE - 1) / TILE), (unsigned)((l->O + TILE - 1) / TILE));
        tile<TY, TX, TW>
            <<<grid, TILE_THREADS, 0, stream>>>(y, x, w, l->b, l->b_bf16, l->act, l->S, l->I, l->O);
    }
    return cudaGetLastError();
}

template <typename TY, typename TX>
cudaError_t launch_w(cudaStream_t stream, const sl_cuda_linear *l, bool few)
{
    return l->w_bf16 ? launch<TY, TX, __nv_bfloat16>(stream, l, few)
                     : launch<TY, TX, float>(stream, l, few);
}

cudaError_t launch_any(cudaStream_t stream, const sl_cuda_linear *l, bool few)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    if (l->y_bf16)
        return l->x_bf16 ? launch_w<__nv_bfloat16, __nv_bfloat16>(stream, l, few)
                         : launch_w<__nv_bfloat16, float>(stream, l, few);
    return l->x_bf16 ? launch_w<float, __nv_bfloat16>(stream, l, few)
                     : launch_w<float, float>(stream, l, few);
}

} // namespace

extern "C" cudaError_t sl_cuda_linear_few(cudaStream_t stream, const sl_cuda_linear *l)
{
    return l->S > SL_CUDA_LINEAR_FEW_ROWS ? cudaErrorInvalidValue : launch_any(stream, l, true);
}

extern "C" cudaError_t sl_cuda_linear_tile(cudaStream_t stream, const sl_cuda_linear *l)
{
    return launch_any(stream, l, false);
}

extern "C" cudaError_t sl_cuda_linear_finish(cudaStream_t stream, const sl_cuda_linear *l)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    const dim3 grid((unsigned)((l->O + MAP_THREADS - 1) / MAP_THREADS),
                    (unsigned)(l->S < 4096 ? l->S : 4096));
    if (l->y_bf16)
        finish<__nv_bfloat16><<<grid, MAP_THREADS, 0, stream>>>((__nv_bfloat16 *)l->y, l->b,
                                                                l->b_bf16, l->act, l->S, l->O);
    else
        finish<float>
            <<<grid, MAP_THREADS, 0, stream>>>((float *)l->y, l->b, l->b_bf16, l->act, l->S, l->O);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_round_bf16(cudaStream_t stream, void *dst, const float *src,
                                          int64_t count)
{
    if (count == 0)
        return cudaSuccess;
    const int64_t blocks = (count + MAP_THREADS - 1) / MAP_THREADS;
    round_bf16<<<(unsigned)(blocks < 1024 ? blocks : 1024), MAP_THREADS, 0, stream>>>(
        (__nv_bfloat16 *)dst, src, count);
    return cudaGetLastError();
}
