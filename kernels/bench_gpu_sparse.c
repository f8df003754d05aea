/* Sparse-linear attention and SageSLA, whole sequences, a tenth of the blocks. */
#include "kernels/bench_gpu.h"

#include "base/size.h"

#include <math.h>
#include <stdio.h>

enum { D = 128, BLOCK_Q = 128, BLOCK_K = 64 };

typedef struct {
    int64_t S, N;
    int sage_block_q, sage_block_k;
    sl_tensor q, k, v, o, pq, pk, mean, lut, state, proj_w, proj_b;
    sl_tensor q8, q8_scale, k8, k8_scale, v8, v8_scale, sage_lut;
} sparse_arg;

static sl_status run_mean(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;

    return b->ops->block_mean(b->exec, &a->pk, &a->k, &a->mean, BLOCK_K, SL_SLA_BF16, err);
}

static sl_status run_top(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;

    return b->ops->top_blocks(b->exec, &a->lut, &a->pq, &a->pk, a->N, SL_SLA_BF16, err);
}

static sl_status run_state(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;

    return b->ops->linear_state(b->exec, &a->state, &a->k, &a->v, a->N, err);
}

static sl_status run_sparse(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;
    const sl_linear_branch branch = { &a->state, &a->proj_w, &a->proj_b };

    return b->ops->sparse_attention(b->exec, &a->o, &a->q, &a->k, &a->v, &a->lut, &branch, a->N,
                                    BLOCK_Q, BLOCK_K, 1.0f / sqrtf((float)D), err);
}

static sl_status run_quantize(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;

    return b->ops->sage_quantize(b->exec, &a->k8, &a->k8_scale, &a->k, &a->mean, a->N,
                                 a->sage_block_k, err);
}

static sl_status run_quantize_v(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;

    return b->ops->sage_quantize_v(b->exec, &a->v8, &a->v8_scale, &a->v, err);
}

static sl_status run_sage(bench_gpu *b, void *arg, sl_error *err)
{
    const sparse_arg *a = arg;
    const sl_sage_operands operands = { &a->q8,       &a->q8_scale, &a->k8,
                                        &a->k8_scale, &a->v8,       &a->v8_scale };
    const sl_linear_branch branch = { &a->state, &a->proj_w, &a->proj_b };

    return b->ops->sage_attention(b->exec, &a->o, &operands, &a->sage_lut, &a->q, &branch, a->N,
                                  a->sage_block_q, a->sage_block_k, 1.0f / sqrtf((float)D), err);
}

#define TAKE(t, dtype, rank, ...)                                                                  \
    do {                                                                                           \
        if (status == SL_OK)                                                                       \
            status = BENCH_GPU_TAKE(b, &a->t, err, dtype, rank, __VA_ARGS__);                      \
    } while (0)

static sl_status take_operands(bench_gpu *b, sparse_arg *a, int64_t keep, int64_t sage_keep,
                               sl_error *err)
{
    const int64_t S = a->S, N = a->N, C = N * D;
    const int64_t Q = sl_ceil_div(S, BLOCK_Q), K = sl_ceil_div(S, BLOCK_K);
    const int64_t sage_q = sl_ceil_div(S, a->sage_block_q),
                  sage_k = sl_ceil_div(S, a->sage_block_k);
    sl_status status = SL_OK;

    TAKE(q, SL_BF16, 2, S, C);
    TAKE(k, SL_BF16, 2, S, C);
    TAKE(v, SL_BF16, 2, S, C);
    TAKE(o, SL_BF16, 2, S, C);
    TAKE(pq, SL_F32, 2, Q, C);
    TAKE(pk, SL_F32, 2, K, C);
    TAKE(mean, SL_F32, 1, C);
    TAKE(lut, SL_I32, 3, N, Q, keep);
    TAKE(sage_lut, SL_I32, 3, N, sage_q, sage_keep);
    TAKE(state, SL_F32, 3, N, D + 1, D);
    TAKE(proj_w, SL_F32, 2, D, D);
    TAKE(proj_b, SL_F32, 1, D);
    TAKE(q8, SL_I8, 2, S, C);
    TAKE(k8, SL_I8, 2, S, C);
    TAKE(v8, SL_F8_E4M3, 2, S, C);
    TAKE(q8_scale, SL_F32, 2, N, sage_q);
    TAKE(k8_scale, SL_F32, 2, N, sage_k);
    TAKE(v8_scale, SL_F32, 1, C);
    return status;
}

