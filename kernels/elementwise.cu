/* All bound by memory.  A thread moves eight elements at a time where every
 * operand is aligned to 16 bytes; the rest, or all, one by one. */
#include "kernels/elementwise_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256, ROWS_AT_ONCE = 4 };

struct add_op {
    static __device__ float of(float a, float b)
    {
        return __fadd_rn(a, b);
    }
};

struct mul_op {
    static __device__ float of(float a, float b)
    {
        return __fmul_rn(a, b);
    }
};

/* y may be a or b: every element is read and written by one thread. */
template <typename Op, typename Y, typename A, typename B>
__global__ void binary_kernel(Y *y, const A *a, const B *b, int64_t vectors, int64_t count)
{
    const int64_t first = sl_thread_index(), step = sl_thread_count();

    for (int64_t i = first; i < vectors; i += step) {
        const sl_vec8 p = sl_get8(a + 8 * i), q = sl_get8(b + 8 * i);
        sl_vec8 r;
#pragma unroll
        for (int k = 0; k < 8; k++)
            r.v[k] = Op::of(p.v[k], q.v[k]);
        sl_put8(y + 8 * i, r);
    }
    for (int64_t i = 8 * vectors + first; i < count; i += step)
        sl_put(y + i, Op::of(sl_get(a + i), sl_get(b + i)));
}

template <typename Op>
cudaError_t binary(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *a, sl_dtype a_dtype,
                   const void *b, sl_dtype b_dtype, int64_t count)
{
    const bool wide = sl_aligned16(y) && sl_aligned16(a) && sl_aligned16(b);
    const int64_t vectors = wide ? count / 8 : 0;
    const unsigned grid = sl_grid_for(wide ? vectors : count, THREADS);

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(y_dtype, Y,
                SL_BY_DTYPE(a_dtype, A,
                            SL_BY_DTYPE(b_dtype, B,
                                        binary_kernel<Op><<<grid, THREADS, 0, stream>>>(
                                            (Y *)y, (const A *)a, (const B *)b, vectors, count))));
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t sl_cuda_add(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *a,
                                   sl_dtype a_dtype, const void *b, sl_dtype b_dtype, int64_t count)
{
    return binary<add_op>(stream, y, y_dtype, a, a_dtype, b, b_dtype, count);
}

extern "C" cudaError_t sl_cuda_mul(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *a,
                                   sl_dtype a_dtype, const void *b, sl_dtype b_dtype, int64_t count)
{
    return binary<mul_op>(stream, y, y_dtype, a, a_dtype, b, b_dtype, count);
}

namespace
{

/* --- gated_add --- */

/* A thread keeps its eight channels' gate and goes down the rows. */
template <typename X, typename Y>
__global__ void gated_add_wide(X *x, const Y *y, const float *gate, int64_t S, int64_t C)
{
    const int64_t c = 8 * sl_thread_index();

    if (c >= C)
        return;
    const sl_vec8 g = sl_get8(gate + c);
    for (int64_t s = (int64_t)blockIdx.y * ROWS_AT_ONCE; s < S;
         s += (int64_t)gridDim.y * ROWS_AT_ONCE) {
        const int rows = S - s < ROWS_AT_ONCE ? (int)(S - s) : ROWS_AT_ONCE;
        sl_vec8 p[ROWS_AT_ONCE], q[ROWS_AT_ONCE];
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++)
            if (r < rows) {
                p[r] = sl_get8(x + (s + r) * C + c);
                q[r] = sl_get8(y + (s + r) * C + c);
            }
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++)
            if (r < rows) {
#pragma unroll
                for (int k = 0; k < 8; k++)
                    p[r].v[k] = fmaf(q[r].v[k], g.v[k], p[r].v[k]);
                sl_put8(x + (s + r) * C + c, p[r]);
            }
    }
}

template <typename X, typename Y>
__global__ void gated_add_narrow(X *x, const Y *y, const float *gate, int64_t count, int64_t C)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        sl_put(x + i, fmaf(sl_get(y + i), gate[i % C], sl_get(x + i)));
}

} // namespace

