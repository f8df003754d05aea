/* Bound by memory: a row is read once.  It stays in registers while its mean and
 * then its squared deviations are summed, both in f32 over a tree of lanes: with a
 * row of n elements the rounding error of a sum grows like log n.
 *
 * Rows of up to WARP_VECTORS vectors of eight belong to one warp and several to a
 * block; longer ones to a block.  Rows longer than registers hold, or whose length
 * or addresses do not allow 16-byte accesses, are read again for each pass.
 */
#include "kernels/norm_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum {
    WARP = 32,
    WARP_VECTORS = 6 * WARP,
    BLOCK_VECTORS = 4, /* of a thread, where a row has a block */
    MOST_THREADS = 512,
    ROWS_THREADS = 256, /* of a narrow block, or of one with a warp to a row */
};

struct norm_params {
    sl_param p[SL_NORM_PARAMS];
};

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

/* Over the threads of a row: a warp (blockDim.y rows a block), or the whole block.
 * `part` is shared memory of its own for each call within a kernel. */
__device__ __forceinline__ float row_sum(float v, float *part)
{
    v = warp_sum(v);
    if (blockDim.x <= WARP)
        return v;
    if (threadIdx.x % WARP == 0)
        part[threadIdx.x / WARP] = v;
    __syncthreads();
    v = threadIdx.x % WARP < blockDim.x / WARP ? part[threadIdx.x % WARP] : 0.0f;
    return warp_sum(v);
}

template <bool LAYER>
__device__ __forceinline__ float finish(float v, float center, float factor, float w, float b,
                                        bool has_w)
{
    if (!LAYER)
        return v * factor * w;
    v = (v - center) * factor;
    return has_w ? fmaf(v, w, b) : v;
}

template <bool LAYER>
__device__ __forceinline__ sl_vec8 finish8(sl_vec8 x, float center, float factor,
                                           const norm_params &params, int64_t c)
{
    const bool has_w = params.p[SL_NORM_W].data != NULL;
    sl_vec8 w, b;

    if (has_w)
        w = sl_param_get8(params.p[SL_NORM_W], c);
    if (LAYER && has_w)
        b = sl_param_get8(params.p[SL_NORM_B], c);
#pragma unroll
    for (int k = 0; k < 8; k++)
        x.v[k] = finish<LAYER>(x.v[k], center, factor, w.v[k], b.v[k], has_w);
    if (LAYER && params.p[SL_NORM_SCALE].data) {
        const sl_vec8 scale = sl_param_get8(params.p[SL_NORM_SCALE], c);
        const sl_vec8 shift = sl_param_get8(params.p[SL_NORM_SHIFT], c);
#pragma unroll
        for (int k = 0; k < 8; k++)
            x.v[k] = fmaf(x.v[k], 1.0f + scale.v[k], shift.v[k]);
    }
    return x;
}

/* A row in registers: VECTORS vectors of each of blockDim.x threads. */
template <bool LAYER, int VECTORS, typename Y, typename X>
__global__ void __launch_bounds__(MOST_THREADS)
    norm_wide(Y *y, const X *x, norm_params params, int64_t rows, int C, float eps, float padding)
{
    __shared__ float part[2][MOST_THREADS / WARP];
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const int across = C / 8;
    sl_vec8 in[VECTORS];
    float sum = 0.0f, center = 0.0f;

    if (row >= rows) /* whole warps: a block with several rows has a warp to each */
        return;
    x += row * C;
    y += row * C;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < across)
            in[i] = sl_get8(x + 8 * at);
    }
    if (LAYER) {
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            if (threadIdx.x + i * blockDim.x < across) {
                const float *v = in[i].v;
                sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
            }
        center = row_sum(sum, part[0]) / (float)C;
    }
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
        if (threadIdx.x + i * blockDim.x < across) {
            float squares = 0.0f;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float d = in[i].v[k] - center;
                squares = fmaf(d, d, squares);
            }
            sum += squares;
        }
    const float squares_sum = fmaf(padding * center, center, row_sum(sum, part[1]));
    const float factor = 1.0f / sqrtf(squares_sum / (float)C + eps);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = threadIdx.x + i * blockDim.x;
        if (at < across)
            sl_put8(y + 8 * at, finish8<LAYER>(in[i], center, factor, params, 8 * at));
    }
}

/* Any length and alignment, a block to a row.  y may be x: an element is written
 * by the thread that reads it, after the sums. */
