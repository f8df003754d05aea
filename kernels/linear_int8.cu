/* int8 codes: quantize_int8, and what linear_int8 is in linear8.cuh's terms. */
#include "kernels/linear8_mma.cuh"
#include "kernels/linear8_wgmma.cuh"

namespace
{

enum { TILE = STEP };

/* ---- quantize_int8 ---- */

enum {
    QUANTIZE_THREADS = 256,
    RUN = 16, /* elements of a thread in a row */
    RUNS = TILE / RUN,
    PASSES = TILE * RUNS / QUANTIZE_THREADS,
    PASS_ROWS = TILE / PASSES,
};

/* RUN elements as pairs of bf16, the first in the low half. */
__device__ __forceinline__ void take_run(uint32_t (&v)[RUN / 2], const __nv_bfloat16 *x)
{
    const uint4 a = ((const uint4 *)x)[0], b = ((const uint4 *)x)[1];

    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void take_run(uint32_t (&v)[RUN / 2], const float *x)
{
#pragma unroll
    for (int i = 0; i < RUN / 4; i++) {
        const float4 a = ((const float4 *)x)[i];
        v[2 * i] = pack_bf16(a.x, a.y);
        v[2 * i + 1] = pack_bf16(a.z, a.w);
    }
}

/* The same where runs are not aligned or end early; 0 for what is missing. */
template <typename T>
__device__ __forceinline__ void take_ragged(uint32_t (&v)[RUN / 2], const T *x, int64_t count)
{
#pragma unroll
    for (int i = 0; i < RUN / 2; i++)
        v[i] = pack_bf16(2 * i < count ? sl_to_f32(x[2 * i]) : 0.0f,
                         2 * i + 1 < count ? sl_to_f32(x[2 * i + 1]) : 0.0f);
}

/* |v| <= 128 but for rounding: adding 1.5 * 2^23 rounds to even.  Only an infinite
 * amax makes something else, and any code will do then. */
__device__ __forceinline__ uint32_t encode(float v, float by)
{
    const int code = __float_as_int(__fadd_rn(__fmul_rn(v, by), 12582912.0f)) - 0x4b400000;

    return (uint32_t)(code < -128 ? -128 : code > 127 ? 127 : code) & 0xffu;
}

/* The largest of all threads. */
__device__ __forceinline__ uint32_t block_max(uint32_t most)
{
    __shared__ uint32_t found[QUANTIZE_THREADS / 32];

    most = __reduce_max_sync(0xffffffffu, most);
    if (threadIdx.x % 32 == 0)
        found[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < QUANTIZE_THREADS / 32; i++)
        most = max(most, found[i]);
    return most;
}

/* A block makes one tile, which it keeps in registers.  WIDE: rows are multiples
 * of RUN and aligned. */
template <typename T, bool WIDE>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize(int8_t *q, float *scale, const T *x, int64_t R, int64_t C, int col_tiles)
{
    const int64_t row0 = (int64_t)(blockIdx.x / col_tiles) * TILE;
    const int64_t col = (int64_t)(blockIdx.x % col_tiles) * TILE + threadIdx.x % RUNS * RUN;
    const int64_t left = C - col < RUN ? C - col : RUN; /* below 1: nothing is there */
    uint32_t v[PASSES][RUN / 2], most = 0;

#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int64_t row = row0 + p * PASS_ROWS + threadIdx.x / RUNS;
        if (WIDE && row < R && left > 0)
            take_run(v[p], x + row * C + col);
        else
            take_ragged(v[p], x + row * C + col, WIDE || row >= R ? 0 : left);
            /* magnitudes are ordered as their bits, NaN above all */
#pragma unroll
        for (int i = 0; i < RUN / 2; i++)
            most = __vmaxu2(most, v[p][i] & 0x7fff7fffu);
    }
    most = block_max(max(most & 0xffffu, most >> 16));
    float amax = __uint_as_float(most << 16);
    amax = amax < 1e-8f ? 1e-8f : amax;
    const float by = __fdiv_rn(128.0f, amax);
    if (threadIdx.x == 0)
        scale[blockIdx.x] = __fmul_rn(amax, 0.0078125f);
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int64_t row = row0 + p * PASS_ROWS + threadIdx.x / RUNS;
        uint32_t codes[RUN / 4];

        if (row >= R || left <= 0)
            continue;
#pragma unroll
        for (int i = 0; i < RUN / 4; i++)
            codes[i] = encode(low_bf16(v[p][2 * i]), by) | encode(high_bf16(v[p][2 * i]), by) << 8 |
                       encode(low_bf16(v[p][2 * i + 1]), by) << 16 |
                       encode(high_bf16(v[p][2 * i + 1]), by) << 24;
        if (WIDE) {
            *(uint4 *)(q + row * C + col) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
        } else {
#pragma unroll
            for (int i = 0; i < RUN; i++)
                if (i < left)
                    q[row * C + col + i] = (int8_t)(codes[i / 4] >> i % 4 * 8);
        }
    }
}

