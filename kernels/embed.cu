#include "kernels/embed_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256 };

/* A block to a row. */
template <typename Y, typename T>
__global__ void embed_kernel(Y *y, const T *table, const int32_t *ids, int64_t S, int64_t C,
                             bool wide)
{
    for (int64_t s = blockIdx.x; s < S; s += gridDim.x) {
        const T *from = table + (int64_t)ids[s] * C;
        Y *to = y + s * C;
        if (wide)
            for (int64_t c = 8 * threadIdx.x; c < C; c += 8 * blockDim.x)
                sl_put8(to + c, sl_get8(from + c));
        else
            for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
                sl_put(to + c, sl_get(from + c));
    }
}

__global__ void sinusoid_kernel(float *y, int64_t half, double t)
{
    for (int64_t j = sl_thread_index(); j < half; j += sl_thread_count()) {
        const double phase = t * pow(10000.0, -(double)j / (double)half);
        y[j] = (float)cos(phase);
        y[half + j] = (float)sin(phase);
    }
}

template <typename T>
__global__ void bias_kernel(float *y, const T *table, const sl_cuda_buckets buckets, int64_t N,
                            int64_t Sq, int64_t width)
{
    const int64_t far = SL_CUDA_BUCKETS_FAR;

    for (int64_t at = sl_thread_index(); at < N * width; at += sl_thread_count()) {
        const int64_t n = at / width, distance = at % width - (Sq - 1);
        const int64_t r = distance < -far ? -far : distance > far ? far : distance;
        y[at] = sl_get(table + (int64_t)buckets.of[r + far] * N + n);
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_embed_rows(cudaStream_t stream, void *y, sl_dtype y_dtype,
                                          const void *table, sl_dtype table_dtype,
                                          const int32_t *ids, int64_t S, int64_t C)
{
    const bool wide = C % 8 == 0 && sl_aligned16(y) && sl_aligned16(table);

    if (S == 0 || C == 0)
        return cudaSuccess;
    SL_BY_DTYPE(y_dtype, Y,
                SL_BY_DTYPE(table_dtype, T,
                            embed_kernel<<<sl_grid_for(S, 1), THREADS, 0, stream>>>(
                                (Y *)y, (const T *)table, ids, S, C, wide)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sinusoid(cudaStream_t stream, float *y, int64_t half, double t)
{
    if (half == 0)
        return cudaSuccess;
    sinusoid_kernel<<<sl_grid_for(half, THREADS), THREADS, 0, stream>>>(y, half, t);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_rel_bias(cudaStream_t stream, float *y, const void *table,
                                        sl_dtype table_dtype, const sl_cuda_buckets *buckets,
                                        int64_t N, int64_t Sq, int64_t Sk)
{
    const int64_t width = Sq + Sk - 1;

    if (N == 0)
        return cudaSuccess;
    SL_BY_DTYPE(table_dtype, T,
                bias_kernel<<<sl_grid_for(N * width, THREADS), THREADS, 0, stream>>>(
                    y, (const T *)table, *buckets, N, Sq, width));
    return cudaGetLastError();
}
