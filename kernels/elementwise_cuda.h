/* elementwise_cuda.h - launchers of elementwise.cu; contracts in elementwise.h.
 *
 * Activations come with their dtype, F32 or BF16; any alignment to an element.
 */
#ifndef SL_KERNELS_ELEMENTWISE_CUDA_H
#define SL_KERNELS_ELEMENTWISE_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t sl_cuda_add(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *a,
                        sl_dtype a_dtype, const void *b, sl_dtype b_dtype, int64_t count);
cudaError_t sl_cuda_mul(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *a,
                        sl_dtype a_dtype, const void *b, sl_dtype b_dtype, int64_t count);
cudaError_t sl_cuda_gated_add(cudaStream_t stream, void *x, sl_dtype x_dtype, const void *y,
                              sl_dtype y_dtype, const float *gate, int64_t S, int64_t C);
cudaError_t sl_cuda_silu(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *x,
                         sl_dtype x_dtype, int64_t count);
/* Adds to *bad_count, in device memory, how many of x (F32 or F64) are NaN or infinite. */
cudaError_t sl_cuda_count_bad(cudaStream_t stream, unsigned long long *bad_count, const void *x,
                              sl_dtype dtype, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
