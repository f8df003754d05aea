/* linear_int8_cuda.h - launchers of the int8 kernels; contract in linear_int8.h.
 *
 *   mma     any card since sm_80
 *   wgmma   sm_90a: the same bits, several times faster
 */
#ifndef SL_KERNELS_LINEAR_INT8_CUDA_H
#define SL_KERNELS_LINEAR_INT8_CUDA_H

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
    const int8_t *x, *w; /* aligned to 16 bytes */
    const float *x_scale, *w_scale;
    const void *b; /* NULL: none */
    bool y_bf16, b_bf16;
    sl_act act;
    int64_t S, I, O;
} sl_cuda_linear_int8;

/* What the wgmma kernel's tensor maps must be: boxes of this many rows by 128
 * codes, swizzled over 128 bytes, zeros outside. */
enum { SL_CUDA_INT8_X_ROWS = 256, SL_CUDA_INT8_W_ROWS = 128 };

cudaError_t sl_cuda_quantize_int8(cudaStream_t stream, int8_t *q, float *scale, const void *x,
                                  bool x_bf16, int64_t R, int64_t C);
cudaError_t sl_cuda_linear_int8_mma(cudaStream_t stream, const sl_cuda_linear_int8 *l);
cudaError_t sl_cuda_linear_int8_wgmma(cudaStream_t stream, const sl_cuda_linear_int8 *l,
                                      const CUtensorMap *x_map, const CUtensorMap *w_map,
                                      int multiprocessors);

#ifdef __cplusplus
}
#endif

#endif
