/* linear_cuda.h - launchers of linear.cu: what cuBLASLt does not do.
 *
 * y [S, O], x [S, I], w [O, I], b [O]: each f32 or bf16 on its own, any sizes and
 * alignments.  All arithmetic is f32.  S, O and I below 2^31; each S * O below 2^62.
 */
#ifndef SL_KERNELS_LINEAR_CUDA_H
#define SL_KERNELS_LINEAR_CUDA_H

#include "kernels/act.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SL_CUDA_LINEAR_FEW_ROWS = 8 };

typedef struct {
    void *y;
    const void *x, *w;
    const void *b; /* NULL: none */
    bool y_bf16, x_bf16, w_bf16, b_bf16;
    sl_act act;
    int64_t S, I, O;
} sl_cuda_linear;

/* S up to SL_CUDA_LINEAR_FEW_ROWS: dot products that read each weight once. */
cudaError_t sl_cuda_linear_few(cudaStream_t stream, const sl_cuda_linear *l);
/* Any S. */
cudaError_t sl_cuda_linear_tile(cudaStream_t stream, const sl_cuda_linear *l);
/* y = act(y + b) in place; x, w and I are not looked at. */
cudaError_t sl_cuda_linear_finish(cudaStream_t stream, const sl_cuda_linear *l);
/* dst[i] = bf16(src[i]) */
cudaError_t sl_cuda_round_bf16(cudaStream_t stream, void *dst, const float *src, int64_t count);

#ifdef __cplusplus
}
#endif

#endif
