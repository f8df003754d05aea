#include "engine/nets/dit_part.h"

#include "base/size.h"
#include "engine/nets/net.h"
#include "kernels/ops.h"

/* ---- linears ---- */

sl_status sl_dit_rows_make(sl_dit_rows *out, sl_exec *exec, sl_scratch *scratch, const sl_tensor *x,
                           const sl_affine *like, sl_error *err)
{
    const int64_t S = x->dim[0], I = x->dim[1];
    sl_dit_rows rows = { .x = *x };
    sl_status status = SL_OK;

    if (like->w.dtype == SL_I8) {
        SL_TRY(sl_scratch_tensor(scratch, &rows.codes, err, SL_I8, 2, S, I));
        SL_TRY(sl_scratch_tensor(scratch, &rows.scale, err, SL_F32, 2, sl_ceil_div(S, SL_INT8_TILE),
                                 sl_ceil_div(I, SL_INT8_TILE)));
        SL_TRY(sl_exec_ops(exec)->quantize_int8(exec, &rows.codes, &rows.scale, x, err));
    } else if (like->w.dtype == SL_F8_E4M3) {
        SL_TRY(sl_scratch_tensor(scratch, &rows.codes, err, SL_F8_E4M3, 2, S, I));
        SL_TRY(sl_scratch_tensor(scratch, &rows.scale, err, SL_F32, 2, I / SL_FP8_TILE, S));
        SL_TRY(sl_exec_ops(exec)->quantize_fp8(exec, &rows.codes, &rows.scale, x, err));
    }
    *out = rows;
done:
    return status;
}

sl_status sl_dit_apply(sl_exec *exec, const sl_tensor *y, const sl_dit_rows *rows,
                       const sl_affine *affine, sl_act act, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(exec);

    if (affine->w.dtype == SL_I8)
        return ops->linear_int8(exec, y, &rows->codes, &rows->scale, &affine->w, &affine->scale,
                                &affine->b, act, err);
    if (affine->w.dtype == SL_F8_E4M3)
        return ops->linear_fp8(exec, y, &rows->codes, &rows->scale, &affine->w, &affine->scale,
                               &affine->b, act, err);
    return ops->linear(exec, y, &rows->x, &affine->w, &affine->b, act, err);
}

/* ---- attention over kept blocks ---- */

/* One call: sizes, and what lives through it. */
typedef struct {
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_tensor *q, *k, *v;
    int64_t S, D, N; /* D: of all heads */
    int64_t block_q, block_k;
    sl_sla_rounding rounding;
    sl_tensor k_mean; /* [1, D] */
    sl_tensor lut;
    sl_tensor state;
    sl_linear_branch branch;
    float scale;
} sparse;

