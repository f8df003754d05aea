/* 8-bit codes of queries, keys and values: sage.h's arithmetic to the bit. */
#include "kernels/sla_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace {

constexpr int quantize_threads = 256;
constexpr int columns = 32, lines = 8, rows_of_chunk = 256; /* of a block of quantize_v */

template <typename T, int count> struct alignas(sizeof(T) * count) vector {
    T v[count];
};

__device__ __forceinline__ float round_bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Orders numbers as their magnitudes, NaN above all. */
__device__ __forceinline__ uint32_t magnitude(float x)
{
    return __float_as_uint(x) & 0x7fffffffu;
}

/* Half away from zero.  A NaN gives any code: its scale carries it on. */
__device__ __forceinline__ int8_t code_of(float x, float scale)
{
    const float y = __fdiv_rn(x, scale);
    const float moved = y + (y < 0.0f ? -0.5f : 0.5f);
    return (int8_t)(int)fminf(fmaxf(moved, -127.5f), 127.5f);
}

/* One block of rows of one head; its values are read twice, the second time from
 * the cache. */
template <typename T, int wide>
__global__ void __launch_bounds__(quantize_threads)
    quantize(int8_t *q, float *scale, const T *x, const float *shift, int64_t S, int64_t width,
             int D, int block, int blocks)
{
    __shared__ uint32_t most;
    const int n = blockIdx.y, vectors = D / wide;
    const int64_t first = (int64_t)blockIdx.x * block;
    const int rows = (int)min((int64_t)block, S - first);
    const int64_t base = first * width + (int64_t)n * D;
    uint32_t found = 0;

    const auto smoothed = [&](float (&out)[wide], int i) {
        const int c = i % vectors * wide;
        const vector<T, wide> in = *(const vector<T, wide> *)(x + base + i / vectors * width + c);
#pragma unroll
        for (int j = 0; j < wide; j++)
            out[j] = round_bf16(round_bf16((float)in.v[j]) -
                                (shift ? shift[(int64_t)n * D + c + j] : 0.0f));
    };

    if (threadIdx.x == 0)
        most = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < rows * vectors; i += quantize_threads) {
        float v[wide];

        smoothed(v, i);
#pragma unroll
        for (int j = 0; j < wide; j++)
            found = max(found, magnitude(v[j]));
    }
    found = __reduce_max_sync(0xffffffffu, found);
    if (threadIdx.x % 32 == 0)
        atomicMax(&most, found);
    __syncthreads();
    const float by = __fadd_rn(__fdiv_rn(__uint_as_float(most), 127.0f), 1e-7f);
    if (threadIdx.x == 0)
        scale[(int64_t)n * blocks + blockIdx.x] = by;
    for (int i = threadIdx.x; i < rows * vectors; i += quantize_threads) {
        vector<int8_t, wide> codes;
        float v[wide];

        smoothed(v, i);
#pragma unroll
        for (int j = 0; j < wide; j++)
            codes.v[j] = code_of(v[j], by);
        *(vector<int8_t, wide> *)(q + base + i / vectors * width + i % vectors * wide) = codes;
    }
}

/* most[c], bits that start at 0, becomes the largest magnitude of column c: a
 * maximum does not depend on the order in which blocks come. */
template <typename T, int wide>
__global__ void column_max(uint32_t *most, const T *x, int64_t S, int64_t C)
{
    __shared__ uint32_t found[lines][columns * wide];
    const int64_t c = ((int64_t)blockIdx.y * columns + threadIdx.x) * wide;
    const int64_t first = (int64_t)blockIdx.x * rows_of_chunk;
    const int64_t end = min(first + rows_of_chunk, S);
    uint32_t own[wide] = {};

    for (int64_t row = first + threadIdx.y; c < C && row < end; row += lines) {
        const vector<T, wide> in = *(const vector<T, wide> *)(x + row * C + c);
#pragma unroll
        for (int j = 0; j < wide; j++)
            own[j] = max(own[j], magnitude(round_bf16((float)in.v[j])));
    }
#pragma unroll
    for (int j = 0; j < wide; j++)
        found[threadIdx.y][threadIdx.x * wide + j] = own[j];
    __syncthreads();
    if (threadIdx.y != 0 || c >= C)
        return;
#pragma unroll
    for (int j = 0; j < wide; j++) {
        for (int i = 1; i < lines; i++)
            own[j] = max(own[j], found[i][threadIdx.x * wide + j]);
        atomicMax(&most[c + j], own[j]);
    }
}

