/* Convolution without a library: the direct kernel for f32 and for what the
 * library refuses, and what brings operands into the form that it takes. */
#include "kernels/conv_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum {
    TILE = 64,      /* positions and output channels of a block */
    STEP = 16,      /* of K */
    PER_THREAD = 4, /* positions and channels of a thread; elements of K that it loads */
    THREADS = 256,
    PAD = 4, /* keeps rows of the tiles 16-byte aligned and off each other's banks */
};

const int64_t most_lines = 32768; /* of a grid */

/* ---- direct ---- */

/* Where an output position reads: all that does not depend on K. */
struct position {
    bool inside;
    int64_t frame;   /* of [cache | x], of the first tap; may be negative */
    int row, column; /* of the enlarged image, of the first tap */
};

__device__ position position_at(const sl_cuda_conv &c, int64_t m)
{
    const int64_t pixels = c.Ho * c.Wo;
    position p = { m < c.To * pixels, 0, 0, 0 };

    if (p.inside) {
        const int64_t to = m / pixels;
        const int64_t pixel = m - to * pixels;
        const int ho = (int)(pixel / c.Wo), wo = (int)(pixel % c.Wo);
        p.frame = to * c.stride_t - c.zero_frames;
        p.row = ho * c.stride_hw - c.pad_top;
        p.column = wo * c.stride_hw - c.pad_left;
    }
    return p;
}

template <typename T>
__device__ float input_at(const sl_cuda_conv &c, const position &p, int tap, int i)
{
    const int column_tap = tap % c.kw, rest = tap / c.kw;
    const int row = p.row + rest % c.kh, column = p.column + column_tap;
    const int64_t frame = p.frame + rest / c.kh;

    if (!p.inside || frame < 0 || row < 0 || column < 0 || row >= c.upsample * c.H ||
        column >= c.upsample * c.W)
        return 0.0f;
    const T *frames = (const T *)(frame < c.cached ? c.cache : c.x);
    const int64_t index = frame < c.cached ? frame : frame - c.cached;
    return sl_get(frames + ((index * c.H + row / c.upsample) * c.W + column / c.upsample) * c.I +
                  i);
}

/* PER_THREAD inputs from element k of K on. */
template <typename T>
__device__ void load_inputs(float (&out)[PER_THREAD], const sl_cuda_conv &c, const position &p,
                            int k, int K)
{
    int tap = k / (int)c.I, i = k % (int)c.I;

#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        out[j] = k + j < K ? input_at<T>(c, p, tap, i) : 0.0f;
        if (++i == c.I) {
            i = 0;
            tap++;
        }
    }
}

template <typename TW>
__device__ void load_weights(float (&out)[PER_THREAD], const sl_cuda_conv &c, int64_t o, int k,
                             int K)
{
    const TW *w = (const TW *)c.w + o * K;

#pragma unroll
    for (int j = 0; j < PER_THREAD; j++)
        out[j] = o < c.O && k + j < K ? sl_get(w + k + j) : 0.0f;
}

template <typename T>
__device__ void store_outputs(const sl_cuda_conv &c, const float (&sum)[PER_THREAD][PER_THREAD],
                              int64_t m, int64_t o)
{
    const sl_param bias = { c.b, c.b_bf16 };

    for (int a = 0; a < PER_THREAD; a++)
        for (int b = 0; b < PER_THREAD; b++) {
            if (m + a >= c.To * c.Ho * c.Wo || o + b >= c.O)
                continue;
            const int64_t at = (m + a) * c.O + o + b;
            float v = sum[a][b] + (c.b ? sl_param_get(bias, o + b) : 0.0f);
            if (c.residual)
                v += sl_get((const T *)c.residual + at);
            sl_put((T *)c.y + at, v);
        }
}

template <typename T, typename TW> __global__ void __launch_bounds__(THREADS) direct(sl_cuda_conv c)
{
    __shared__ __align__(16) float inputs[STEP][TILE + PAD], weights[STEP][TILE + PAD];
    const int K = c.kt * c.kh * c.kw * (int)c.I;
    const int64_t m0 = (int64_t)blockIdx.x * TILE, o0 = (int64_t)blockIdx.y * TILE;
    /* Four threads load one row of each tile. */
    const int load_row = threadIdx.x / (STEP / PER_THREAD);
    const int load_k = threadIdx.x % (STEP / PER_THREAD) * PER_THREAD;
    const int mine = threadIdx.x / (TILE / PER_THREAD) * PER_THREAD;
    const int channel = threadIdx.x % (TILE / PER_THREAD) * PER_THREAD;
    const position p = position_at(c, m0 + load_row);
    float sum[PER_THREAD][PER_THREAD] = {};

    for (int k = 0; k < K; k += STEP) {
        float a[PER_THREAD], b[PER_THREAD];

        load_inputs<T>(a, c, p, k + load_k, K);
        load_weights<TW>(b, c, o0 + load_row, k + load_k, K);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            inputs[load_k + j][load_row] = a[j];
            weights[load_k + j][load_row] = b[j];
        }
        __syncthreads();
#pragma unroll
        for (int s = 0; s < STEP; s++) {
            const float4 in = *(const float4 *)&inputs[s][mine];
            const float4 wt = *(const float4 *)&weights[s][channel];
            const float in4[PER_THREAD] = { in.x, in.y, in.z, in.w };
            const float wt4[PER_THREAD] = { wt.x, wt.y, wt.z, wt.w };
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++)
                    sum[i][j] = fmaf(in4[i], wt4[j], sum[i][j]);
        }
    }
    store_outputs<T>(c, sum, m0 + mine, o0 + channel);
}

/* ---- what the library takes ---- */

