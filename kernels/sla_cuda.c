/* Temporary memory of these ops is the exec's workspace: partial sums fit into it
 * because their number is chosen so. */
#include "kernels/sage.h"

#include "base/size.h"
#include "kernels/cuda.h"
#include "kernels/sla_cuda.h"

#include <cudaTypedefs.h>

enum {
    MEAN_ROWS = 256,    /* rows that one block of threads adds up, at least */
    STATE_SHARES = 264, /* blocks of threads of linear_state: two for each processor of an H200 */
    STATE_ROWS = 256,   /* tokens of each, at least */
};

sl_status sl_block_mean_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *shift, int64_t block, sl_sla_rounding rounding,
                             sl_error *err)
{
    sl_status status = sl_block_mean_check(exec, y, x, shift, block, rounding, err);
    const int64_t S = x->dim[0], C = x->dim[1];
    const int64_t rows_of_block = block < S ? block : S;
    int64_t chunk_rows = MEAN_ROWS;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || S == 0 || C == 0)
        return status;
    /* partial sums: [blocks, chunks, C] f64 */
    while (chunk_rows < rows_of_block &&
           (double)y->dim[0] * (double)sl_ceil_div(rows_of_block, chunk_rows) * (double)C * 8.0 >
               (double)SL_CUDA_WORKSPACE_BYTES)
        chunk_rows *= 2;
    return sl_cuda_end(exec, "block_mean",
                       sl_cuda_block_mean(sl_cuda_stream(exec), y->data, x->data,
                                          x->dtype == SL_BF16, shift ? shift->data : NULL, S, C,
                                          rows_of_block, chunk_rows, rounding == SL_SLA_BF16,
                                          sl_cuda_workspace(exec)),
                       err);
}

sl_status sl_top_blocks_cuda(sl_exec *exec, const sl_tensor *lut, const sl_tensor *pq,
                             const sl_tensor *pk, int64_t N, sl_sla_rounding rounding,
                             sl_error *err)
{
    sl_status status = sl_top_blocks_check(exec, lut, pq, pk, N, rounding, err);
    cudaError_t error;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || pq->dim[0] == 0)
        return status;
    error = sl_cuda_top_blocks(sl_cuda_stream(exec), lut->data, pq->data, pk->data, pq->dim[0],
                               pk->dim[0], N, pq->dim[1] / N, lut->dim[2],
                               rounding == SL_SLA_BF16);
    if (error == cudaErrorInvalidConfiguration)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "top_blocks: the scores of %lld key blocks do not fit into shared memory",
                       (long long)pk->dim[0]);
    return sl_cuda_end(exec, "top_blocks", error, err);
}

sl_status sl_linear_state_cuda(sl_exec *exec, const sl_tensor *state, const sl_tensor *k,
                               const sl_tensor *v, int64_t N, sl_error *err)
{
    sl_status status = sl_linear_state_check(exec, state, k, v, N, err);
    int64_t splits;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    /* at most STATE_SHARES partial states of 66 KB: less than the workspace */
    splits = STATE_SHARES / N;
    if (splits > sl_ceil_div(k->dim[0], STATE_ROWS))
        splits = sl_ceil_div(k->dim[0], STATE_ROWS);
    if (splits < 1)
        splits = 1;
    return sl_cuda_end(exec, "linear_state",
                       sl_cuda_linear_state(sl_cuda_stream(exec), state->data, k->data, v->data,
                                            k->dtype == SL_BF16, k->dim[0], N, k->dim[1] / N,
                                            splits, sl_cuda_workspace(exec)),
                       err);
}

static sl_cuda_branch branch_of(const sl_linear_branch *branch)
{
    if (!branch)
        return (sl_cuda_branch){ 0 };
    return (sl_cuda_branch){
        .state = branch->state->data,
        .proj_w = branch->proj_w->data,
        .proj_b = branch->proj_b->data,
        .w_bf16 = branch->proj_w->dtype == SL_BF16,
        .b_bf16 = branch->proj_b->dtype == SL_BF16,
    };
}

