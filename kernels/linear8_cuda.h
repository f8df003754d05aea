/* linear8_cuda.h - launchers of linear layers on codes of 8 bits, and of what makes
 * the codes; contracts in linear_int8.h and linear_fp8.h.
 *
 *   mma     any card since sm_80
 *   wgmma   sm_90a: several times faster.  Of int8 both give the same bits
 */
#ifndef SL_KERNELS_LINEAR8_CUDA_H
#define SL_KERNELS_LINEAR8_CUDA_H

#include "kernels/act.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    void *y;
    const void *x, *w; /* codes, aligned to 16 bytes */
    const float *x_scale, *w_scale;
    const void *b; /* NULL: none */
    bool y_bf16, b_bf16;
    sl_act act;
    int64_t S, I, O;
} sl_cuda_linear8;

/* What the wgmma kernels' tensor maps must be: boxes of this many rows by 128
 * codes, swizzled over 128 bytes, zeros outside. */
enum { SL_CUDA_LINEAR8_BOX_ROWS = 128 };

typedef struct {
    CUtensorMap x, w;
    int multiprocessors;
} sl_cuda_linear8_maps;

cudaError_t sl_cuda_quantize_int8(cudaStream_t stream, void *q, float *scale, const void *x,
                                  bool x_bf16, int64_t R, int64_t C);
cudaError_t sl_cuda_linear_int8_mma(cudaStream_t stream, const sl_cuda_linear8 *l);
cudaError_t sl_cuda_linear_int8_wgmma(cudaStream_t stream, const sl_cuda_linear8 *l,
                                      const sl_cuda_linear8_maps *maps);

cudaError_t sl_cuda_quantize_fp8(cudaStream_t stream, void *q, float *scale, const void *x,
                                 bool x_bf16, int64_t R, int64_t C);
cudaError_t sl_cuda_linear_fp8_mma(cudaStream_t stream, const sl_cuda_linear8 *l);
cudaError_t sl_cuda_linear_fp8_wgmma(cudaStream_t stream, const sl_cuda_linear8 *l,
                                     const sl_cuda_linear8_maps *maps);

#ifdef __cplusplus
}
#endif

#endif
