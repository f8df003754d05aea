/* linear8_mma.cuh - linear layers on 8-bit codes, on the matrix instructions of
 * sm_80.  A block makes a tile of 128 x 128; steps of 128 along I come through
 * cp.async into a ring of STAGES. */
#ifndef SL_KERNELS_LINEAR8_MMA_CUH
#define SL_KERNELS_LINEAR8_MMA_CUH

#include "kernels/linear8.cuh"
#include "kernels/mma.cuh"

namespace
{
namespace mma
{

enum {
    TILE = STEP,
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
__device__ __forceinline__ void fetch(uint32_t to, const void *m, int64_t first, int64_t rows,
                                      int64_t I, int64_t step)
{
#pragma unroll
    for (int i = threadIdx.x; i < TILE * UNITS; i += THREADS) {
        const int r = i / UNITS, u = i % UNITS;
        const bool there = first + r < rows;
        copy_async(unit_address<TILE>(to, r, u),
                   (const char *)m + (there ? (first + r) * I + step * TILE + u * 16 : 0), there);
    }
}

/* The products of one step. */
template <typename Codes>
__device__ __forceinline__ void multiply(typename Codes::number (&part)[BLOCKS_M][BLOCKS_N][4],
                                         uint32_t x, uint32_t w, int row, int col)
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
                Codes::multiply_add(part[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
}

/* A warp's outputs, from row s0 and column o0. */
template <typename Codes, typename TY, sl_act act>
__device__ __forceinline__ void
store(const sl_cuda_linear8 &l, const float (&sum)[BLOCKS_M][BLOCKS_N][4], int64_t s0, int64_t o0)
{
    const int lane = threadIdx.x % 32;

#pragma unroll
    for (int n = 0; n < BLOCKS_N; n++) {
        const int64_t o = o0 + n * 8 + lane % 4 * 2;
        const float bias0 = bias_at<Codes>(l, o), bias1 = bias_at<Codes>(l, o + 1);
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
            finish_pairs<Codes, TY, act>(l, sum[m][n], s0 + m * 16 + lane / 4, o, bias0, bias1);
    }
}

template <typename Codes, typename TY>
__global__ void __launch_bounds__(THREADS) linear(const sl_cuda_linear8 l)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / WARPS_ACROSS * WARP_ROWS, col = warp % WARPS_ACROSS * WARP_COLS;
    const int steps = (int)(l.I / TILE);
    int s_tile, o_tile;
    float sum[BLOCKS_M][BLOCKS_N][4] = {};

    tile_at(blockIdx.x, (int)((l.S + TILE - 1) / TILE), (int)((l.O + TILE - 1) / TILE), &s_tile,
            &o_tile);
    int64_t s0 = (int64_t)s_tile * TILE, o0 = (int64_t)o_tile * TILE;
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) {
            fetch(base + (uint32_t)step * STAGE_BYTES, l.x, s0, l.S, l.I, step);
            fetch(base + (uint32_t)step * STAGE_BYTES + TILE_BYTES, l.w, o0, l.O, l.I, step);
        }
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        const uint32_t stage = base + (uint32_t)(step % STAGES) * STAGE_BYTES;
        const int next = step + STAGES - 1;
        typename Codes::number part[BLOCKS_M][BLOCKS_N][4] = {};

        copy_wait<STAGES - 2>();
        __syncthreads(); /* this stage is there; all are done with the one filled next */
        if (next < steps) {
            const uint32_t to = base + (uint32_t)(next % STAGES) * STAGE_BYTES;
            fetch(to, l.x, s0, l.S, l.I, next);
            fetch(to + TILE_BYTES, l.w, o0, l.O, l.I, next);
        }
        copy_commit();
        multiply<Codes>(part, stage, stage + TILE_BYTES, row, col);
        const float w_scale = Codes::w_scale(l, o_tile, step, steps);
        const float whole = __fmul_rn(Codes::x_scale(l, s0, step, steps), w_scale);
#pragma unroll
        for (int m = 0; m < BLOCKS_M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t s = s0 + row + m * 16 + half * 8 + lane / 4;
                const float scale = Codes::row_scales
                                        ? __fmul_rn(Codes::x_scale(l, s, step, steps), w_scale)
                                        : whole;
#pragma unroll
                for (int n = 0; n < BLOCKS_N; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++)
                        sum[m][n][i] = Codes::add(sum[m][n][i], part[m][n][i], scale);
            }
    }
    s0 += row, o0 += col;
    if (l.act == SL_ACT_NONE)
        store<Codes, TY, SL_ACT_NONE>(l, sum, s0, o0);
    else if (l.act == SL_ACT_GELU_TANH)
        store<Codes, TY, SL_ACT_GELU_TANH>(l, sum, s0, o0);
    else
        store<Codes, TY, SL_ACT_SILU>(l, sum, s0, o0);
}

template <typename Codes, typename TY>
cudaError_t launch_as(cudaStream_t stream, const sl_cuda_linear8 *l)
{
    const int64_t tiles = (l->S + TILE - 1) / TILE * ((l->O + TILE - 1) / TILE);
    const cudaError_t error = cudaFuncSetAttribute(
        linear<Codes, TY>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    if (error != cudaSuccess)
        return error;
    linear<Codes, TY><<<(unsigned)tiles, THREADS, SHARED_BYTES, stream>>>(*l);
    return cudaGetLastError();
}

template <typename Codes> cudaError_t launch(cudaStream_t stream, const sl_cuda_linear8 *l)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    return l->y_bf16 ? launch_as<Codes, __nv_bfloat16>(stream, l)
                     : launch_as<Codes, float>(stream, l);
}

} // namespace mma
} // namespace

#endif
