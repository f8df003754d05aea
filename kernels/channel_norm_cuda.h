/* channel_norm_cuda.h - launcher of channel_norm.cu; contract in norm.h. */
#ifndef SL_KERNELS_CHANNEL_NORM_CUDA_H
#define SL_KERNELS_CHANNEL_NORM_CUDA_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    void *y; /* may be x */
    const void *x, *gamma;
    bool bf16, gamma_bf16; /* else f32 */
    bool silu;
    int64_t rows, C;
} sl_cuda_channel_norm_call;

cudaError_t sl_cuda_channel_norm(cudaStream_t stream, const sl_cuda_channel_norm_call *n);

#ifdef __cplusplus
}
#endif

#endif
