/* The steps of one wide head that are no products. */
#include "kernels/attention_cuda.h"
#include "kernels/cuda_vec.cuh"

namespace
{

enum { WARP = 32, THREADS = 256, WARPS = THREADS / WARP, TILE = 32, TILE_ROWS = 8 };

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

/* A block for each row; the row stays in the second level of cache. */
__global__ void __launch_bounds__(THREADS)
    softmax_rows(sl_bf16 *p, const float *s, int64_t count, float scale)
{
    float top = -INFINITY, sum = 0.0f;

    s += (int64_t)blockIdx.x * count;
    p += (int64_t)blockIdx.x * count;
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        top = fmaxf(top, scale * s[i]);
    top = over_block<largest>(top);
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        sum += expf(scale * s[i] - top);
    sum = over_block<total>(sum);
    const float by = 1.0f / sum;
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        sl_put(p + i, expf(scale * s[i] - top) * by);
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

extern "C" cudaError_t sl_cuda_softmax_rows(cudaStream_t stream, void *p, const float *s,
                                            int64_t rows, int64_t count, float scale)
{
    if (rows > 0)
        softmax_rows<<<(unsigned)rows, THREADS, 0, stream>>>((sl_bf16 *)p, s, count, scale);
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