template <bool LAYER, typename Y, typename X>
__global__ void norm_narrow(Y *y, const X *x, norm_params params, int64_t C, float eps,
                            float padding)
{
    __shared__ float part[2][ROWS_THREADS / WARP];
    const bool has_w = params.p[SL_NORM_W].data != NULL;
    const bool modulated = LAYER && params.p[SL_NORM_SCALE].data != NULL;
    float sum = 0.0f, center = 0.0f;

    x += blockIdx.x * C;
    y += blockIdx.x * C;
    if (LAYER) {
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
            sum += sl_get(x + c);
        center = row_sum(sum, part[0]) / (float)C;
    }
    sum = 0.0f;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        const float d = sl_get(x + c) - center;
        sum = fmaf(d, d, sum);
    }
    const float squares_sum = fmaf(padding * center, center, row_sum(sum, part[1]));
    const float factor = 1.0f / sqrtf(squares_sum / (float)C + eps);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        const float w = has_w ? sl_param_get(params.p[SL_NORM_W], c) : 0.0f;
        const float b = LAYER && has_w ? sl_param_get(params.p[SL_NORM_B], c) : 0.0f;
        float v = finish<LAYER>(sl_get(x + c), center, factor, w, b, has_w);
        if (modulated)
            v = fmaf(v, 1.0f + sl_param_get(params.p[SL_NORM_SCALE], c),
                     sl_param_get(params.p[SL_NORM_SHIFT], c));
        sl_put(y + c, v);
    }
}

template <bool LAYER, typename Y, typename X>
cudaError_t norm_of(cudaStream_t stream, const sl_norm_call *call, const norm_params &params,
                    bool wide)
{
    const int64_t vectors = call->C / 8;
    const X *x = (const X *)call->x;
    Y *y = (Y *)call->y;

    if (!wide || vectors > BLOCK_VECTORS * MOST_THREADS) {
        norm_narrow<LAYER><<<(unsigned)call->rows, ROWS_THREADS, 0, stream>>>(
            y, x, params, call->C, call->eps, call->padding);
        return cudaGetLastError();
    }
    if (vectors <= WARP_VECTORS) {
        const dim3 block(WARP, ROWS_THREADS / WARP);
        const unsigned grid = (unsigned)((call->rows + block.y - 1) / block.y);
#define SL_NORM_WARP(n)                                                                            \
    norm_wide<LAYER, n><<<grid, block, 0, stream>>>(y, x, params, call->rows, (int)call->C,        \
                                                    call->eps, call->padding)
        if (vectors <= WARP)
            SL_NORM_WARP(1);
        else if (vectors <= 2 * WARP)
            SL_NORM_WARP(2);
        else if (vectors <= 4 * WARP)
            SL_NORM_WARP(4);
        else
            SL_NORM_WARP(6);
#undef SL_NORM_WARP
        return cudaGetLastError();
    }
    const int64_t threads = (vectors + BLOCK_VECTORS - 1) / BLOCK_VECTORS;
    norm_wide<LAYER, BLOCK_VECTORS>
        <<<(unsigned)call->rows, (unsigned)((threads + WARP - 1) / WARP * WARP), 0, stream>>>(
            y, x, params, call->rows, (int)call->C, call->eps, call->padding);
    return cudaGetLastError();
}

template <bool LAYER> cudaError_t norm(cudaStream_t stream, const sl_norm_call *call)
{
    bool wide = call->C % 8 == 0 && sl_aligned16(call->x) && sl_aligned16(call->y);
    norm_params params;

    if (call->rows == 0)
        return cudaSuccess;
    if (call->rows > INT32_MAX)
        return cudaErrorInvalidValue;
    for (int i = 0; i < SL_NORM_PARAMS; i++) {
        params.p[i].data = call->param[i];
        params.p[i].bf16 = call->param_dtype[i] == SL_BF16;
        wide = wide && sl_aligned16(call->param[i]);
    }
    SL_BY_DTYPE(
        call->y_dtype, Y,
        SL_BY_DTYPE(call->x_dtype, X, return (norm_of<LAYER, Y, X>(stream, call, params, wide))));
    return cudaSuccess;
}

} // namespace

extern "C" cudaError_t sl_cuda_layer_norm(cudaStream_t stream, const sl_norm_call *call)
{
    return norm<true>(stream, call);
}

extern "C" cudaError_t sl_cuda_rms_norm(cudaStream_t stream, const sl_norm_call *call)
{
    return norm<false>(stream, call);
}