template <typename T>
cudaError_t launch_quantize(cudaStream_t stream, int8_t *q, float *scale, const T *x, int64_t R,
                            int64_t C)
{
    const int64_t col_tiles = (C + TILE - 1) / TILE, tiles = (R + TILE - 1) / TILE * col_tiles;
    const bool wide = C % RUN == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)q % 16 == 0;

    if (wide)
        quantize<T, true>
            <<<(unsigned)tiles, QUANTIZE_THREADS, 0, stream>>>(q, scale, x, R, C, (int)col_tiles);
    else
        quantize<T, false>
            <<<(unsigned)tiles, QUANTIZE_THREADS, 0, stream>>>(q, scale, x, R, C, (int)col_tiles);
    return cudaGetLastError();
}

/* ---- linear_int8 ---- */

struct int8_codes {
    typedef int number;
    static constexpr bool row_scales = false;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static __device__ __forceinline__ void multiply(int (&d)[64], uint64_t x, uint64_t w, int more)
    {
        asm volatile(
            "{\n\t"
            ".reg .pred p;\n\t"
            "setp.ne.b32 p, %66, 0;\n\t"
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p;\n\t"
            "}"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
              "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]),
              "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]),
              "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
              "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]),
              "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]),
              "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]), "+r"(d[42]),
              "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]),
              "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]),
              "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]),
              "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
            : "l"(x), "l"(w), "r"(more));
    }
#endif

    static __device__ __forceinline__ void multiply_add(int (&c)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }

    /* Rows that are not there have no scale: any will do. */
    static __device__ __forceinline__ float x_scale(const sl_cuda_linear8 &l, int64_t s, int step,
                                                    int steps)
    {
        return __ldg(l.x_scale + (s < l.S ? s : l.S - 1) / TILE * steps + step);
    }

    static __device__ __forceinline__ float w_scale(const sl_cuda_linear8 &l, int o_tile, int step,
                                                    int steps)
    {
        return __ldg(l.w_scale + (int64_t)o_tile * steps + step);
    }

    /* |part| <= 2^21.  Adding the bits of 1.5 * 2^23 and taking the number off again
     * converts at the rate of additions; the conversion instruction would be the
     * kernel's slowest part. */
    static __device__ __forceinline__ float add(float sum, int part, float scale)
    {
        const float exact = __fadd_rn(__int_as_float(part + 0x4b400000), -12582912.0f);

        return __fadd_rn(sum, __fmul_rn(exact, scale));
    }

    static __device__ __forceinline__ float bias(float b)
    {
        return sl_round_bf16(b);
    }

    /* Pairs, in the arithmetic of bf16: a sum of two of its numbers is rounded once. */
    template <int count>
    static __device__ __forceinline__ void finish(float (&v)[count], bool biased,
                                                  const float (&b)[count])
    {
#pragma unroll
        for (int i = 0; i < count; i += 2) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(v[i], v[i + 1]);
            if (biased)
                pair = __hadd2(pair, __floats2bfloat162_rn(b[i], b[i + 1]));
            v[i] = __low2float(pair);
            v[i + 1] = __high2float(pair);
        }
    }
};

} // namespace

extern "C" cudaError_t sl_cuda_quantize_int8(cudaStream_t stream, void *q, float *scale,
                                             const void *x, bool x_bf16, int64_t R, int64_t C)
{
    if (R == 0 || C == 0)
        return cudaSuccess;
    return x_bf16 ? launch_quantize(stream, (int8_t *)q, scale, (const __nv_bfloat16 *)x, R, C)
                  : launch_quantize(stream, (int8_t *)q, scale, (const float *)x, R, C);
}

extern "C" cudaError_t sl_cuda_linear_int8_mma(cudaStream_t stream, const sl_cuda_linear8 *l)
{
    return mma::launch<int8_codes>(stream, l);
}

extern "C" cudaError_t sl_cuda_linear_int8_wgmma(cudaStream_t stream, const sl_cuda_linear8 *l,
                                                 const sl_cuda_linear8_maps *maps)
{
    return wgmma::launch<int8_codes>(stream, l, maps);
}