/* ---- sparse_attention ---- */

static void forget_encode(void *encode)
{
    (void)encode; /* the driver's own */
}

/* The driver's function, kept with the exec. */
static cudaError_t find_encode(PFN_cuTensorMapEncodeTiled_v12000 *out, sl_exec *exec)
{
    sl_cuda_cache *slot = sl_cuda_cache_of(exec, SL_CUDA_SLOT_SPARSE);
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSuccess;
    cudaError_t error = cudaSuccess;

    slot->destroy = forget_encode;
    if (!slot->value)
        error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &slot->value, 12000,
                                                 cudaEnableDefault, &found);
    if (error == cudaSuccess && !slot->value)
        error = cudaErrorNotSupported;
    *out = (PFN_cuTensorMapEncodeTiled_v12000)slot->value;
    return error;
}

/* Of data [S, width], bf16 or codes, in boxes of box_rows and 128 bytes of columns;
 * rows beyond S come as zeros. */
static cudaError_t make_map(CUtensorMap *out, PFN_cuTensorMapEncodeTiled_v12000 encode,
                            const void *data, bool bf16, int64_t S, int64_t width,
                            uint32_t box_rows)
{
    const uint32_t each = bf16 ? 2 : 1;
    const cuuint64_t size[] = { (cuuint64_t)width, (cuuint64_t)S };
    const cuuint64_t row_bytes[] = { (cuuint64_t)width * each };
    const cuuint32_t box[] = { 128 / each, box_rows }, step[] = { 1, 1 };
    const CUresult error = encode(
        out, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
        (void *)(uintptr_t)data, size, row_bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    return (cudaError_t)error; /* the same numbers */
}

static bool takes_wgmma(sl_exec *exec, bool bf16, int64_t N, int64_t D, float scale)
{
    const struct cudaDeviceProp *p = sl_cuda_properties(exec);

    return p->major == 9 && p->minor == 0 && bf16 && D == 128 && scale > 0.0f &&
           SL_CUDA_IMAGES_BYTES(N) <= SL_CUDA_WORKSPACE_BYTES;
}

static cudaError_t run_sparse(sl_exec *exec, const sl_cuda_sparse *a)
{
    const int64_t width = a->N * a->D;
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    sl_cuda_sparse_maps maps;
    sl_cuda_images images;
    cudaError_t error;

    if (!takes_wgmma(exec, a->bf16, a->N, a->D, a->scale) || a->block_q != 128 || a->block_k != 64)
        return sl_cuda_sparse_attention(sl_cuda_stream(exec), a);
    error = find_encode(&encode, exec);
    if (error == cudaSuccess)
        error = make_map(&maps.q, encode, a->q, true, a->S, width, 64);
    if (error == cudaSuccess)
        error = make_map(&maps.k, encode, a->k, true, a->S, width, 64);
    if (error == cudaSuccess)
        error = make_map(&maps.v, encode, a->v, true, a->S, width, 64);
    if (error == cudaSuccess)
        error = sl_cuda_branch_images(sl_cuda_stream(exec), &images, &a->branch, a->N,
                                      sl_cuda_workspace(exec));
    if (error == cudaSuccess)
        error = sl_cuda_sparse_attention_wgmma(sl_cuda_stream(exec), a, &maps, &images);
    return error;
}

sl_status sl_sparse_attention_cuda(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                   const sl_tensor *k, const sl_tensor *v, const sl_tensor *lut,
                                   const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                   int64_t block_k, float scale, sl_error *err)
{
    sl_status status =
        sl_sparse_attention_check(exec, o, q, k, v, lut, branch, N, block_q, block_k, scale, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || q->dim[0] == 0)
        return status;
    const sl_cuda_sparse args = {
        .o = o->data,
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .bf16 = q->dtype == SL_BF16,
        .lut = lut->data,
        .branch = branch_of(branch),
        .S = q->dim[0],
        .N = N,
        .D = q->dim[1] / N,
        .keep = lut->dim[2],
        .block_q = block_q,
        .block_k = block_k,
        .scale = scale,
    };
    return sl_cuda_end(exec, "sparse_attention", run_sparse(exec, &args), err);
}

/* ---- SageSLA ---- */

sl_status sl_sage_quantize_cuda(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                const sl_tensor *x, const sl_tensor *shift, int64_t N,
                                int64_t block, sl_error *err)
{
    sl_status status = sl_sage_quantize_check(exec, q, scale, x, shift, N, block, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || sl_tensor_count(x) == 0)
        return status;
    return sl_cuda_end(exec, "sage_quantize",
                       sl_cuda_sage_quantize(sl_cuda_stream(exec), q->data, scale->data, x->data,
                                             x->dtype == SL_BF16, shift ? shift->data : NULL,
                                             x->dim[0], N, x->dim[1] / N, block),
                       err);
}

sl_status sl_sage_quantize_v_cuda(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                  const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_sage_quantize_v_check(exec, q, scale, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || x->dim[1] == 0)
        return status;
    return sl_cuda_end(exec, "sage_quantize_v",
                       sl_cuda_sage_quantize_v(sl_cuda_stream(exec), q->data, scale->data, x->data,
                                               x->dtype == SL_BF16, x->dim[0], x->dim[1]),
                       err);
}

static cudaError_t run_sage(sl_exec *exec, const sl_cuda_sage *a)
{
    const int64_t width = a->N * a->D;
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    sl_cuda_sage_maps maps;
    sl_cuda_images images;
    cudaError_t error;

    if (!takes_wgmma(exec, a->bf16, a->N, a->D, a->scale) || a->block_q != 64 || a->block_k != 128)
        return sl_cuda_sage_attention(sl_cuda_stream(exec), a);
    error = find_encode(&encode, exec);
    if (error == cudaSuccess)
        error = make_map(&maps.q8, encode, a->q8, false, a->S, width, 64);
    if (error == cudaSuccess)
        error = make_map(&maps.k8, encode, a->k8, false, a->S, width, 128);
    if (error == cudaSuccess)
        error = make_map(&maps.v8, encode, a->v8, false, a->S, width, 128);
    if (error == cudaSuccess)
        error = make_map(&maps.q, encode, a->q ? a->q : a->o, true, a->S, width, 64);
    if (error == cudaSuccess)
        error = sl_cuda_branch_images(sl_cuda_stream(exec), &images, &a->branch, a->N,
                                      sl_cuda_workspace(exec));
    if (error == cudaSuccess)
        error = sl_cuda_sage_attention_wgmma(sl_cuda_stream(exec), a, &maps, &images);
    return error;
}

sl_status sl_sage_attention_cuda(sl_exec *exec, const sl_tensor *o, const sl_sage_operands *x,
                                 const sl_tensor *lut, const sl_tensor *q,
                                 const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                 int64_t block_k, float scale, sl_error *err)
{
    sl_status status =
        sl_sage_attention_check(exec, o, x, lut, q, branch, N, block_q, block_k, scale, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK || o->dim[0] == 0)
        return status;
    const sl_cuda_sage args = {
        .o = o->data,
        .q = q ? q->data : NULL,
        .bf16 = o->dtype == SL_BF16,
        .q8 = x->q8->data,
        .k8 = x->k8->data,
        .v8 = x->v8->data,
        .q_scale = x->q_scale->data,
        .k_scale = x->k_scale->data,
        .v_scale = x->v_scale->data,
        .lut = lut->data,
        .branch = branch_of(branch),
        .S = o->dim[0],
        .N = N,
        .D = o->dim[1] / N,
        .keep = lut->dim[2],
        .block_q = block_q,
        .block_k = block_k,
        .scale = scale,
    };
    return sl_cuda_end(exec, "sage_attention", run_sage(exec, &args), err);
}
