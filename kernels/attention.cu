/* Attention on the plain cores, in f32: any head up to 512 wide, any bias.  It is
 * the way of everything that the libraries do not take, and of f32.
 *
 * A block has QUERIES queries of one head and goes over the keys KEYS at a time,
 * with a running maximum (Milakov and Gimelshein, "Online normalizer calculation
 * for softmax", 2018).  A thread has 4 x 4 scores of a tile, and 4 rows by 4 columns
 * of each 64 of the head of what is summed.  Both products read their operands from
 * shared memory in steps, so that a head of any width fits.
 *
 * Sums run in a fixed order: two runs agree to the bit.
 */
#include "kernels/attention_cuda.h"

#include "kernels/cuda_vec.cuh"

#include <math_constants.h>

namespace
{

enum {
    QUERIES = 64,
    KEYS = 64,
    SIDE = 16, /* threads along each side of a tile */
    THREADS = SIDE * SIDE,
    PER_THREAD = 4,
    STEP = 32,    /* of the head, in the product of queries and keys */
    COLUMNS = 64, /* of the head, in the product with v */
    ROW = 64 + 4, /* floats from row to row of a shared tile; 16-byte accesses */
    MOST_HEAD = 512,
};

/* Head-major within a token: row i of a head starts at i * N*D. */
struct head {
    int64_t Sq, Sk, width;
    int D;
    float scale;
    const float *bias; /* of this head, at distance 0; NULL: none */
};

__device__ __forceinline__ float4 get4(const float *p)
{
    return *(const float4 *)p;
}

__device__ __forceinline__ float4 get4(const sl_bf16 *p)
{
    const uint2 a = *(const uint2 *)p;

    return make_float4(sl_bf16_low(a.x), sl_bf16_high(a.x), sl_bf16_low(a.y), sl_bf16_high(a.y));
}

__device__ __forceinline__ void put4(float *p, float4 v)
{
    *(float4 *)p = v;
}

__device__ __forceinline__ void put4(sl_bf16 *p, float4 v)
{
    *(uint2 *)p = make_uint2(sl_bf16_pair(v.x, v.y), sl_bf16_pair(v.z, v.w));
}

/* A weight as it meets v: rounded to bf16 where v is bf16. */
__device__ __forceinline__ float weight(float p, const float *)
{
    return p;
}

__device__ __forceinline__ float weight(float p, const sl_bf16 *)
{
    return __bfloat162float(__float2bfloat16_rn(p));
}

/* to[d][row] = rows [first, first + 64) and columns [at, at + STEP) of x; 0 outside. */
template <typename T>
__device__ __forceinline__ void load_turned(float (*to)[ROW], const T *x, int64_t first,
                                            int64_t rows, int64_t width, int at, int D)
{
    for (int i = threadIdx.x; i < 64 * (STEP / 4); i += THREADS) {
        const int row = i / (STEP / 4), d = i % (STEP / 4) * 4;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < rows && at + d < D)
            v = get4(x + (first + row) * width + at + d);
        to[d][row] = v.x;
        to[d + 1][row] = v.y;
        to[d + 2][row] = v.z;
        to[d + 3][row] = v.w;
    }
}

template <typename T>
__device__ __forceinline__ void load_straight(float (*to)[ROW], const T *x, int64_t first,
                                              int64_t rows, int64_t width, int at, int D)
{
    for (int i = threadIdx.x; i < KEYS * (COLUMNS / 4); i += THREADS) {
        const int row = i / (COLUMNS / 4), d = i % (COLUMNS / 4) * 4;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < rows && at + d < D)
            v = get4(x + (first + row) * width + at + d);
        *(float4 *)&to[row][d] = v;
    }
}

/* sum[i][j] += a[i] * b[j] */
__device__ __forceinline__ void multiply(float (*sum)[PER_THREAD], float4 a, float4 b)
{
    const float u[PER_THREAD] = { a.x, a.y, a.z, a.w }, v[PER_THREAD] = { b.x, b.y, b.z, b.w };

#pragma unroll
    for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++)
            sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
}

