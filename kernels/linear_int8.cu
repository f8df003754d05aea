/* quantize_int8, and linear_int8 on the matrix instructions of sm_80: any card runs
 * it, and the wgmma kernel must give its bits. */
#include "kernels/linear_int8.cuh"
#include "kernels/mma.cuh"

namespace
{

enum { TILE = SL_INT8_STEP };

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

enum {
    THREADS = 256,
    STAGES = 3,
    TILE_BYTES = TILE * TILE, /* of one operand in a stage */
    STAGE_BYTES = 2 * TILE_BYTES,
    SHARED_BYTES = STAGES * STAGE_BYTES,
    UNITS = TILE / 16, /* of 16 bytes in a row */
    WARP_ROWS = 64,
    WARP_COLS = 32,
    WARPS_ACROSS = TILE / WARP_COLS,
    BLOCKS_M = WARP_ROWS / 16, /* 16 x 8 products of a warp */
    BLOCKS_N = WARP_COLS / 8,
};

/* TILE rows of one step, from row `first` of m [rows, I]. */
__device__ __forceinline__ void fetch(uint32_t to, const int8_t *m, int64_t first, int64_t rows,
                                      int64_t I, int64_t step)
{
#pragma unroll
    for (int i = threadIdx.x; i < TILE * UNITS; i += THREADS) {
        const int r = i / UNITS, u = i % UNITS;
        const bool there = first + r < rows;
        copy_async(unit_address<TILE>(to, r, u),
                   m + (there ? (first + r) * I + step * TILE + u * 16 : 0), there);
    }
}

/* c += a . b, 16 x 32 by 32 x 8, exact. */
__device__ __forceinline__ void multiply_add(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The exact products of one step. */
__device__ __forceinline__ void multiply(int (&part)[BLOCKS_M][BLOCKS_N][4], uint32_t x, uint32_t w,
                                         int row, int col)
{
    const int lane = threadIdx.x % 32;

#pragma unroll
    for (int k = 0; k < UNITS; k += 2) {
        uint32_t a[BLOCKS_M][4], b[BLOCKS_N / 2][4];
        /* matrices in the order of the fragment: rows 0-7, 8-15, then the next 16 bytes */
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
            load_matrix(a[m], unit_address<TILE>(x, row + m * 16 + lane % 16, k + lane / 16));
            /* columns 0-7 in both halves of k, then columns 8-15 */
#pragma unroll
        for (int n = 0; n < BLOCKS_N / 2; n++)
            load_matrix(b[n], unit_address<TILE>(w, col + n * 16 + lane / 16 * 8 + lane % 8,
                                                 k + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
            for (int n = 0; n < BLOCKS_N; n++)
                multiply_add(part[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
}

/* A warp's outputs, from row s0 and column o0. */
template <typename TY, sl_act act>
__device__ __forceinline__ void store(const sl_cuda_linear_int8 &l,
                                      const float (&sum)[BLOCKS_M][BLOCKS_N][4], int64_t s0,
                                      int64_t o0)
{
    const int lane = threadIdx.x % 32;
    const bool biased = l.b != NULL;

#pragma unroll
    for (int n = 0; n < BLOCKS_N; n++) {
        const int64_t o = o0 + n * 8 + lane % 4 * 2;
        const float bias0 = biased && o < l.O ? sl_int8_bias(l, o) : 0.0f;
        const float bias1 = biased && o + 1 < l.O ? sl_int8_bias(l, o + 1) : 0.0f;
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t s = s0 + m * 16 + half * 8 + lane / 4;
                if (s < l.S && o < l.O)
                    sl_int8_store<TY>(l, s, o,
                                      sl_int8_finish<act>(sum[m][n][2 * half], biased, bias0),
                                      sl_int8_finish<act>(sum[m][n][2 * half + 1], biased, bias1));
            }
    }
}

template <typename TY>
__global__ void __launch_bounds__(THREADS) linear_mma(const sl_cuda_linear_int8 l)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const int warp = threadIdx.x / 32;
    const int row = warp / WARPS_ACROSS * WARP_ROWS, col = warp % WARPS_ACROSS * WARP_COLS;
    const int64_t steps = l.I / TILE;
    int s_tile, o_tile;
    float sum[BLOCKS_M][BLOCKS_N][4] = {};

    sl_int8_tile(blockIdx.x, (int)((l.S + TILE - 1) / TILE), (int)((l.O + TILE - 1) / TILE),
                 &s_tile, &o_tile);
    int64_t s0 = (int64_t)s_tile * TILE, o0 = (int64_t)o_tile * TILE;
    for (int64_t step = 0; step < STAGES - 1; step++) {
        if (step < steps) {
            fetch(base + (uint32_t)step * STAGE_BYTES, l.x, s0, l.S, l.I, step);
            fetch(base + (uint32_t)step * STAGE_BYTES + TILE_BYTES, l.w, o0, l.O, l.I, step);
        }
        copy_commit();
    }
    for (int64_t step = 0; step < steps; step++) {
        const uint32_t stage = base + (uint32_t)(step % STAGES) * STAGE_BYTES;
        const int64_t next = step + STAGES - 1;
        int part[BLOCKS_M][BLOCKS_N][4] = {};

        copy_wait<STAGES - 2>();
        __syncthreads(); /* this stage is there; all are done with the one filled next */
        if (next < steps) {
            const uint32_t to = base + (uint32_t)(next % STAGES) * STAGE_BYTES;
            fetch(to, l.x, s0, l.S, l.I, next);
            fetch(to + TILE_BYTES, l.w, o0, l.O, l.I, next);
        }
        copy_commit();
        multiply(part, stage, stage + TILE_BYTES, row, col);
        const float scale =
            __fmul_rn(l.x_scale[s_tile * steps + step], l.w_scale[o_tile * steps + step]);
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
            for (int n = 0; n < BLOCKS_N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[m][n][i] = sl_int8_add(sum[m][n][i], part[m][n][i], scale);
    }
    s0 += row, o0 += col;
    if (l.act == SL_ACT_NONE)
        store<TY, SL_ACT_NONE>(l, sum, s0, o0);
    else if (l.act == SL_ACT_GELU_TANH)
        store<TY, SL_ACT_GELU_TANH>(l, sum, s0, o0);
    else
        store<TY, SL_ACT_SILU>(l, sum, s0, o0);
}

template <typename TY> cudaError_t launch_mma(cudaStream_t stream, const sl_cuda_linear_int8 *l)
{
    const int64_t tiles = (l->S + TILE - 1) / TILE * ((l->O + TILE - 1) / TILE);
    const cudaError_t error = cudaFuncSetAttribute(
        linear_mma<TY>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    if (error != cudaSuccess)
        return error;
    linear_mma<TY><<<(unsigned)tiles, THREADS, SHARED_BYTES, stream>>>(*l);
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t sl_cuda_quantize_int8(cudaStream_t stream, int8_t *q, float *scale,
                                             const void *x, bool x_bf16, int64_t R, int64_t C)
{
    if (R == 0 || C == 0)
        return cudaSuccess;
    return x_bf16 ? launch_quantize(stream, q, scale, (const __nv_bfloat16 *)x, R, C)
                  : launch_quantize(stream, q, scale, (const float *)x, R, C);
}

extern "C" cudaError_t sl_cuda_linear_int8_mma(cudaStream_t stream, const sl_cuda_linear_int8 *l)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    return l->y_bf16 ? launch_mma<__nv_bfloat16>(stream, l) : launch_mma<float>(stream, l);
}
