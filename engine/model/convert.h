/* convert.h - from the dtypes of files to the dtypes of the device.
 *
 * F32, BF16, F16 and F64 to F32 or BF16, each rounded once, to nearest even;
 * NaN stays NaN.  Sources may be unaligned.  Inside of the model module.
 */
#ifndef SL_ENGINE_MODEL_CONVERT_H
#define SL_ENGINE_MODEL_CONVERT_H

#include "kernels/tensor.h"

/* dst aligned to its dtype. */
void sl_convert(void *dst, sl_dtype dst_dtype, const void *src, sl_dtype src_dtype, int64_t count);

/* One output channel of a convolution: src [I, K] to dst [K, I]. */
void sl_convert_channels_last(void *dst, sl_dtype dst_dtype, const void *src, sl_dtype src_dtype,
                              int64_t I, int64_t K);

#endif
