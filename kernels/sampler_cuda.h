/* sampler_cuda.h - launchers of sampler.cu; contracts in sampler.h. */
#ifndef SL_KERNELS_SAMPLER_CUDA_H
#define SL_KERNELS_SAMPLER_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t sl_cuda_sample_init(cudaStream_t stream, double *x, const float *noise, double t0,
                                int64_t count);
/* noise NULL: the ODE's step. */
cudaError_t sl_cuda_sample_step(cudaStream_t stream, double *x, const float *v, const float *noise,
                                double t_cur, double t_next, int64_t count);
cudaError_t sl_cuda_sample_cast(cudaStream_t stream, float *y, const double *x, int64_t count);

enum { SL_CUDA_MAX_TERMS = 4 };
typedef struct {
    int count;
    double by[SL_CUDA_MAX_TERMS];
    const void *t[SL_CUDA_MAX_TERMS];
    sl_dtype dtype[SL_CUDA_MAX_TERMS]; /* F64 or F32 */
} sl_cuda_terms;

cudaError_t sl_cuda_sample_combine(cudaStream_t stream, void *y, sl_dtype y_dtype,
                                   const sl_cuda_terms *terms, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
