#include "kernels/linear8_maps.h"

#include <cudaTypedefs.h>

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
                              const void *data, int64_t rows, int64_t I, uint32_t box_rows)
{
    const cuuint64_t dim[2] = { (cuuint64_t)I, (cuuint64_t)rows }, stride[1] = { (cuuint64_t)I };
    const cuuint32_t box[2] = { 128, box_rows }, step[2] = { 1, 1 };

    return (cudaError_t)encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)(uintptr_t)data, dim,
                               stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static cudaError_t make_maps(sl_cuda_linear8_maps *out, sl_exec *exec, const sl_cuda_linear8 *l)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    cudaError_t error = find_encode(&encode, exec);

    out->multiprocessors = sl_cuda_properties(exec)->multiProcessorCount;
    if (error == cudaSuccess)
        error = encode_map(&out->x, encode, l->x, l->S, l->I, SL_CUDA_LINEAR8_BOX_ROWS);
    if (error == cudaSuccess)
        error = encode_map(&out->w, encode, l->w, l->O, l->I, SL_CUDA_LINEAR8_BOX_ROWS);
    return error;
}

static bool has_wgmma(sl_exec *exec, const sl_cuda_linear8 *l)
{
    return sl_cuda_properties(exec)->major == 9 && l->S > 0 && l->I > 0 && l->O > 0;
}

sl_status sl_cuda_quantize8(sl_exec *exec, const char *op, sl_cuda_quantize8_fn *quantize,
                            const sl_tensor *q, const sl_tensor *scale, const sl_tensor *x,
                            sl_error *err)
{
    const sl_status status = sl_cuda_begin(exec, err);

    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, op,
                       quantize(sl_cuda_stream(exec), q->data, scale->data, x->data,
                                x->dtype == SL_BF16, x->dim[0], x->dim[1]),
                       err);
}

sl_status sl_cuda_linear8_run(sl_exec *exec, const sl_cuda_linear8_kernels *kernels,
                              const sl_tensor *y, const sl_tensor *x, const sl_tensor *x_scale,
                              const sl_tensor *w, const sl_tensor *w_scale, const sl_tensor *b,
                              sl_act act, sl_error *err)
{
    const sl_status status = sl_cuda_begin(exec, err);
    sl_cuda_linear8_maps maps;
    cudaError_t error;

    if (status != SL_OK)
        return status;
    const sl_cuda_linear8 l = {
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
    if (has_wgmma(exec, &l)) {
        error = make_maps(&maps, exec, &l);
        if (error == cudaSuccess)
            error = kernels->wgmma(sl_cuda_stream(exec), &l, &maps);
    } else {
        error = kernels->mma(sl_cuda_stream(exec), &l);
    }
    return sl_cuda_end(exec, kernels->op, error, err);
}