template <typename T, int wide>
__global__ void encode_columns(uint8_t *q, const float *amax, const T *x, int64_t S, int64_t C)
{
    const int64_t c = ((int64_t)blockIdx.y * columns + threadIdx.x) * wide;
    const int64_t first = (int64_t)blockIdx.x * rows_of_chunk;
    const int64_t end = min(first + rows_of_chunk, S);
    float by[wide];

    if (c >= C)
        return;
#pragma unroll
    for (int j = 0; j < wide; j++)
        by[j] = amax[c + j] == 0.0f ? 0.0f : __fdiv_rn(2.25f, amax[c + j]);
    for (int64_t row = first + threadIdx.y; row < end; row += lines) {
        const vector<T, wide> in = *(const vector<T, wide> *)(x + row * C + c);
        vector<uint8_t, wide> codes;
#pragma unroll
        for (int j = 0; j < wide; j++)
            codes.v[j] = __nv_cvt_float_to_fp8(__fmul_rn(round_bf16((float)in.v[j]), by[j]),
                                               __NV_SATFINITE, __NV_E4M3);
        *(vector<uint8_t, wide> *)(q + row * C + c) = codes;
    }
}

__global__ void amax_to_scale(float *scale, int64_t C)
{
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (c < C)
        scale[c] = __fdiv_rn(scale[c], 2.25f);
}

template <typename T, int wide>
void launch_quantize(cudaStream_t stream, int8_t *q, float *scale, const void *x,
                     const float *shift, int64_t S, int64_t N, int64_t D, int64_t block)
{
    const int64_t blocks = ceil_div(S, block);

    quantize<T, wide><<<dim3((unsigned)blocks, (unsigned)N), quantize_threads, 0, stream>>>(
        q, scale, (const T *)x, shift, S, N * D, (int)D, (int)block, (int)blocks);
}

template <typename T, int wide>
cudaError_t launch_quantize_v(cudaStream_t stream, uint8_t *q, float *scale, const void *x,
                              int64_t S, int64_t C)
{
    const dim3 grid((unsigned)ceil_div(S, rows_of_chunk), (unsigned)ceil_div(C, columns * wide));
    const cudaError_t error = cudaMemsetAsync(scale, 0, (size_t)C * sizeof *scale, stream);

    if (error != cudaSuccess)
        return error;
    if (S > 0) {
        column_max<T, wide>
            <<<grid, dim3(columns, lines), 0, stream>>>((uint32_t *)scale, (const T *)x, S, C);
        encode_columns<T, wide>
            <<<grid, dim3(columns, lines), 0, stream>>>(q, scale, (const T *)x, S, C);
        amax_to_scale<<<(unsigned)ceil_div(C, 256), 256, 0, stream>>>(scale, C);
    }
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t sl_cuda_sage_quantize(cudaStream_t stream, int8_t *q, float *scale,
                                             const void *x, bool bf16, const float *shift,
                                             int64_t S, int64_t N, int64_t D, int64_t block)
{
    if (bf16 && D % 8 == 0)
        launch_quantize<__nv_bfloat16, 8>(stream, q, scale, x, shift, S, N, D, block);
    else if (bf16)
        launch_quantize<__nv_bfloat16, 1>(stream, q, scale, x, shift, S, N, D, block);
    else if (D % 4 == 0)
        launch_quantize<float, 4>(stream, q, scale, x, shift, S, N, D, block);
    else
        launch_quantize<float, 1>(stream, q, scale, x, shift, S, N, D, block);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sage_quantize_v(cudaStream_t stream, uint8_t *q, float *scale,
                                               const void *x, bool bf16, int64_t S, int64_t C)
{
    if (bf16 && C % 8 == 0)
        return launch_quantize_v<__nv_bfloat16, 8>(stream, q, scale, x, S, C);
    if (bf16)
        return launch_quantize_v<__nv_bfloat16, 1>(stream, q, scale, x, S, C);
    if (C % 4 == 0)
        return launch_quantize_v<float, 4>(stream, q, scale, x, S, C);
    return launch_quantize_v<float, 1>(stream, q, scale, x, S, C);
}
