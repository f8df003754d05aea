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

cudaError_t sl_cuda_linear8_maps_make(sl_cuda_linear8_maps *out, sl_exec *exec,
                                      const sl_cuda_linear8 *l)
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

bool sl_cuda_linear8_has_wgmma(sl_exec *exec, const sl_cuda_linear8 *l)
{
    return sl_cuda_properties(exec)->major == 9 && l->S > 0 && l->I > 0 && l->O > 0;
}
