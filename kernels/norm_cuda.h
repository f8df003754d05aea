/* norm_cuda.h - launchers of norm.cu; contracts in norm.h.
 *
 * Parameters are NULL where absent; any alignment to an element.
 */
#ifndef SL_KERNELS_NORM_CUDA_H
#define SL_KERNELS_NORM_CUDA_H

#include "kernels/tensor.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SL_NORM_W, SL_NORM_B, SL_NORM_SCALE, SL_NORM_SHIFT, SL_NORM_PARAMS };

typedef struct {
    void *y;
    const void *x;
    sl_dtype y_dtype, x_dtype;
    const void *param[SL_NORM_PARAMS];
    sl_dtype param_dtype[SL_NORM_PARAMS]; /* F32 or BF16 */
    int64_t rows, C;
    float eps;
    float padding; /* layer_norm's */
} sl_norm_call;

cudaError_t sl_cuda_layer_norm(cudaStream_t stream, const sl_norm_call *call);
cudaError_t sl_cuda_rms_norm(cudaStream_t stream, const sl_norm_call *call); /* W alone */

#ifdef __cplusplus
}
#endif
#endif