/* The operands of the last steps are made by the first ones, timed or not. */
static sl_status prepare(bench_gpu *b, sparse_arg *a, sl_error *err)
{
    sl_tensor sage_pq, sage_pk;
    const int64_t C = a->N * D;
    const size_t mark = sl_scratch_mark(&b->scratch);
    sl_status status =
        BENCH_GPU_TAKE(b, &sage_pq, err, SL_F32, 2, sl_ceil_div(a->S, a->sage_block_q), C);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &sage_pk, err, SL_F32, 2, sl_ceil_div(a->S, a->sage_block_k), C);
    if (status == SL_OK)
        status = b->ops->block_mean(b->exec, &a->pq, &a->q, NULL, BLOCK_Q, SL_SLA_BF16, err);
    if (status == SL_OK)
        status = run_mean(b, a, err);
    if (status == SL_OK)
        status = run_top(b, a, err);
    if (status == SL_OK)
        status =
            b->ops->top_blocks(b->exec, &a->sage_lut, &sage_pq, &sage_pk, a->N, SL_SLA_BF16, err);
    if (status == SL_OK)
        status = run_state(b, a, err);
    if (status == SL_OK)
        status = b->ops->sage_quantize(b->exec, &a->q8, &a->q8_scale, &a->q, NULL, a->N,
                                       a->sage_block_q, err);
    if (status == SL_OK)
        status = run_quantize(b, a, err);
    if (status == SL_OK)
        status = run_quantize_v(b, a, err);
    sl_scratch_release(&b->scratch, mark);
    return status;
}

static sl_status bench_model(bench_gpu *b, const char *name, int64_t S, int64_t N, sl_error *err)
{
    const double all = (double)S * (double)(N * D);
    const int64_t keep = sl_sla_keep(sl_ceil_div(S, BLOCK_K), 0.1);
    sparse_arg a = { .S = S, .N = N, .sage_block_q = 64, .sage_block_k = 128 };
    const int64_t sage_keep = sl_sla_keep(sl_ceil_div(S, a.sage_block_k), 0.1);
    const double branch = 6.0 * all * D;
    const struct {
        bench_gpu_case c;
        bench_gpu_run_fn *run;
    } cases[] = {
        { { "block_mean", name, BENCH_GPU_BYTES, 0.0, 2.0 * all }, run_mean },
        { { "top_blocks", name, BENCH_GPU_F32,
            2.0 * (double)(sl_ceil_div(S, BLOCK_Q) * sl_ceil_div(S, BLOCK_K)) * (double)(N * D),
            0.0 },
          run_top },
        { { "linear_state", name, BENCH_GPU_BF16, 2.0 * all * D, 4.0 * all }, run_state },
        { { "sparse_attention", name, BENCH_GPU_BF16, 4.0 * all * (double)(keep * BLOCK_K) + branch,
            8.0 * all },
          run_sparse },
        { { "sage_quantize", name, BENCH_GPU_BYTES, 0.0, 3.0 * all }, run_quantize },
        { { "sage_quantize_v", name, BENCH_GPU_BYTES, 0.0, 3.0 * all }, run_quantize_v },
        { { "sage_attention", name, BENCH_GPU_8BIT,
            4.0 * all * (double)(sage_keep * a.sage_block_k) + branch, 7.0 * all },
          run_sage },
    };
    const size_t mark = sl_scratch_mark(&b->scratch);
    sl_status status = take_operands(b, &a, keep, sage_keep, err);

    if (status == SL_OK)
        status = prepare(b, &a, err);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(cases); i++)
        status = bench_gpu_measure(b, &cases[i].c, cases[i].run, &a, err);
    sl_scratch_release(&b->scratch, mark);
    return status == SL_OK || status == SL_ERR_DEVICE
               ? status
               : bench_gpu_failed(b, "sparse", name, status, err);
}

sl_status bench_gpu_sparse(bench_gpu *b, sl_error *err)
{
    sl_status status = bench_model(b, "1.3B 480p", 32760, 12, err);

    return status == SL_OK ? bench_model(b, "14B 720p", 75600, 40, err) : status;
}