extern "C" cudaError_t sl_cuda_gated_add(cudaStream_t stream, void *x, sl_dtype x_dtype,
                                         const void *y, sl_dtype y_dtype, const float *gate,
                                         int64_t S, int64_t C)
{
    if (S == 0 || C == 0)
        return cudaSuccess;
    if (C % 8 == 0 && sl_aligned16(x) && sl_aligned16(y) && sl_aligned16(gate)) {
        const int64_t vectors = C / 8, across = (vectors + 63) / 64, down = (S + 3) / ROWS_AT_ONCE;
        const dim3 grid((unsigned)across, (unsigned)(down < 65535 ? down : 65535));
        SL_BY_DTYPE(
            x_dtype, X,
            SL_BY_DTYPE(y_dtype, Y,
                        gated_add_wide<<<grid, 64, 0, stream>>>((X *)x, (const Y *)y, gate, S, C)));
    } else {
        SL_BY_DTYPE(
            x_dtype, X,
            SL_BY_DTYPE(y_dtype, Y,
                        gated_add_narrow<<<sl_grid_for(S * C, THREADS), THREADS, 0, stream>>>(
                            (X *)x, (const Y *)y, gate, S * C, C)));
    }
    return cudaGetLastError();
}

namespace
{

/* --- silu --- */

__device__ __forceinline__ float silu(float v)
{
    return v / (1.0f + expf(-v));
}

template <typename Y, typename X>
__global__ void silu_kernel(Y *y, const X *x, int64_t vectors, int64_t count)
{
    const int64_t first = sl_thread_index(), step = sl_thread_count();

    for (int64_t i = first; i < vectors; i += step) {
        sl_vec8 p = sl_get8(x + 8 * i);
#pragma unroll
        for (int k = 0; k < 8; k++)
            p.v[k] = silu(p.v[k]);
        sl_put8(y + 8 * i, p);
    }
    for (int64_t i = 8 * vectors + first; i < count; i += step)
        sl_put(y + i, silu(sl_get(x + i)));
}

} // namespace

extern "C" cudaError_t sl_cuda_silu(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *x,
                                    sl_dtype x_dtype, int64_t count)
{
    const bool wide = sl_aligned16(y) && sl_aligned16(x);
    const int64_t vectors = wide ? count / 8 : 0;
    const unsigned grid = sl_grid_for(wide ? vectors : count, THREADS);

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(y_dtype, Y,
                SL_BY_DTYPE(x_dtype, X,
                            silu_kernel<<<grid, THREADS, 0, stream>>>((Y *)y, (const X *)x, vectors,
                                                                      count)));
    return cudaGetLastError();
}

namespace
{

/* --- check_finite --- */

/* By the exponent's bits: a flag of the compiler cannot make it vanish. */
__device__ __forceinline__ bool is_bad(float v)
{
    return (__float_as_uint(v) & 0x7f800000u) == 0x7f800000u;
}

__device__ __forceinline__ bool is_bad(double v)
{
    return ((uint32_t)__double2hiint(v) & 0x7ff00000u) == 0x7ff00000u;
}

template <typename T>
__global__ void count_bad_kernel(unsigned long long *bad_count, const T *x, int64_t count)
{
    unsigned long long bad = 0;

    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        bad += is_bad(x[i]);
    for (int lanes = 16; lanes > 0; lanes /= 2)
        bad += __shfl_xor_sync(0xffffffffu, bad, lanes);
    if (threadIdx.x % 32 == 0 && bad)
        atomicAdd(bad_count, bad);
}

} // namespace

extern "C" cudaError_t sl_cuda_count_bad(cudaStream_t stream, unsigned long long *bad_count,
                                         const void *x, sl_dtype dtype, int64_t count)
{
    const unsigned grid = sl_grid_for((count + 7) / 8, THREADS);

    if (count == 0)
        return cudaSuccess;
    if (dtype == SL_F64)
        count_bad_kernel<<<grid, THREADS, 0, stream>>>(bad_count, (const double *)x, count);
    else
        count_bad_kernel<<<grid, THREADS, 0, stream>>>(bad_count, (const float *)x, count);
    return cudaGetLastError();
}
