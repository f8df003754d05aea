/* The ways of a linear layer on cuda, in the order in which they are looked at:
 *
 *   few rows   own dot products.
 *   library    both operands bf16, or both f32 (then true f32).  bf16 results get
 *              bias and GELU in its epilogue; where it takes no f32 bias beside a
 *              bf16 y, the bias is rounded to bf16 before.  f32 results get act
 *              from a pass of ours: its GELU is too rough for f32.
 *   tiles      own product in f32: mixed dtypes, and what the library refuses.
 */
#include "kernels/linear.h"

#include "kernels/cuda.h"
#include "kernels/linear_cuda.h"
#include "kernels/matmul_cuda.h"

static sl_status run_own(sl_exec *exec, const sl_cuda_linear *l, sl_error *err)
{
    const bool few = l->S <= SL_CUDA_LINEAR_FEW_ROWS;
    const cudaError_t error = few ? sl_cuda_linear_few(sl_cuda_stream(exec), l)
                                  : sl_cuda_linear_tile(sl_cuda_stream(exec), l);

    return sl_cuda_end(exec, "linear", error, err);
}

static sl_cuda_matmul_key key_of(const sl_cuda_linear *l)
{
    return (sl_cuda_matmul_key){
        .S = l->S,
        .I = l->I,
        .O = l->O,
        .operands = l->x_bf16 ? CUDA_R_16BF : CUDA_R_32F,
        .y = l->y_bf16 ? CUDA_R_16BF : CUDA_R_32F,
        .bias = SL_CUDA_MATMUL_NO_BIAS,
        .x_align = sl_cuda_alignment(l->x),
        .w_align = sl_cuda_alignment(l->w),
        .y_align = sl_cuda_alignment(l->y),
    };
}

/* A product with the bias where the library takes it beside f32, and one pass for
 * what is left. */
static sl_status run_plain(sl_exec *exec, const sl_cuda_linear *l, sl_error *err)
{
    const cudaStream_t stream = sl_cuda_stream(exec);
    sl_cuda_linear rest = *l;
    sl_cuda_matmul_key key = key_of(l);
    sl_cuda_matmul *m = NULL;
    sl_status status = SL_OK;

    if (l->b && !l->b_bf16) {
        key.bias = CUDA_R_32F;
        key.bias_align = sl_cuda_alignment(l->b);
        status = sl_cuda_matmul_get(&m, exec, &key, err);
        if (m)
            rest.b = NULL;
    }
    if (status == SL_OK && !m) {
        key = key_of(l);
        status = sl_cuda_matmul_get(&m, exec, &key, err);
    }
    if (status == SL_OK && !m)
        return run_own(exec, l, err);
    if (status == SL_OK)
        status = sl_cuda_matmul_run(exec, m, l->y, l->x, l->w, l->b, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "linear",
        rest.b || l->act != SL_ACT_NONE ? sl_cuda_linear_finish(stream, &rest) : cudaSuccess, err);
}

/* The bias as the library takes it: *m, and where it lies.  *m NULL: not at all. */
static sl_status find_fused(sl_cuda_matmul **m, const void **bias, sl_exec *exec,
                            const sl_cuda_linear *l, sl_error *err)
{
    /* behind what the library uses of the workspace */
    unsigned char *rounded = (unsigned char *)sl_cuda_workspace(exec) + SL_CUDA_MATMUL_BYTES;
    const bool fits =
        (size_t)l->O * sizeof(uint16_t) <= SL_CUDA_WORKSPACE_BYTES - SL_CUDA_MATMUL_BYTES;
    sl_cuda_matmul_key key = key_of(l);
    sl_status status;

    key.gelu = l->act == SL_ACT_GELU_TANH;
    *bias = l->b;
    if (l->b) {
        key.bias = l->b_bf16 ? CUDA_R_16BF : CUDA_R_32F;
        key.bias_align = sl_cuda_alignment(l->b);
    }
    status = sl_cuda_matmul_get(m, exec, &key, err);
    if (status != SL_OK || *m || !l->b || l->b_bf16 || !fits)
        return status;
    key.bias = CUDA_R_16BF;
    key.bias_align = sl_cuda_alignment(rounded);
    *bias = rounded;
    status = sl_cuda_matmul_get(m, exec, &key, err);
    if (status == SL_OK && *m)
        status = sl_cuda_end(exec, "linear",
                             sl_cuda_round_bf16(sl_cuda_stream(exec), rounded, l->b, l->O), err);
    return status;
}

static sl_status run_fused(sl_exec *exec, const sl_cuda_linear *l, sl_error *err)
{
    sl_cuda_matmul *m = NULL;
    const void *bias = NULL;
    sl_status status = find_fused(&m, &bias, exec, l, err);

    if (status != SL_OK)
        return status;
    if (!m)
        return run_own(exec, l, err);
    status = sl_cuda_matmul_run(exec, m, l->y, l->x, l->w, bias, err);
    return status == SL_OK ? sl_cuda_end(exec, "linear", cudaSuccess, err) : status;
}

sl_status sl_linear_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                         const sl_tensor *b, sl_act act, sl_error *err)
{
    sl_status status = sl_linear_check(exec, y, x, w, b, act, err);
    sl_cuda_linear l;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    l = (sl_cuda_linear){
        .y = y->data,
        .x = x->data,
        .w = w->data,
        .b = b ? b->data : NULL,
        .y_bf16 = y->dtype == SL_BF16,
        .x_bf16 = x->dtype == SL_BF16,
        .w_bf16 = w->dtype == SL_BF16,
        .b_bf16 = b && b->dtype == SL_BF16,
        .act = act,
        .S = x->dim[0],
        .I = x->dim[1],
        .O = w->dim[0],
    };
    if (l.S == 0 || l.O == 0)
        return sl_cuda_end(exec, "linear", cudaSuccess, err);
    if (l.S <= SL_CUDA_LINEAR_FEW_ROWS || l.I == 0 || l.x_bf16 != l.w_bf16)
        return run_own(exec, &l, err);
    if (!l.y_bf16)
        return run_plain(exec, &l, err);
    return l.x_bf16 && act != SL_ACT_SILU ? run_fused(exec, &l, err) : run_own(exec, &l, err);
}
