/* linear8_maps.h - launches of the kernels of linear8_cuda.h, with the tensor maps of
 * the wgmma ones; for linear_int8_cuda.c and linear_fp8_cuda.c. */
#ifndef SL_KERNELS_LINEAR8_MAPS_H
#define SL_KERNELS_LINEAR8_MAPS_H

#include "kernels/cuda.h"
#include "kernels/linear8_cuda.h"

/* What the two kinds of code differ in. */
typedef struct {
    const char *op;
    cudaError_t (*mma)(cudaStream_t stream, const sl_cuda_linear8 *l);
    cudaError_t (*wgmma)(cudaStream_t stream, const sl_cuda_linear8 *l,
                         const sl_cuda_linear8_maps *maps);
} sl_cuda_linear8_kernels;

typedef cudaError_t sl_cuda_quantize8_fn(cudaStream_t stream, void *q, float *scale, const void *x,
                                         bool x_bf16, int64_t R, int64_t C);

/* Begin, launch, end, for operands that have passed their op's check. */
sl_status sl_cuda_quantize8(sl_exec *exec, const char *op, sl_cuda_quantize8_fn *quantize,
                            const sl_tensor *q, const sl_tensor *scale, const sl_tensor *x,
                            sl_error *err);
sl_status sl_cuda_linear8_run(sl_exec *exec, const sl_cuda_linear8_kernels *kernels,
                              const sl_tensor *y, const sl_tensor *x, const sl_tensor *x_scale,
                              const sl_tensor *w, const sl_tensor *w_scale, const sl_tensor *b,
                              sl_act act, sl_error *err);

#endif
