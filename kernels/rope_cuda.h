/* rope_cuda.h - launchers of rope.cu; contracts in rope.h. */
#ifndef SL_KERNELS_ROPE_CUDA_H
#define SL_KERNELS_ROPE_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* table [positions, pairs, 2] */
cudaError_t sl_cuda_rope_table(cudaStream_t stream, float *table, int64_t positions, int64_t pairs);
/* x [T*H*W, C], C a multiple of 2*pairs. */
cudaError_t sl_cuda_rope(cudaStream_t stream, void *x, sl_dtype dtype, const float *table,
                         int64_t pairs, int64_t T, int64_t H, int64_t W, int64_t C);

#ifdef __cplusplus
}
#endif
#endif
