/* patch_cuda.h - launchers of patch.cu; contracts in patch.h. */
#ifndef SL_KERNELS_PATCH_CUDA_H
#define SL_KERNELS_PATCH_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A latent [C, T, h, w] and its tokens [T*(h/2)*(w/2), 4*C]. */
cudaError_t sl_cuda_patchify(cudaStream_t stream, void *tokens, sl_dtype tokens_dtype,
                             const void *latent, sl_dtype latent_dtype, int64_t C, int64_t T,
                             int64_t h, int64_t w);
cudaError_t sl_cuda_unpatchify(cudaStream_t stream, void *latent, sl_dtype latent_dtype,
                               const void *tokens, sl_dtype tokens_dtype, int64_t C, int64_t T,
                               int64_t h, int64_t w);

/* Frames [first, first + n) of a latent [C, T, h, w], and the same channels last. */
typedef struct {
    void *y;
    const void *x;
    sl_dtype y_dtype, x_dtype;
    const float *scale, *shift; /* [C]; NULL: 1 and 0 */
    int64_t C, T, h, w, first, n;
} sl_cuda_frames_call;

cudaError_t sl_cuda_latent_to_frames(cudaStream_t stream, const sl_cuda_frames_call *call);
cudaError_t sl_cuda_frames_to_latent(cudaStream_t stream, const sl_cuda_frames_call *call);

cudaError_t sl_cuda_known_mask(cudaStream_t stream, float *y, int64_t C, int64_t T, int64_t hw);
cudaError_t sl_cuda_frames_to_rgb(cudaStream_t stream, uint8_t *y, const void *x, sl_dtype x_dtype,
                                  int64_t count);
cudaError_t sl_cuda_rgb_to_frames(cudaStream_t stream, void *y, sl_dtype y_dtype, const uint8_t *x,
                                  int64_t count);

#ifdef __cplusplus
}
#endif
#endif
