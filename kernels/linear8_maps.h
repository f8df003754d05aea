/* linear8_maps.h - tensor maps for the wgmma kernels of linear8_cuda.h; for
 * linear_int8_cuda.c and linear_fp8_cuda.c. */
#ifndef SL_KERNELS_LINEAR8_MAPS_H
#define SL_KERNELS_LINEAR8_MAPS_H

#include "kernels/cuda.h"
#include "kernels/linear8_cuda.h"

/* Whether the card has wgmma and there is anything to do. */
bool sl_cuda_linear8_has_wgmma(sl_exec *exec, const sl_cuda_linear8 *l);
cudaError_t sl_cuda_linear8_maps_make(sl_cuda_linear8_maps *out, sl_exec *exec,
                                      const sl_cuda_linear8 *l);

#endif