/* The blocks' means, their scores, the kept ones. */
static sl_status choose_blocks(sparse *s, sl_error *err)
{
    const size_t mark = sl_scratch_mark(s->scratch);
    sl_status status = SL_OK;
    sl_tensor pq, pk;

    SL_TRY(sl_scratch_tensor(s->scratch, &pq, err, SL_F32, 2, sl_ceil_div(s->S, s->block_q), s->D));
    SL_TRY(sl_scratch_tensor(s->scratch, &pk, err, SL_F32, 2, sl_ceil_div(s->S, s->block_k), s->D));
    SL_TRY(s->ops->block_mean(s->exec, &pq, s->q, NULL, s->block_q, s->rounding, err));
    SL_TRY(s->ops->block_mean(s->exec, &pk, s->k, &s->k_mean, s->block_k, s->rounding, err));
    SL_TRY(s->ops->top_blocks(s->exec, &s->lut, &pq, &pk, s->N, s->rounding, err));
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

static sl_status attend_sage(sparse *s, sl_error *err)
{
    const size_t mark = sl_scratch_mark(s->scratch);
    sl_tensor q8, k8, v8, q_scale, k_scale, v_scale;
    const sl_sage_operands x = { &q8, &q_scale, &k8, &k_scale, &v8, &v_scale };
    sl_status status = SL_OK;

    SL_TRY(sl_scratch_take(s->scratch, &q8, err, SL_I8, 2, s->q->dim));
    SL_TRY(sl_scratch_take(s->scratch, &k8, err, SL_I8, 2, s->q->dim));
    SL_TRY(sl_scratch_take(s->scratch, &v8, err, SL_F8_E4M3, 2, s->q->dim));
    SL_TRY(sl_scratch_tensor(s->scratch, &q_scale, err, SL_F32, 2, s->N,
                             sl_ceil_div(s->S, s->block_q)));
    SL_TRY(sl_scratch_tensor(s->scratch, &k_scale, err, SL_F32, 2, s->N,
                             sl_ceil_div(s->S, s->block_k)));
    SL_TRY(sl_scratch_tensor(s->scratch, &v_scale, err, SL_F32, 1, s->D));
    SL_TRY(s->ops->sage_quantize(s->exec, &q8, &q_scale, s->q, NULL, s->N, s->block_q, err));
    SL_TRY(s->ops->sage_quantize(s->exec, &k8, &k_scale, s->k, &s->k_mean, s->N, s->block_k, err));
    SL_TRY(s->ops->sage_quantize_v(s->exec, &v8, &v_scale, s->v, err));
    SL_TRY(s->ops->sage_attention(s->exec, s->q, &x, &s->lut, s->q, &s->branch, s->N, s->block_q,
                                  s->block_k, s->scale, err));
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

sl_status sl_dit_sparse_attention(sl_exec *exec, sl_scratch *scratch, const sl_dit_config *config,
                                  const sl_dit_attention_options *options, int64_t layer,
                                  const sl_affine *proj_l, const sl_tensor *q, const sl_tensor *k,
                                  const sl_tensor *v, float scale, const sl_tap *tap, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    const bool sage = options->mode == SL_ATTENTION_SAGESLA;
    const int64_t N = config->num_heads, head = config->dim / N;
    sl_status status = SL_OK;
    sparse s = {
        .exec = exec,
        .ops = sl_exec_ops(exec),
        .scratch = scratch,
        .q = q,
        .k = k,
        .v = v,
        .S = q->dim[0],
        .D = config->dim,
        .N = N,
        .block_q = options->block_q ? options->block_q
                   : sage           ? 64
                                    : 128,
        .block_k = options->block_k ? options->block_k
                   : sage           ? 128
                                    : 64,
        .rounding = sage ? SL_SLA_BF16 : SL_SLA_EXACT,
        .scale = scale,
    };
    const int64_t key_blocks = sl_ceil_div(s.S, s.block_k);

    SL_TRY(sl_scratch_tensor(scratch, &s.k_mean, err, SL_F32, 2, 1, s.D));
    SL_TRY(sl_scratch_tensor(scratch, &s.state, err, SL_F32, 3, N, head + 1, head));
    SL_TRY(sl_scratch_tensor(scratch, &s.lut, err, SL_I32, 3, N, sl_ceil_div(s.S, s.block_q),
                             sl_sla_keep(key_blocks, options->topk_ratio)));
    s.branch = (sl_linear_branch){ &s.state, &proj_l->w, &proj_l->b };
    SL_TRY(s.ops->block_mean(exec, &s.k_mean, k, NULL, s.S, s.rounding, err));
    SL_TRY(choose_blocks(&s, err));
    sl_tap_show_index(exec, tap, "lut", layer, &s.lut);
    if (options->luts)
        s.lut = options->luts[layer];
    SL_TRY(s.ops->linear_state(exec, &s.state, k, v, N, err));
    if (sage)
        SL_TRY(attend_sage(&s, err));
    else
        SL_TRY(s.ops->sparse_attention(exec, q, q, k, v, &s.lut, &s.branch, N, s.block_q, s.block_k,
                                       scale, err));
done:
    sl_scratch_release(scratch, mark);
    return status;
}
