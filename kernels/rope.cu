/* Bound by memory: x is read and written once; the table (64 KiB at D = 128) stays
 * in the first level of cache. */
#include "kernels/rope_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256, HEADS_PER_THREAD = 4, TABLE_THREADS = 128 };

/* Pairs of the first axis, and of each of the others. */
__host__ __device__ __forceinline__ int pairs_h(int pairs)
{
    return 2 * pairs / 6;
}

__host__ __device__ __forceinline__ int pairs_t(int pairs)
{
    return pairs - 2 * pairs_h(pairs);
}

/* Each step is rounded to f32, as the networks were trained. */
__global__ void table_kernel(float *table, int positions, int pairs)
{
    const int at = (int)sl_thread_index(), pos = at / pairs, j = at % pairs;
    const int first = pairs_t(pairs), other = pairs_h(pairs);

    if (at >= positions * pairs)
        return;
    const int axis = j < first ? 0 : j < first + other ? 1 : 2;
    const int i = axis == 0 ? j : j - first - (axis - 1) * other;
    const float exponent = __fdiv_rn((float)i, (float)(axis == 0 ? first : other));
    const float frequency = __fdiv_rn(1.0f, (float)pow(10000.0, (double)exponent));
    const float angle = __fmul_rn((float)pos, frequency);
    table[2 * at] = (float)cos((double)angle);
    table[2 * at + 1] = (float)sin((double)angle);
}

struct grid3 {
    int64_t T, H, W;
};

/* A token's place along each axis. */
struct place {
    int t, h, w;
};

__device__ __forceinline__ place place_of(int64_t s, const grid3 &grid)
{
    const int64_t line = s / grid.W;

    return { (int)(line / grid.H), (int)(line % grid.H), (int)(s % grid.W) };
}

__device__ __forceinline__ float2 turn_of(const float2 *table, int pairs, int j, const place &p)
{
    const int first = pairs_t(pairs), other = pairs_h(pairs);
    const int pos = j < first ? p.t : j < first + other ? p.h : p.w;

    return __ldg(table + (int64_t)pos * pairs + j);
}

/* blockDim.x, a multiple of the vectors in a head, threads go over the heads of a
 * token: each meets the same four pairs of every head it comes to. */
template <typename X>
__global__ void rope_wide(X *x, const float2 *table, int pairs, grid3 grid, int64_t S, int C)
{
    const int64_t s = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const int first = threadIdx.x % (pairs / 4) * 4;
    float2 turn[4];

    if (s >= S)
        return;
    const place p = place_of(s, grid);
#pragma unroll
    for (int k = 0; k < 4; k++)
        turn[k] = turn_of(table, pairs, first + k, p);
    x += s * C;
    for (int at = threadIdx.x; at < C / 8; at += blockDim.x) {
        sl_vec8 v = sl_get8(x + 8 * at);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float a = v.v[2 * k], b = v.v[2 * k + 1];
            v.v[2 * k] = a * turn[k].x - b * turn[k].y;
            v.v[2 * k + 1] = a * turn[k].y + b * turn[k].x;
        }
        sl_put8(x + 8 * at, v);
    }
}

/* A pair at a time. */
template <typename X>
__global__ void rope_narrow(X *x, const float2 *table, int pairs, grid3 grid, int64_t S, int64_t C)
{
    for (int64_t at = sl_thread_index(); at < S * (C / 2); at += sl_thread_count()) {
        const int64_t s = at / (C / 2);
        const float2 turn = turn_of(table, pairs, (int)(at % (C / 2) % pairs), place_of(s, grid));
        const float a = sl_get(x + 2 * at), b = sl_get(x + 2 * at + 1);
        sl_put(x + 2 * at, a * turn.x - b * turn.y);
        sl_put(x + 2 * at + 1, a * turn.y + b * turn.x);
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_rope_table(cudaStream_t stream, float *table, int64_t positions,
                                          int64_t pairs)
{
    if (positions == 0)
        return cudaSuccess;
    if (positions * pairs > INT32_MAX)
        return cudaErrorInvalidValue;
    table_kernel<<<sl_grid_for(positions * pairs, TABLE_THREADS), TABLE_THREADS, 0, stream>>>(
        table, (int)positions, (int)pairs);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_rope(cudaStream_t stream, void *x, sl_dtype dtype,
                                    const float *table, int64_t pairs, int64_t T, int64_t H,
                                    int64_t W, int64_t C)
{
    const grid3 grid = { T, H, W };
    const int64_t S = T * H * W, vectors = C / 8, head = pairs / 4;

    if (S == 0 || C == 0)
        return cudaSuccess;
    if (pairs % 4 == 0 && head <= THREADS && vectors <= INT32_MAX / 8 && sl_aligned16(x)) {
        /* Whole heads to a round, and about HEADS_PER_THREAD rounds. */
        int64_t threads = (vectors / HEADS_PER_THREAD + head - 1) / head * head;
        threads = threads < head ? head : threads > THREADS ? THREADS / head * head : threads;
        const dim3 block((unsigned)threads, (unsigned)(THREADS / threads));
        const unsigned blocks = (unsigned)((S + block.y - 1) / block.y);
        SL_BY_DTYPE(dtype, X,
                    rope_wide<<<blocks, block, 0, stream>>>((X *)x, (const float2 *)table,
                                                            (int)pairs, grid, S, (int)C));
    } else {
        SL_BY_DTYPE(dtype, X,
                    rope_narrow<<<sl_grid_for(S * (C / 2), THREADS), THREADS, 0, stream>>>(
                        (X *)x, (const float2 *)table, (int)pairs, grid, S, C));
    }
    return cudaGetLastError();
}
