/* Every product and sum is rounded by itself, through intrinsics that the compiler
 * never fuses: the bits are those of the cpu. */
#include "kernels/sampler_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256 };

__global__ void init_kernel(double *x, const float *noise, double t0, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        x[i] = __dmul_rn((double)noise[i], t0);
}

__global__ void step_sde(double *x, const float *v, const float *noise, double t_cur, double keep,
                         float noise_scale, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        const double clean = __dsub_rn(x[i], __dmul_rn(t_cur, (double)v[i]));
        x[i] = __dadd_rn(__dmul_rn(keep, clean), (double)__fmul_rn(noise_scale, noise[i]));
    }
}

__global__ void step_ode(double *x, const float *v, double dt, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        x[i] = __dsub_rn(x[i], __dmul_rn(dt, (double)v[i]));
}

__global__ void cast_kernel(float *y, const double *x, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        y[i] = __double2float_rn(x[i]);
}

/* The sum is complete before y, which may be a term, changes.  It starts at -0, to
 * which adding anything is exact. */
__global__ void combine_kernel(void *y, bool y_f64, const sl_cuda_terms terms, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        double sum = -0.0;
#pragma unroll
        for (int k = 0; k < SL_CUDA_MAX_TERMS; k++)
            if (k < terms.count) {
                const double t = terms.dtype[k] == SL_F64 ? ((const double *)terms.t[k])[i]
                                                          : (double)((const float *)terms.t[k])[i];
                sum = __dadd_rn(sum, __dmul_rn(terms.by[k], t));
            }
        if (y_f64)
            ((double *)y)[i] = sum;
        else
            ((float *)y)[i] = __double2float_rn(sum);
    }
}

} // namespace

extern "C" cudaError_t sl_cuda_sample_init(cudaStream_t stream, double *x, const float *noise,
                                           double t0, int64_t count)
{
    if (count == 0)
        return cudaSuccess;
    init_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(x, noise, t0, count);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sample_step(cudaStream_t stream, double *x, const float *v,
                                           const float *noise, double t_cur, double t_next,
                                           int64_t count)
{
    const unsigned grid = sl_grid_for(count, THREADS);

    if (count == 0)
        return cudaSuccess;
    if (noise)
        step_sde<<<grid, THREADS, 0, stream>>>(x, v, noise, t_cur, 1.0 - t_next, (float)t_next,
                                               count);
    else
        step_ode<<<grid, THREADS, 0, stream>>>(x, v, t_cur - t_next, count);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sample_cast(cudaStream_t stream, float *y, const double *x,
                                           int64_t count)
{
    if (count == 0)
        return cudaSuccess;
    cast_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(y, x, count);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sample_combine(cudaStream_t stream, void *y, sl_dtype y_dtype,
                                              const sl_cuda_terms *terms, int64_t count)
{
    if (count == 0)
        return cudaSuccess;
    combine_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(y, y_dtype == SL_F64,
                                                                        *terms, count);
    return cudaGetLastError();
}