__device__ const sl_bf16 *frame_of(const sl_cuda_conv &c, int64_t frame)
{
    return frame < c.cached ? (const sl_bf16 *)c.cache + frame * c.H * c.W * c.I
                            : (const sl_bf16 *)c.x + (frame - c.cached) * c.H * c.W * c.I;
}

/* A thread: 8 channels of a pixel of dst.  Blocks in y: lines of dst. */
template <bool WHOLE>
__global__ void __launch_bounds__(THREADS)
    gather(sl_cuda_conv c, uint4 *dst, int64_t first, int64_t lines, int vecs)
{
    const int width = (int)(c.upsample * c.W), height = (int)(c.upsample * c.H);
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int column = (int)(at / vecs), vec = (int)(at % vecs);

    if (column >= width)
        return;
    for (int64_t line = blockIdx.y; line < lines; line += gridDim.y) {
        const int64_t frame = line / height;
        const int row = (int)(line - frame * height);
        const sl_bf16 *src = frame_of(c, first + frame) +
                             ((int64_t)(row / c.upsample) * c.W + column / c.upsample) * c.I +
                             (int64_t)vec * 8;
        uint4 *to = dst + (line * width + column) * vecs + vec;

        if (WHOLE) {
            *to = *(const uint4 *)src;
        } else {
            sl_vec8 v;
#pragma unroll
            for (int e = 0; e < 8; e++)
                v.v[e] = (int64_t)vec * 8 + e < c.I ? sl_get(src + e) : 0.0f;
            sl_put8((sl_bf16 *)to, v);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    pack(sl_bf16 *dst, const T *src, int64_t count, int64_t from, int64_t to)
{
    for (int64_t at = sl_thread_index(); at < count; at += sl_thread_count()) {
        const int64_t row = at / to, column = at - row * to;

        sl_put(dst + at, src && column < from ? sl_get(src + row * from + column) : 0.0f);
    }
}

/* E: what is moved at once; half: as many of them are in one position of y. */
template <typename E>
__global__ void __launch_bounds__(THREADS)
    pair_frames(E *y, const E *x, int64_t n, int64_t positions, int64_t half)
{
    const int64_t frame = positions * half;

    for (int64_t at = sl_thread_index(); at < 2 * n * frame; at += sl_thread_count()) {
        const int64_t t = at / (2 * frame), in_pair = at - t * 2 * frame;
        const int64_t position = in_pair / (2 * half), element = in_pair - position * 2 * half;
        const int64_t second = element >= half ? 1 : 0;

        y[(2 * t + second) * frame + position * half + element - second * half] = x[at];
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_conv_direct(cudaStream_t stream, const sl_cuda_conv *c)
{
    const int64_t positions = c->To * c->Ho * c->Wo;
    const int64_t columns = (positions + TILE - 1) / TILE, rows = (c->O + TILE - 1) / TILE;
    const dim3 grid((unsigned)columns, (unsigned)rows);

    if (columns > 0x7fffffff || rows > 65535)
        return cudaErrorInvalidValue;
    SL_BY_DTYPE(c->bf16 ? SL_BF16 : SL_F32, T,
                SL_BY_DTYPE(c->w_bf16 ? SL_BF16 : SL_F32, TW,
                            direct<T, TW><<<grid, THREADS, 0, stream>>>(*c)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_conv_gather(cudaStream_t stream, const sl_cuda_conv *c, void *dst,
                                           int64_t first, int64_t count, int64_t channels)
{
    const int vecs = (int)(channels / 8);
    const int64_t lines = count * c->upsample * c->H;
    const int64_t across = (c->upsample * c->W * vecs + THREADS - 1) / THREADS;
    const dim3 grid((unsigned)across, (unsigned)(lines < most_lines ? lines : most_lines));

    if (lines == 0)
        return cudaSuccess;
    if (c->I == channels && sl_aligned16(c->x) && (!c->cache || sl_aligned16(c->cache)))
        gather<true><<<grid, THREADS, 0, stream>>>(*c, (uint4 *)dst, first, lines, vecs);
    else
        gather<false><<<grid, THREADS, 0, stream>>>(*c, (uint4 *)dst, first, lines, vecs);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_conv_pack(cudaStream_t stream, void *dst, const void *src,
                                         bool src_bf16, int64_t rows, int64_t from, int64_t to)
{
    const int64_t count = rows * to;
    const unsigned blocks = sl_grid_for(count, THREADS);

    SL_BY_DTYPE(src_bf16 ? SL_BF16 : SL_F32, T,
                pack<T>
                <<<blocks, THREADS, 0, stream>>>((sl_bf16 *)dst, (const T *)src, count, from, to));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_pair_frames(cudaStream_t stream, void *y, const void *x, int64_t n,
                                           int64_t positions, int64_t C, int size_bytes)
{
    const int64_t half_bytes = C * size_bytes;
    const bool wide = half_bytes % 16 == 0 && sl_aligned16(x) && sl_aligned16(y);
    const int64_t half = wide ? half_bytes / 16 : C;
    const unsigned blocks = sl_grid_for(2 * n * positions * half, THREADS);

    if (n * positions * C == 0)
        return cudaSuccess;
    if (wide)
        pair_frames<<<blocks, THREADS, 0, stream>>>((uint4 *)y, (const uint4 *)x, n, positions,
                                                    half);
    else if (size_bytes == 2)
        pair_frames<<<blocks, THREADS, 0, stream>>>((uint16_t *)y, (const uint16_t *)x, n,
                                                    positions, half);
    else
        pair_frames<<<blocks, THREADS, 0, stream>>>((uint32_t *)y, (const uint32_t *)x, n,
                                                    positions, half);
    return cudaGetLastError();
}
