/* The VAE's norm: one pass over rows of few channels, bound by memory bandwidth.
 *
 * A row is shared by `lanes` neighbouring threads of a warp, each with `vecs`
 * runs of eight channels; for 96, 192 and 384 channels that is 3 runs for 4, 8
 * and 16 threads, so that no thread idles. */
#include "kernels/channel_norm_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256, MOST_VECS = 4, WARP = 32, VEC = 8 };

const int64_t most_blocks = 2112; /* 16 on each multiprocessor of the largest card */

__device__ __forceinline__ float exponential(float v, const float *)
{
    return expf(v);
}

/* Two ulp of f32 off, which bf16 does not show. */
__device__ __forceinline__ float exponential(float v, const sl_bf16 *)
{
    return __expf(v);
}

/* For v below -88 the quotient is 0, as it should be. */
template <typename T> __device__ __forceinline__ float silu(float v)
{
    return __fdividef(v, 1.0f + exponential(-v, (const T *)0));
}

__device__ __forceinline__ float factor_of(float sum_squares, float root)
{
    return root / fmaxf(sqrtf(sum_squares), 1e-12f);
}

template <typename T, int VECS>
__global__ void __launch_bounds__(THREADS)
    rows_in_lanes(T *y, const T *x, sl_param gamma, int64_t rows, int C, int lanes, float root,
                  bool with_silu)
{
    const int lane = threadIdx.x % lanes, rows_per_block = THREADS / lanes;
    float weight[VECS * VEC];

#pragma unroll
    for (int v = 0; v < VECS; v++) {
        const int c = (lane + v * lanes) * VEC;
        for (int e = 0; e < VEC; e++)
            weight[v * VEC + e] = c < C ? sl_param_get(gamma, c + e) : 0.0f;
    }
    for (int64_t first = (int64_t)blockIdx.x * rows_per_block; first < rows;
         first += (int64_t)gridDim.x * rows_per_block) {
        /* Threads past the end do the last row's sum with the others of their
         * warp, and store nothing. */
        const int64_t wanted = first + threadIdx.x / lanes, row = wanted < rows ? wanted : rows - 1;
        sl_vec8 in[VECS];
        float sum = 0.0f;

#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const int c = (lane + v * lanes) * VEC;
            if (c < C)
                in[v] = sl_get8(x + row * C + c);
            else
                for (int e = 0; e < VEC; e++)
                    in[v].v[e] = 0.0f;
        }
#pragma unroll
        for (int v = 0; v < VECS; v++)
#pragma unroll
            for (int e = 0; e < VEC; e++)
                sum = fmaf(in[v].v[e], in[v].v[e], sum);
        for (int step = lanes / 2; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        const float factor = factor_of(sum, root);
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const int c = (lane + v * lanes) * VEC;
#pragma unroll
            for (int e = 0; e < VEC; e++) {
                const float out = in[v].v[e] * factor * weight[v * VEC + e];
                in[v].v[e] = with_silu ? silu<T>(out) : out;
            }
            if (c < C && wanted < rows)
                sl_put8(y + row * C + c, in[v]);
        }
    }
}

/* Any C and alignment: a warp for each row, which it reads twice. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    row_by_warp(T *y, const T *x, sl_param gamma, int64_t rows, int64_t C, float root,
                bool with_silu)
{
    const int lane = threadIdx.x % WARP, warps = THREADS / WARP;

    for (int64_t row = (int64_t)blockIdx.x * warps + threadIdx.x / WARP; row < rows;
         row += (int64_t)gridDim.x * warps) {
        float sum = 0.0f;

        for (int64_t c = lane; c < C; c += WARP) {
            const float v = sl_get(x + row * C + c);
            sum = fmaf(v, v, sum);
        }
        for (int step = WARP / 2; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        const float factor = factor_of(sum, root);
        for (int64_t c = lane; c < C; c += WARP) {
            const float v = sl_get(x + row * C + c) * factor * sl_param_get(gamma, c);
            sl_put(y + row * C + c, with_silu ? silu<T>(v) : v);
        }
    }
}

unsigned blocks_for(int64_t rows, int rows_per_block)
{
    const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;

    return (unsigned)(blocks < most_blocks ? blocks : most_blocks);
}

template <typename T>
void launch(cudaStream_t stream, T *y, const T *x, sl_param gamma, int64_t rows, int64_t C,
            float root, bool with_silu)
{
    const int64_t vecs = C / VEC;
    int lanes = 1;

    while (lanes < WARP && (vecs + lanes - 1) / lanes > MOST_VECS)
        lanes *= 2;
    const int64_t each = (vecs + lanes - 1) / lanes;
    const unsigned blocks = blocks_for(rows, THREADS / lanes);
    if (C % VEC != 0 || each > MOST_VECS || !sl_aligned16(x) || !sl_aligned16(y))
        row_by_warp<T><<<blocks_for(rows, THREADS / WARP), THREADS, 0, stream>>>(
            y, x, gamma, rows, C, root, with_silu);
    else if (each == 1)
        rows_in_lanes<T, 1>
            <<<blocks, THREADS, 0, stream>>>(y, x, gamma, rows, (int)C, lanes, root, with_silu);
    else if (each == 2)
        rows_in_lanes<T, 2>
            <<<blocks, THREADS, 0, stream>>>(y, x, gamma, rows, (int)C, lanes, root, with_silu);
    else if (each == 3)
        rows_in_lanes<T, 3>
            <<<blocks, THREADS, 0, stream>>>(y, x, gamma, rows, (int)C, lanes, root, with_silu);
    else
        rows_in_lanes<T, 4>
            <<<blocks, THREADS, 0, stream>>>(y, x, gamma, rows, (int)C, lanes, root, with_silu);
}

} // namespace

extern "C" cudaError_t sl_cuda_channel_norm(cudaStream_t stream, const sl_cuda_channel_norm_call *n)
{
    const sl_param gamma = { n->gamma, n->gamma_bf16 };
    const float root = (float)sqrt((double)n->C);

    if (n->rows == 0)
        return cudaSuccess;
    if (n->bf16)
        launch(stream, (sl_bf16 *)n->y, (const sl_bf16 *)n->x, gamma, n->rows, n->C, root, n->silu);
    else
        launch(stream, (float *)n->y, (const float *)n->x, gamma, n->rows, n->C, root, n->silu);
    return cudaGetLastError();
}
