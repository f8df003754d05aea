/* noise_cuda.h - launcher of noise.cu; contract in noise.h. */
#ifndef SL_KERNELS_NOISE_CUDA_H
#define SL_KERNELS_NOISE_CUDA_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t sl_cuda_randn(cudaStream_t stream, float *y, int64_t count, uint64_t seed,
                          uint32_t draw);

#ifdef __cplusplus
}
#endif
#endif
