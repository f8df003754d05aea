/* sla_plain.cuh - sparse attention in f32 arithmetic: any head, any blocks, any
 * dtypes.  Slow; for exact runs and for shapes that the tensor-core kernels do
 * not take.
 *
 * A block of 4 warps has 16 rows of one query block, 4 to a warp.  For logits a
 * lane has the keys lane, lane + 32, ... of a key block, for the product its 4
 * columns.  A whole key block is weighed at once, as sage.h says.
 */
#ifndef SL_KERNELS_SLA_PLAIN_CUH
#define SL_KERNELS_SLA_PLAIN_CUH

#include "kernels/sla_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

constexpr int plain_warps = 4, plain_lines = 4, plain_tile = plain_warps * plain_lines;
constexpr int plain_blocks = 128 / 32; /* keys of a lane */

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(int8_t x) { return (float)x; }
__device__ __forceinline__ float widen(uint8_t e4m3)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(e4m3, __NV_E4M3)));
}

__device__ __forceinline__ void narrow(float &out, float x) { out = x; }
__device__ __forceinline__ void narrow(__nv_bfloat16 &out, float x) { out = __float2bfloat16_rn(x); }

__device__ __forceinline__ float rounded_bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

__device__ __forceinline__ float rounded_e4m3(float x)
{
    return widen((uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
}

__device__ __forceinline__ float warp_max(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ __forceinline__ float warp_sum(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The branch of the warp's rows: out[r] the lane's 4 columns.  rows: the warp's
 * own queries in shared memory, which are lost. */
template <typename T>
__device__ void plain_branch(float (&out)[plain_lines][4], const sl_cuda_branch &branch, float *rows,
                             const T *q, int64_t width, int lines, int n, int D)
{
    const float *state = branch.state + (int64_t)n * (D + 1) * D;
    const int lane = threadIdx.x % 32, own = lane * 4;
    float norm[plain_lines] = {};

    __syncwarp();
    for (int r = 0; r < lines; r++) {
        float top = -INFINITY, sum = 0.0f, den = 0.0f;

        for (int d = lane; d < D; d += 32)
            top = fmaxf(top, widen(q[r * width + d]));
        top = warp_max(top);
        for (int d = lane; d < D; d += 32)
            sum += rows[r * D + d] = expf(widen(q[r * width + d]) - top);
        sum = warp_sum(sum);
        for (int d = lane; d < D; d += 32) {
            rows[r * D + d] *= 1.0f / sum;
            den = fmaf(rows[r * D + d], state[D * D + d], den);
        }
        norm[r] = 1.0f / (warp_sum(den) + 1e-5f);
    }
    __syncwarp();
    for (int i = 0; i < plain_lines * 4; i++)
        out[i / 4][i % 4] = 0.0f;
    for (int d = 0; d < D && own < D; d++) {
        const float4 s = *(const float4 *)(state + d * D + own);
#pragma unroll
        for (int r = 0; r < plain_lines; r++) {
            const float phi = r < lines ? rows[r * D + d] : 0.0f;
            out[r][0] = fmaf(phi, s.x, out[r][0]);
            out[r][1] = fmaf(phi, s.y, out[r][1]);
            out[r][2] = fmaf(phi, s.z, out[r][2]);
            out[r][3] = fmaf(phi, s.w, out[r][3]);
        }
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < plain_lines; r++)
        for (int i = 0; i < 4; i++) {
            if (r < lines && own < D)
                rows[r * D + own + i] = out[r][i] * norm[r];
            out[r][i] = 0.0f;
        }
    __syncwarp();
    for (int i = 0; i < 4 && own < D; i++) {
        for (int d = 0; d < D; d++) {
            const int64_t at = (int64_t)(own + i) * D + d;
            const float w = branch.w_bf16 ? widen(((const __nv_bfloat16 *)branch.proj_w)[at])
                                          : ((const float *)branch.proj_w)[at];
#pragma unroll
            for (int r = 0; r < plain_lines; r++)
                out[r][i] = fmaf(r < lines ? rows[r * D + d] : 0.0f, w, out[r][i]);
        }
        const float bias = branch.b_bf16 ? widen(((const __nv_bfloat16 *)branch.proj_b)[own + i])
                                         : ((const float *)branch.proj_b)[own + i];
#pragma unroll
        for (int r = 0; r < plain_lines; r++)
            out[r][i] += bias;
    }
}

/* One call.  Q, K, V: what logits and products are made of; T: of o and of the
 * branch's q.  The scales are NULL but for sage. */
template <typename T, typename Q, typename K, typename V> struct plain_args {
    T *o;
    const T *branch_q;
    const Q *q;
    const K *k;
    const V *v;
    const float *q_scale, *k_scale, *v_scale;
    const int32_t *lut;
    sl_cuda_branch branch;
    int64_t S, width;
    int D, keep, block_q, block_k, query_blocks, key_blocks, row_tiles;
    float scale;
};

/* Floats of shared memory: the rows of queries, one block of keys or values. */
inline int64_t plain_floats(int64_t D, int64_t block_k)
{
    return plain_tile * D + block_k * (D + 4);
}

template <typename T, typename Q, typename K, typename V, bool sage>
__global__ void __launch_bounds__(plain_warps * 32) plain_attention(plain_args<T, Q, K, V> a)
{
    extern __shared__ float4 plain_shared[];
    constexpr float log2_e = 1.44269504088896341f, p_exponent = 8.807f;
    const int D = a.D, stride = D + 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n = blockIdx.y, block = blockIdx.x / a.row_tiles, own = lane * 4;
    const int64_t block_begin = (int64_t)block * a.block_q;
    const int64_t block_end = min(block_begin + a.block_q, a.S);
    const int64_t first = block_begin + blockIdx.x % a.row_tiles * plain_tile + warp * plain_lines;
    const int lines = (int)max((int64_t)0, min((int64_t)plain_lines, block_end - first));
    const int32_t *lut = a.lut + ((int64_t)n * a.query_blocks + block) * a.keep;
    float *rows = (float *)plain_shared + warp * plain_lines * D;
    float *tile = (float *)plain_shared + plain_tile * D;
    float top[plain_lines], sum[plain_lines] = {}, product[plain_lines][4] = {};

    for (int r = 0; r < plain_lines; r++) {
        top[r] = -INFINITY;
        for (int d = lane; d < D; d += 32)
            rows[r * D + d] = r < lines ? widen(a.q[(first + r) * a.width + n * D + d]) : 0.0f;
    }
    for (int at = 0; at < a.keep; at++) {
        const int64_t begin = (int64_t)lut[at] * a.block_k;
        const int keys = (int)min((int64_t)a.block_k, a.S - begin);
        float by = a.scale, s[plain_lines][plain_blocks] = {};

        if (sage)
            by = a.q_scale[n * a.query_blocks + block] * a.k_scale[n * a.key_blocks + lut[at]] *
                 (a.scale * log2_e);
        __syncthreads();
        for (int i = threadIdx.x; i < keys * D; i += blockDim.x)
            tile[i / D * stride + i % D] = widen(a.k[(begin + i / D) * a.width + n * D + i % D]);
        __syncthreads();
        for (int d = 0; d < D; d += 4) {
            float4 q[plain_lines];
#pragma unroll
            for (int r = 0; r < plain_lines; r++)
                q[r] = *(const float4 *)(rows + r * D + d);
#pragma unroll
            for (int c = 0; c < plain_blocks; c++) {
                if (c * 32 + lane >= keys)
                    continue;
                const float4 k = *(const float4 *)(tile + (c * 32 + lane) * stride + d);
#pragma unroll
                for (int r = 0; r < plain_lines; r++) {
                    s[r][c] = fmaf(q[r].x, k.x, s[r][c]);
                    s[r][c] = fmaf(q[r].y, k.y, s[r][c]);
                    s[r][c] = fmaf(q[r].z, k.z, s[r][c]);
                    s[r][c] = fmaf(q[r].w, k.w, s[r][c]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < plain_lines; r++) {
            float now = top[r], part = 0.0f;

            for (int c = 0; c < plain_blocks; c++) {
                s[r][c] = c * 32 + lane < keys ? s[r][c] * by : -INFINITY;
                now = fmaxf(now, s[r][c]);
            }
            now = warp_max(now);
            const float kept = sage ? exp2f(top[r] - now) : expf(top[r] - now);
            for (int c = 0; c < plain_blocks; c++) {
                s[r][c] = sage ? exp2f(s[r][c] - now + p_exponent) : expf(s[r][c] - now);
                part += s[r][c];
                if (sage)
                    s[r][c] = rounded_e4m3(s[r][c]);
            }
            sum[r] = sum[r] * kept + part;
            top[r] = now;
            for (int i = 0; i < 4; i++)
                product[r][i] *= kept;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < keys * D; i += blockDim.x)
            tile[i / D * stride + i % D] = widen(a.v[(begin + i / D) * a.width + n * D + i % D]);
        __syncthreads();
#pragma unroll
        for (int c = 0; c < plain_blocks; c++)
            for (int j = 0; j < 32 && c * 32 + j < keys; j++) {
                const float4 v = own < D ? *(const float4 *)(tile + (c * 32 + j) * stride + own)
                                         : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
                for (int r = 0; r < plain_lines; r++) {
                    const float p = __shfl_sync(0xffffffffu, s[r][c], j);
                    product[r][0] = fmaf(p, v.x, product[r][0]);
                    product[r][1] = fmaf(p, v.y, product[r][1]);
                    product[r][2] = fmaf(p, v.z, product[r][2]);
                    product[r][3] = fmaf(p, v.w, product[r][3]);
                }
            }
    }
    float branch[plain_lines][4] = {};
    if (a.branch.state)
        plain_branch(branch, a.branch, rows, a.branch_q + first * a.width + n * D, a.width, lines, n,
                     D);
    for (int r = 0; r < lines; r++) {
        const float by = 1.0f / warp_sum(sum[r]);

        for (int i = 0; i < 4 && own < D; i++) {
            float value = product[r][i] * by;

            if (sage) {
                value = rounded_bf16(value * a.v_scale[n * D + own + i]);
                if (a.branch.state)
                    value = rounded_bf16(value + rounded_bf16(branch[r][i]));
            } else {
                value += branch[r][i];
            }
            narrow(a.o[(first + r) * a.width + n * D + own + i], value);
        }
    }
}

template <bool sage, typename T, typename Q, typename K, typename V>
cudaError_t launch_plain(cudaStream_t stream, plain_args<T, Q, K, V> a, int64_t N)
{
    const auto kernel = plain_attention<T, Q, K, V, sage>;
    const int bytes = (int)(plain_floats(a.D, a.block_k) * (int64_t)sizeof(float));
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

    a.row_tiles = (a.block_q + plain_tile - 1) / plain_tile;
    a.query_blocks = (int)((a.S + a.block_q - 1) / a.block_q);
    a.key_blocks = (int)((a.S + a.block_k - 1) / a.block_k);
    if (error != cudaSuccess)
        return error;
    kernel<<<dim3((unsigned)(a.query_blocks * a.row_tiles), (unsigned)N), plain_warps * 32, bytes,
             stream>>>(a);
    return cudaGetLastError();
}

#endif
