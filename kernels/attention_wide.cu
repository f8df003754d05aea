/* The steps of one wide head that are no products. */
#include "kernels/attention_cuda.h"
#include "kernels/cuda_vec.cuh"

namespace
{

enum {
    WARP = 32,
    THREADS = 256,
    WARPS = THREADS / WARP,
    HELD_SHORT = 7, /* float4 of a thread: 7168 scores, the VAE's 480p */
    HELD_LONG = 15, /* 15360: its 720p */
    TILE = 32,
    TILE_ROWS = 8,
};

struct largest {
    __device__ static float apply(float a, float b)
    {
        return fmaxf(a, b);
    }
};

struct total {
    __device__ static float apply(float a, float b)
    {
        return a + b;
    }
};

/* Over all threads of the block, in an order that its size alone decides. */
template <typename OP> __device__ float over_block(float v)
{
    __shared__ float of_warp[WARPS];

    for (int step = WARP / 2; step > 0; step /= 2)
        v = OP::apply(v, __shfl_xor_sync(0xffffffffu, v, step));
    __syncthreads(); /* the last one's readers are done */
    if (threadIdx.x % WARP == 0)
        of_warp[threadIdx.x / WARP] = v;
    __syncthreads();
    v = of_warp[0];
    for (int w = 1; w < WARPS; w++)
        v = OP::apply(v, of_warp[w]);
    return v;
}

/* A block for each row.  Rows of up to THREADS * MOST * 4 scores are read once and
 * stay in registers; longer ones are read again from the second level of cache.
 * The first needs whole, aligned float4. */
template <int MOST>
__global__ void __launch_bounds__(THREADS)
    exp_rows_held(sl_bf16 *p, float *sums, const float *s, int64_t count, float scale)
{
    float4 held[MOST];
    float top = -INFINITY, sum = 0.0f;

    s += (int64_t)blockIdx.x * count;
    p += (int64_t)blockIdx.x * count;
#pragma unroll
    for (int v = 0; v < MOST; v++) {
        const int64_t i = 4 * (threadIdx.x + (int64_t)v * THREADS);
        held[v] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (i < count) {
            const float4 in = *(const float4 *)(s + i);
            held[v] = make_float4(scale * in.x, scale * in.y, scale * in.z, scale * in.w);
        }
        top = fmaxf(top, fmaxf(fmaxf(held[v].x, held[v].y), fmaxf(held[v].z, held[v].w)));
    }
    top = over_block<largest>(top);
#pragma unroll
    for (int v = 0; v < MOST; v++) {
        const int64_t i = 4 * (threadIdx.x + (int64_t)v * THREADS);
        const float a = expf(held[v].x - top), b = expf(held[v].y - top);
        const float c = expf(held[v].z - top), d = expf(held[v].w - top);
        sum += (a + b) + (c + d);
        if (i < count)
            *(uint2 *)(p + i) = make_uint2(sl_bf16_pair(a, b), sl_bf16_pair(c, d));
    }
    sum = over_block<total>(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS)
    exp_rows(sl_bf16 *p, float *sums, const float *s, int64_t count, float scale)
{
    float top = -INFINITY, sum = 0.0f;

    s += (int64_t)blockIdx.x * count;
    p += (int64_t)blockIdx.x * count;
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        top = fmaxf(top, scale * s[i]);
    top = over_block<largest>(top);
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const float weight = expf(scale * s[i] - top);
        sl_put(p + i, weight);
        sum += weight;
    }
    sum = over_block<total>(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS)
    divide_rows(sl_bf16 *o, const float *x, const float *sums, int64_t count, int64_t D)
{
    for (int64_t at = sl_thread_index(); at < count; at += sl_thread_count())
        sl_put(o + at, x[at] / sums[at / D]);
}

__global__ void __launch_bounds__(TILE *TILE_ROWS)
    transpose(sl_bf16 *y, const sl_bf16 *x, int64_t rows, int64_t columns)
{
    __shared__ sl_bf16 tile[TILE][TILE + 2]; /* off each other's banks */
    const int64_t row0 = (int64_t)blockIdx.x * TILE, column0 = (int64_t)blockIdx.y * TILE;

    for (int r = threadIdx.y; r < TILE; r += TILE_ROWS)
        if (row0 + r < rows && column0 + threadIdx.x < columns)
            tile[r][threadIdx.x] = x[(row0 + r) * columns + column0 + threadIdx.x];
    __syncthreads();
    for (int c = threadIdx.y; c < TILE; c += TILE_ROWS)
        if (column0 + c < columns && row0 + threadIdx.x < rows)
            y[(column0 + c) * rows + row0 + threadIdx.x] = tile[threadIdx.x][c];
}

} // namespace

extern "C" cudaError_t sl_cuda_exp_rows(cudaStream_t stream, void *p, float *sums, const float *s,
                                        int64_t rows, int64_t count, float scale)
{
    const bool whole = count % 4 == 0 && sl_aligned16(s) && sl_aligned16(p);

    if (rows == 0)
        return cudaSuccess;
    if (whole && count <= THREADS * 4 * HELD_SHORT)
        exp_rows_held<HELD_SHORT>
            <<<(unsigned)rows, THREADS, 0, stream>>>((sl_bf16 *)p, sums, s, count, scale);
    else if (whole && count <= THREADS * 4 * HELD_LONG)
        exp_rows_held<HELD_LONG>
            <<<(unsigned)rows, THREADS, 0, stream>>>((sl_bf16 *)p, sums, s, count, scale);
    else
        exp_rows<<<(unsigned)rows, THREADS, 0, stream>>>((sl_bf16 *)p, sums, s, count, scale);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_divide_rows(cudaStream_t stream, void *o, const float *x,
                                           const float *sums, int64_t rows, int64_t D)
{
    const int64_t count = rows * D;

    divide_rows<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>((sl_bf16 *)o, x, sums, count,
                                                                     D);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_transpose(cudaStream_t stream, void *y, const void *x, int64_t rows,
                                         int64_t columns)
{
    const dim3 grid((unsigned)((rows + TILE - 1) / TILE), (unsigned)((columns + TILE - 1) / TILE));

    transpose<<<grid, dim3(TILE, TILE_ROWS), 0, stream>>>((sl_bf16 *)y, (const sl_bf16 *)x, rows,
                                                          columns);
    return cudaGetLastError();
}
