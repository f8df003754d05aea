/* embed_cuda.h - launchers of embed.cu; contracts in embed.h. */
#ifndef SL_KERNELS_EMBED_CUDA_H
#define SL_KERNELS_EMBED_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ids are in range: the op has looked. */
cudaError_t sl_cuda_embed_rows(cudaStream_t stream, void *y, sl_dtype y_dtype, const void *table,
                               sl_dtype table_dtype, const int32_t *ids, int64_t S, int64_t C);
cudaError_t sl_cuda_sinusoid(cudaStream_t stream, float *y, int64_t half, double t);

/* Buckets of key - query = -SL_CUDA_BUCKETS_FAR .. SL_CUDA_BUCKETS_FAR; positions
 * further off are in the bucket of the end. */
enum { SL_CUDA_BUCKETS_FAR = 128 };
typedef struct {
    unsigned char of[2 * SL_CUDA_BUCKETS_FAR + 1];
} sl_cuda_buckets;

/* y [N, Sq + Sk - 1] */
cudaError_t sl_cuda_rel_bias(cudaStream_t stream, float *y, const void *table, sl_dtype table_dtype,
                             const sl_cuda_buckets *buckets, int64_t N, int64_t Sq, int64_t Sk);

#ifdef __cplusplus
}
#endif
#endif
