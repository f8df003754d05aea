/* e4m3 codes: quantize_fp8, and what linear_fp8 is in linear8.cuh's terms. */
#include "kernels/linear8_mma.cuh"
#include "kernels/linear8_wgmma.cuh"

#include <cuda_fp8.h>

namespace
{

/* ---- quantize_fp8 ---- */

enum { QUANTIZE_WARPS = 8, PER_LANE = STEP / 32 };

/* Four elements of a lane, aligned to their size. */
__device__ __forceinline__ void take4(float (&v)[PER_LANE], const float *x)
{
    const float4 a = *(const float4 *)x;

    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}

__device__ __forceinline__ void take4(float (&v)[PER_LANE], const __nv_bfloat16 *x)
{
    const uint2 a = *(const uint2 *)x;

    v[0] = low_bf16(a.x), v[1] = high_bf16(a.x), v[2] = low_bf16(a.y), v[3] = high_bf16(a.y);
}

/* A warp makes 128 codes of one row and their scale. */
template <typename T>
__global__ void __launch_bounds__(QUANTIZE_WARPS * 32)
    quantize(uint8_t *q, float *scale, const T *x, int64_t R, int64_t C)
{
    const int64_t row = (int64_t)blockIdx.x * QUANTIZE_WARPS + threadIdx.x / 32;
    const int64_t at = row * C + (int64_t)blockIdx.y * STEP + threadIdx.x % 32 * PER_LANE;
    float v[PER_LANE];
    uint32_t most = 0, codes = 0;

    if (row >= R)
        return;
    take4(v, x + at);
    /* magnitudes are ordered as their bits, NaN above all */
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
    float amax = __uint_as_float(__reduce_max_sync(0xffffffffu, most));
    amax = amax < 1e-8f ? 1e-8f : amax;
    const float by = __fdiv_rn(448.0f, amax);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        codes |= (uint32_t)__nv_cvt_float_to_fp8(__fmul_rn(v[i], by), __NV_SATFINITE, __NV_E4M3)
                 << 8 * i;
    *(uint32_t *)(q + at) = codes;
    if (threadIdx.x % 32 == 0)
        scale[blockIdx.y * R + row] = __fdiv_rn(amax, 448.0f);
}

template <typename T>
cudaError_t launch_quantize(cudaStream_t stream, uint8_t *q, float *scale, const T *x, int64_t R,
                            int64_t C)
{
    const dim3 grid((unsigned)((R + QUANTIZE_WARPS - 1) / QUANTIZE_WARPS), (unsigned)(C / STEP));

    quantize<<<grid, QUANTIZE_WARPS * 32, 0, stream>>>(q, scale, x, R, C);
    return cudaGetLastError();
}

/* ---- linear_fp8 ---- */

/* Codes 0, 1 (or 2, 3) of four as f16, exactly: their bits one place down are f16's
 * of 1/256 of the value, and f16 has the subnormals too. */
__device__ __forceinline__ uint32_t widen(uint32_t codes, uint32_t which)
{
    const uint32_t high = __byte_perm(codes, 0, which);
    uint32_t out;

    asm("mul.f16x2 %0, %1, %2;"
        : "=r"(out)
        : "r"((high & 0x80008000u) | (high & 0x7f007f00u) >> 1), "r"(0x5c005c00u)); /* 256 */
    return out;
}

struct fp8_codes {
    typedef float number;
    static constexpr bool row_scales = true;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t x, uint64_t w,
                                                    int more)
    {
        asm volatile(
            "{\n\t"
            ".reg .pred p;\n\t"
            "setp.ne.b32 p, %66, 0;\n\t"
            "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1;\n\t"
            "}"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
              "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
              "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
              "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
              "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
              "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "l"(x), "l"(w), "r"(more));
    }
#endif

    /* Two products of 16 along k in f16.  A lane has four codes in a row where such a
     * product wants twice two, eight apart: both operands alike, so it does not
     * matter which is which. */
    static __device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1)
    {
        enum { LOW = 0x1404, HIGH = 0x3424 };
        const uint32_t first[4] = { widen(a[0], LOW), widen(a[1], LOW), widen(a[0], HIGH),
                                    widen(a[1], HIGH) };
        const uint32_t second[4] = { widen(a[2], LOW), widen(a[3], LOW), widen(a[2], HIGH),
                                     widen(a[3], HIGH) };

        product(c, first, widen(b0, LOW), widen(b0, HIGH));
        product(c, second, widen(b1, LOW), widen(b1, HIGH));
    }

    static __device__ __forceinline__ void product(float (&c)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }

    /* Rows that are not there have no scale: any will do. */
    static __device__ __forceinline__ float x_scale(const sl_cuda_linear8 &l, int64_t s, int step,
                                                    int steps)
    {
        (void)steps;
        return __ldg(l.x_scale + step * l.S + (s < l.S ? s : l.S - 1));
    }

    static __device__ __forceinline__ float w_scale(const sl_cuda_linear8 &l, int o_tile, int step,
                                                    int steps)
    {
        return __ldg(l.w_scale + (int64_t)o_tile * steps + step);
    }

    static __device__ __forceinline__ float add(float sum, float part, float scale)
    {
        return fmaf(part, scale, sum);
    }

    static __device__ __forceinline__ float bias(float b)
    {
        return b;
    }

    template <int count>
    static __device__ __forceinline__ void finish(float (&v)[count], bool biased,
                                                  const float (&b)[count])
    {
#pragma unroll
        for (int i = 0; i < count; i++)
            v[i] = biased ? v[i] + b[i] : v[i];
    }
};

} // namespace

extern "C" cudaError_t sl_cuda_quantize_fp8(cudaStream_t stream, void *q, float *scale,
                                            const void *x, bool x_bf16, int64_t R, int64_t C)
{
    if (R == 0 || C == 0)
        return cudaSuccess;
    return x_bf16 ? launch_quantize(stream, (uint8_t *)q, scale, (const __nv_bfloat16 *)x, R, C)
                  : launch_quantize(stream, (uint8_t *)q, scale, (const float *)x, R, C);
}

extern "C" cudaError_t sl_cuda_linear_fp8_mma(cudaStream_t stream, const sl_cuda_linear8 *l)
{
    return mma::launch<fp8_codes>(stream, l);
}

extern "C" cudaError_t sl_cuda_linear_fp8_wgmma(cudaStream_t stream, const sl_cuda_linear8 *l,
                                                const sl_cuda_linear8_maps *maps)
{
    return wgmma::launch<fp8_codes>(stream, l, maps);
}
