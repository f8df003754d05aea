/* Temporary memory of these ops is the exec's workspace: partial sums fit into it
 * because their number is chosen so. */
#include "kernels/sage.h"

#include "base/size.h"
#include "kernels/cuda.h"
#include "kernels/sla_cuda.h"

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
    return sl_cuda_end(exec, "sparse_attention",
                       sl_cuda_sparse_attention(sl_cuda_stream(exec), &args), err);
}

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
    return sl_cuda_end(exec, "sage_attention", sl_cuda_sage_attention(sl_cuda_stream(exec), &args),
                       err);
}
