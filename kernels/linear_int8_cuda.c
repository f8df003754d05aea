/* linear_int8 on cuda: the wgmma kernel where the chip has it, else mma.  Both
 * give the same bits. */
#include "kernels/linear_int8.h"

#include "kernels/cuda.h"
#include "kernels/linear_int8_cuda.h"

#include <cudaTypedefs.h>

sl_status sl_quantize_int8_cuda(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_quantize_int8_check(exec, q, scale, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "quantize_int8",
                       sl_cuda_quantize_int8(sl_cuda_stream(exec), q->data, scale->data, x->data,
                                             x->dtype == SL_BF16, x->dim[0], x->dim[1]),
                       err);
}

static void forget_encode(void *encode)
{
    (void)encode; /* the driver's own */
}

/* The driver's function, kept with the exec. */
static cudaError_t find_encode(PFN_cuTensorMapEncodeTiled_v12000 *out, sl_exec *exec)
{
    sl_cuda_cache *slot = sl_cuda_cache_of(exec, SL_CUDA_SLOT_LINEAR_INT8);
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSuccess;
    cudaError_t error = cudaSuccess;

    slot->destroy = forget_encode;
    if (!slot->value)
        error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &slot->value, 12000,
                                                 cudaEnableDefault, &found);
    if (error == cudaSuccess && (found != cudaDriverEntryPointSuccess || !slot->value))
        error = cudaErrorNotSupported;
    *out = (PFN_cuTensorMapEncodeTiled_v12000)slot->value;
    return error;
}

/* Boxes of box_rows x 128 codes of data [rows, I]. */
static cudaError_t encode_map(CUtensorMap *map, PFN_cuTensorMapEncodeTiled_v12000 encode,
                              const int8_t *data, int64_t rows, int64_t I, uint32_t box_rows)
{
    const cuuint64_t dim[2] = { (cuuint64_t)I, (cuuint64_t)rows }, stride[1] = { (cuuint64_t)I };
    const cuuint32_t box[2] = { SL_INT8_TILE, box_rows }, step[2] = { 1, 1 };

    return (cudaError_t)encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)(uintptr_t)data, dim,
                               stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static cudaError_t run_wgmma(sl_exec *exec, const sl_cuda_linear_int8 *l)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    CUtensorMap x_map, w_map;
    cudaError_t error = find_encode(&encode, exec);

    if (error == cudaSuccess)
        error = encode_map(&x_map, encode, l->x, l->S, l->I, SL_CUDA_INT8_X_ROWS);
    if (error == cudaSuccess)
        error = encode_map(&w_map, encode, l->w, l->O, l->I, SL_CUDA_INT8_W_ROWS);
    if (error == cudaSuccess)
        error = sl_cuda_linear_int8_wgmma(sl_cuda_stream(exec), l, &x_map, &w_map,
                                          sl_cuda_properties(exec)->multiProcessorCount);
    return error;
}

sl_status sl_linear_int8_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *x_scale, const sl_tensor *w,
                              const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                              sl_error *err)
{
    sl_status status = sl_linear_int8_check(exec, y, x, x_scale, w, w_scale, b, act, err);
    cudaError_t error = cudaSuccess;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    const sl_cuda_linear_int8 l = {
        .y = y->data,
        .x = x->data,
        .w = w->data,
        .x_scale = x_scale->data,
        .w_scale = w_scale->data,
        .b = b ? b->data : NULL,
        .y_bf16 = y->dtype == SL_BF16,
        .b_bf16 = b && b->dtype == SL_BF16,
        .act = act,
        .S = x->dim[0],
        .I = x->dim[1],
        .O = w->dim[0],
    };
    if (l.S > 0 && l.O > 0)
        error = sl_cuda_properties(exec)->major == 9 && l.I > 0
                    ? run_wgmma(exec, &l)
                    : sl_cuda_linear_int8_mma(sl_cuda_stream(exec), &l);
    return sl_cuda_end(exec, "linear_int8", error, err);
}
