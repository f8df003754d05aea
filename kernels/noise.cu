#include "kernels/noise_cuda.h"

#include "kernels/cuda_vec.cuh"
#include "kernels/noise_math.h"

namespace
{

enum { THREADS = 256 };

/* A thread to a group of four. */
__global__ void randn_kernel(float *y, int64_t count, uint64_t seed, uint32_t draw, bool wide)
{
    for (int64_t group = sl_thread_index(); 4 * group < count; group += sl_thread_count()) {
        float v[4];
        sl_noise_group(seed, draw, (uint64_t)group, v);
        if (wide && 4 * group + 4 <= count)
            ((float4 *)y)[group] = make_float4(v[0], v[1], v[2], v[3]);
        else
            for (int k = 0; k < 4 && 4 * group + k < count; k++)
                y[4 * group + k] = v[k];
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_randn(cudaStream_t stream, float *y, int64_t count, uint64_t seed,
                                     uint32_t draw)
{
    if (count == 0)
        return cudaSuccess;
    randn_kernel<<<sl_grid_for((count + 3) / 4, THREADS), THREADS, 0, stream>>>(
        y, count, seed, draw, sl_aligned16(y));
    return cudaGetLastError();
}