/* Over the SIDE threads that share a row. */
__device__ __forceinline__ float row_max(float v)
{
#pragma unroll
    for (int lanes = SIDE / 2; lanes > 0; lanes /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}

__device__ __forceinline__ float row_sum(float v)
{
#pragma unroll
    for (int lanes = SIDE / 2; lanes > 0; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

/* Scores of a thread's rows and keys, scaled, with bias; -inf behind the last key. */
__device__ __forceinline__ void finish_scores(float (*s)[PER_THREAD], const head &h,
                                              int64_t first_q, int64_t first_k)
{
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++)
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            const int64_t q = first_q + i, k = first_k + j;
            s[i][j] *= h.scale;
            if (h.bias && q < h.Sq && k < h.Sk)
                s[i][j] += h.bias[k - q];
            if (k >= h.Sk)
                s[i][j] = -CUDART_INF_F;
        }
}

template <int PARTS, typename T>
__global__ void __launch_bounds__(THREADS)
    attention_kernel(T *o, const T *q, const T *k, const T *v, const float *bias, int64_t Sq,
                     int64_t Sk, int64_t N, int D, float scale)
{
    /* The steps of one product and of the other take turns. */
    __shared__ __align__(16) float tiles[2 * STEP][ROW];
    __shared__ __align__(16) float weights[KEYS][ROW]; /* [key][query] */
    float(*const q_tile)[ROW] = tiles, (*const k_tile)[ROW] = tiles + STEP;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int64_t n = blockIdx.y, first_q = (int64_t)blockIdx.x * QUERIES;
    const head h = { Sq, Sk, N * D, D, scale, bias ? bias + n * (Sq + Sk - 1) + Sq - 1 : NULL };
    float sum[PARTS][PER_THREAD][PER_THREAD] = {}, top[PER_THREAD], total[PER_THREAD];

    q += n * D, k += n * D, v += n * D, o += n * D;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        top[i] = -CUDART_INF_F;
        total[i] = 0.0f;
    }
    for (int64_t first_k = 0; first_k < Sk; first_k += KEYS) {
        float s[PER_THREAD][PER_THREAD] = {};

        for (int at = 0; at < D; at += STEP) {
            __syncthreads();
            load_turned(q_tile, q, first_q, Sq, h.width, at, D);
            load_turned(k_tile, k, first_k, Sk, h.width, at, D);
            __syncthreads();
#pragma unroll 8
            for (int d = 0; d < STEP; d++)
                multiply(s, *(const float4 *)&q_tile[d][PER_THREAD * ty],
                         *(const float4 *)&k_tile[d][PER_THREAD * tx]);
        }
        finish_scores(s, h, first_q + PER_THREAD * ty, first_k + PER_THREAD * tx);
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const float now =
                fmaxf(top[i], row_max(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3]))));
            const float by = expf(top[i] - now);
#pragma unroll
            for (int j = 0; j < PER_THREAD; j++)
                s[i][j] = expf(s[i][j] - now);
            total[i] = total[i] * by + row_sum((s[i][0] + s[i][1]) + (s[i][2] + s[i][3]));
            top[i] = now;
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++)
                    sum[part][i][j] *= by;
        }
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++)
            *(float4 *)&weights[PER_THREAD * tx + j][PER_THREAD * ty] = make_float4(
                weight(s[0][j], v), weight(s[1][j], v), weight(s[2][j], v), weight(s[3][j], v));
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            __syncthreads();
            load_straight(tiles, v, first_k, Sk, h.width, part * COLUMNS, D);
            __syncthreads();
#pragma unroll 8
            for (int key = 0; key < KEYS; key++)
                multiply(sum[part], *(const float4 *)&weights[key][PER_THREAD * ty],
                         *(const float4 *)&tiles[key][PER_THREAD * tx]);
        }
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        const int64_t row = first_q + PER_THREAD * ty + i;
        const float by = 1.0f / total[i];
        if (row < Sq)
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const int d = part * COLUMNS + PER_THREAD * tx;
                const float *x = sum[part][i];
                if (d < D)
                    put4(o + row * h.width + d,
                         make_float4(x[0] * by, x[1] * by, x[2] * by, x[3] * by));
            }
    }
}

template <int PARTS, typename T> cudaError_t launch(cudaStream_t stream, const sl_cuda_attention *a)
{
    const dim3 grid((unsigned)((a->Sq + QUERIES - 1) / QUERIES), (unsigned)a->N);

    attention_kernel<PARTS><<<grid, THREADS, 0, stream>>>((T *)a->o, (const T *)a->q,
                                                          (const T *)a->k, (const T *)a->v, a->bias,
                                                          a->Sq, a->Sk, a->N, (int)a->D, a->scale);
    return cudaGetLastError();
}

template <typename T> cudaError_t attention(cudaStream_t stream, const sl_cuda_attention *a)
{
    switch ((a->D + COLUMNS - 1) / COLUMNS) {
    case 1:
        return launch<1, T>(stream, a);
    case 2:
        return launch<2, T>(stream, a);
    case 3:
    case 4:
        return launch<4, T>(stream, a);
    case 5:
    case 6:
        return launch<6, T>(stream, a);
    default:
        return launch<8, T>(stream, a);
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_attention_plain(cudaStream_t stream, const sl_cuda_attention *a)
{
    if (a->Sq == 0)
        return cudaSuccess;
    if (a->N > 65535 || a->D < 1 || a->D > MOST_HEAD || a->D % PER_THREAD)
        return cudaErrorInvalidValue;
    return a->bf16 ? attention<sl_bf16>(stream, a) : attention<float>(stream, a);
}
