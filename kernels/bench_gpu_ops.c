/* The ops of a step, on the shapes of 1.3B at 480p (32760 tokens) and 14B at 720p
 * (75600), 81 frames; the VAE's are in bench_gpu_vae.c. */
#include "kernels/bench_gpu.h"

#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum { D = 128 };

typedef struct {
    const char *name;
    int64_t S, C, F, N; /* tokens, width, width of the FFN, heads */
    sl_grid grid;
} model_shape;

static const model_shape models[] = {
    { "1.3B 480p", 32760, 1536, 8960, 12, { 21, 30, 52 } },
    { "14B 720p", 75600, 5120, 13824, 40, { 21, 45, 80 } },
};

enum { TILE_TOKENS = 16384 }; /* rows that the DiT gives to its linear layers at once */

/* Releases what a group took and goes on after a failure that the card survives. */
static sl_status end_group(bench_gpu *b, size_t mark, const char *op, const char *shape,
                           sl_status status, sl_error *err)
{
    sl_scratch_release(&b->scratch, mark);
    return status == SL_OK || status == SL_ERR_DEVICE ? status
                                                      : bench_gpu_failed(b, op, shape, status, err);
}

/* ---- rows: norms, rotary embedding, residuals ---- */

typedef struct {
    sl_tensor stream, a, c; /* [S, C] f32; bf16 twice */
    sl_tensor w, scale, shift, table;
    sl_grid grid;
} rows_arg;

static sl_status run_layer_norm(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->layer_norm(b->exec, &a->a, &a->stream, NULL, NULL, &a->scale, &a->shift, 1e-6f,
                              0, err);
}

static sl_status run_rms_norm(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->rms_norm(b->exec, &a->a, &a->a, &a->w, 1e-6f, err);
}

static sl_status run_rope(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->rope(b->exec, &a->c, &a->table, a->grid, err);
}

static sl_status run_gated_add(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->gated_add(b->exec, &a->stream, &a->a, &a->scale, err);
}

static sl_status run_add(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->add(b->exec, &a->stream, &a->stream, &a->a, err);
}

static sl_status run_silu(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->silu(b->exec, &a->c, &a->a, err);
}

static sl_status run_copy(bench_gpu *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return b->ops->copy(b->exec, &a->c, &a->a, err);
}

static sl_status take_rows(bench_gpu *b, rows_arg *a, const model_shape *m, sl_error *err)
{
    sl_status status = BENCH_GPU_TAKE(b, &a->stream, err, SL_F32, 2, m->S, m->C);

    a->grid = m->grid;
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->a, err, SL_BF16, 2, m->S, m->C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->c, err, SL_BF16, 2, m->S, m->C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->w, err, SL_F32, 1, m->C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->scale, err, SL_F32, 1, m->C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->shift, err, SL_F32, 1, m->C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->table, err, SL_F32, 3, SL_ROPE_MAX_POS, D / 2, 2);
    if (status == SL_OK)
        status = b->ops->rope_table(b->exec, &a->table, err);
    return status;
}

static sl_status bench_rows(bench_gpu *b, const model_shape *m, sl_error *err)
{
    static const struct {
        const char *op, *what;
        bench_gpu_run_fn *run;
        double bytes; /* of an element, all operands */
    } ops[] = {
        { "layer_norm", "bf16 = f32, modulated", run_layer_norm, 6 },
        { "rms_norm", "bf16 in place", run_rms_norm, 4 },
        { "rope", "bf16", run_rope, 4 },
        { "gated_add", "f32 += bf16", run_gated_add, 10 },
        { "add", "f32 += bf16", run_add, 10 },
        { "silu", "bf16", run_silu, 4 },
        { "copy", "bf16", run_copy, 4 },
    };
    const size_t mark = sl_scratch_mark(&b->scratch);
    rows_arg a;
    sl_status status = take_rows(b, &a, m, err);

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(ops); i++) {
        char shape[64];
        snprintf(shape, sizeof shape, "%s %s", m->name, ops[i].what);
        const bench_gpu_case c = { ops[i].op, shape, BENCH_GPU_BYTES, 0.0,
                                   ops[i].bytes * (double)(m->S * m->C) };
        status = bench_gpu_measure(b, &c, ops[i].run, &a, err);
    }
    return end_group(b, mark, "rows", m->name, status, err);
}

/* ---- latents ---- */

typedef struct {
    sl_tensor latent, tokens, x, v, noise;
} latent_arg;

static sl_status run_patchify(bench_gpu *b, void *arg, sl_error *err)
{
    const latent_arg *a = arg;

    return b->ops->patchify(b->exec, &a->tokens, &a->latent, err);
}

static sl_status run_unpatchify(bench_gpu *b, void *arg, sl_error *err)
{
    const latent_arg *a = arg;

    return b->ops->unpatchify(b->exec, &a->latent, &a->tokens, err);
}

static sl_status run_randn(bench_gpu *b, void *arg, sl_error *err)
{
    const latent_arg *a = arg;

    return b->ops->randn(b->exec, &a->noise, 1, 0, err);
}

static sl_status run_step(bench_gpu *b, void *arg, sl_error *err)
{
    const latent_arg *a = arg;

    return b->ops->sample_step(b->exec, &a->x, &a->v, &a->noise, 0.9, 0.8, err);
}

static sl_status run_check_finite(bench_gpu *b, void *arg, sl_error *err)
{
    const latent_arg *a = arg;
    int64_t bad;

    return b->ops->check_finite(b->exec, &a->x, &bad, err);
}

static sl_status bench_latents(bench_gpu *b, sl_error *err)
{
    enum { C = 16, T = 21, H = 90, W = 160, COUNT = C * T * H * W };
    static const struct {
        const char *op;
        bench_gpu_run_fn *run;
        double bytes;
    } ops[] = { { "patchify", run_patchify, 6 },
                { "unpatchify", run_unpatchify, 6 },
                { "randn", run_randn, 4 },
                { "sample_step", run_step, 24 },
                { "check_finite", run_check_finite, 8 } };
    const size_t mark = sl_scratch_mark(&b->scratch);
    latent_arg a;
    sl_status status = BENCH_GPU_TAKE(b, &a.latent, err, SL_F32, 4, C, T, H, W);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.tokens, err, SL_BF16, 2, T * H / 2 * W / 2, 4 * C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.x, err, SL_F64, 1, COUNT);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.v, err, SL_F32, 1, COUNT);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.noise, err, SL_F32, 1, COUNT);
    if (status == SL_OK)
        status = b->ops->sample_init(b->exec, &a.x, &a.noise, 1.0, err);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(ops); i++) {
        const bench_gpu_case c = { ops[i].op, "720p latent", BENCH_GPU_BYTES, 0.0,
                                   ops[i].bytes * COUNT };
        status = bench_gpu_measure(b, &c, ops[i].run, &a, err);
    }
    return end_group(b, mark, "latents", "720p", status, err);
}

sl_status bench_gpu_small(bench_gpu *b, sl_error *err)
{
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(models); i++)
        status = bench_rows(b, &models[i], err);
    return status == SL_OK ? bench_latents(b, err) : status;
}

/* ---- linear ---- */

typedef struct {
    sl_tensor y, x, w, bias;
    sl_tensor x8, x_scale, w8, w_scale;
    sl_tensor xf8, xf8_scale, wf8, row_scale; /* fp8; the last is not used by the product */
    sl_act act;
} linear_arg;

static sl_status run_linear(bench_gpu *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return b->ops->linear(b->exec, &a->y, &a->x, &a->w, &a->bias, a->act, err);
}

static sl_status run_quantize_int8(bench_gpu *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return b->ops->quantize_int8(b->exec, &a->x8, &a->x_scale, &a->x, err);
}

static sl_status run_linear_int8(bench_gpu *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return b->ops->linear_int8(b->exec, &a->y, &a->x8, &a->x_scale, &a->w8, &a->w_scale, &a->bias,
                               a->act, err);
}

static sl_status run_quantize_fp8(bench_gpu *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return b->ops->quantize_fp8(b->exec, &a->xf8, &a->xf8_scale, &a->x, err);
}

static sl_status run_linear_fp8(bench_gpu *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return b->ops->linear_fp8(b->exec, &a->y, &a->xf8, &a->xf8_scale, &a->wf8, &a->w_scale,
                              &a->bias, a->act, err);
}

static sl_status take_linear(bench_gpu *b, linear_arg *a, int64_t S, int64_t I, int64_t O,
                             sl_error *err)
{
    sl_status status = BENCH_GPU_TAKE(b, &a->x, err, SL_BF16, 2, S, I);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->w, err, SL_BF16, 2, O, I);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->bias, err, SL_F32, 1, O);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->y, err, SL_BF16, 2, S, O);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->x8, err, SL_I8, 2, S, I);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->x_scale, err, SL_F32, 2, sl_ceil_div(S, SL_INT8_TILE),
                                sl_ceil_div(I, SL_INT8_TILE));
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->w8, err, SL_I8, 2, O, I);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->w_scale, err, SL_F32, 2, sl_ceil_div(O, SL_INT8_TILE),
                                sl_ceil_div(I, SL_INT8_TILE));
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->xf8, err, SL_F8_E4M3, 2, S, I);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->xf8_scale, err, SL_F32, 2, I / SL_FP8_TILE, S);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->wf8, err, SL_F8_E4M3, 2, O, I);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->row_scale, err, SL_F32, 2, I / SL_FP8_TILE, O);
    return status;
}

/* Codes of weights are made by rows here: loaders make them by tiles. */
static sl_status bench_fp8(bench_gpu *b, linear_arg *a, const char *shape, double flops,
                           double bytes, sl_error *err)
{
    const double elements = (double)sl_tensor_count(&a->x);
    const bench_gpu_case quantize = { "quantize_fp8", shape, BENCH_GPU_BYTES, 0.0, 3.0 * elements };
    const bench_gpu_case c = { "linear_fp8", shape, BENCH_GPU_8BIT, flops, bytes };
    sl_status status = b->ops->quantize_fp8(b->exec, &a->wf8, &a->row_scale, &a->w, err);

    if (status == SL_OK)
        status = b->ops->quantize_int8(b->exec, &a->w8, &a->w_scale, &a->w, err);
    if (status == SL_OK)
        status = bench_gpu_measure(b, &quantize, run_quantize_fp8, a, err);
    if (status == SL_OK)
        status = bench_gpu_measure(b, &c, run_linear_fp8, a, err);
    return status;
}

static sl_status bench_one_linear(bench_gpu *b, int64_t S, int64_t I, int64_t O, sl_act act,
                                  sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    const double flops = 2.0 * (double)(S * I) * (double)O;
    const double moved = (double)(S * I + I * O + S * O);
    linear_arg a = { .act = act };
    char shape[64];
    sl_status status;

    snprintf(shape, sizeof shape, "%" PRId64 "x%" PRId64 "x%" PRId64 "%s", S, I, O,
             act == SL_ACT_GELU_TANH ? " gelu" : "");
    status = take_linear(b, &a, S, I, O, err);
    if (status == SL_OK) {
        const bench_gpu_case c = { "linear", shape, BENCH_GPU_BF16, flops, 2.0 * moved };
        status = bench_gpu_measure(b, &c, run_linear, &a, err);
    }
    if (status == SL_OK && b->ops->linear_int8) {
        const bench_gpu_case quantize = { "quantize_int8", shape, BENCH_GPU_BYTES, 0.0,
                                          3.0 * (double)(S * I) };
        const bench_gpu_case c = { "linear_int8", shape, BENCH_GPU_8BIT, flops,
                                   moved + (double)(S * O) };
        status = b->ops->quantize_int8(b->exec, &a.w8, &a.w_scale, &a.w, err);
        if (status == SL_OK)
            status = b->ops->quantize_int8(b->exec, &a.x8, &a.x_scale, &a.x, err);
        if (status == SL_OK)
            status = bench_gpu_measure(b, &quantize, run_quantize_int8, &a, err);
        if (status == SL_OK)
            status = bench_gpu_measure(b, &c, run_linear_int8, &a, err);
    }
    if (status == SL_OK)
        status = bench_fp8(b, &a, shape, flops, moved + (double)(S * O), err);
    return end_group(b, mark, "linear", shape, status, err);
}

sl_status bench_gpu_linear(bench_gpu *b, sl_error *err)
{
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(models); i++) {
        const int64_t C = models[i].C, F = models[i].F;
        status = bench_one_linear(b, TILE_TOKENS, C, C, SL_ACT_NONE, err);
        if (status == SL_OK)
            status = bench_one_linear(b, TILE_TOKENS, C, F, SL_ACT_GELU_TANH, err);
        if (status == SL_OK)
            status = bench_one_linear(b, TILE_TOKENS, F, C, SL_ACT_NONE, err);
    }
    if (status == SL_OK) /* umT5 */
        status = bench_one_linear(b, 512, 4096, 10240, SL_ACT_GELU_TANH, err);
    if (status == SL_OK)
        status = bench_one_linear(b, 1, 5120, 30720, SL_ACT_NONE, err);
    return status;
}

/* ---- attention ---- */

typedef struct {
    sl_tensor o, q, k, v, bias;
    int64_t N;
    float scale;
    bool biased;
} attention_arg;

static sl_status run_attention(bench_gpu *b, void *arg, sl_error *err)
{
    const attention_arg *a = arg;

    return b->ops->attention(b->exec, &a->o, &a->q, &a->k, &a->v, a->biased ? &a->bias : NULL, a->N,
                             a->scale, err);
}

static sl_status take_attention(bench_gpu *b, attention_arg *a, sl_dtype dtype, int64_t Sq,
                                int64_t Sk, int64_t width, sl_error *err)
{
    sl_status status = BENCH_GPU_TAKE(b, &a->q, err, dtype, 2, Sq, width);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->k, err, dtype, 2, Sk, width);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->v, err, dtype, 2, Sk, width);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a->o, err, dtype, 2, Sq, width);
    return status;
}

static sl_status bench_one_attention(bench_gpu *b, sl_dtype dtype, int64_t Sq, int64_t Sk,
                                     int64_t N, int64_t head, bool biased, sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    attention_arg a = { .N = N, .scale = 1.0f / sqrtf((float)head), .biased = biased };
    char shape[64];
    sl_status status = SL_OK;

    snprintf(shape, sizeof shape, "%s %" PRId64 "x%" PRId64 " %" PRId64 "x%" PRId64 "%s",
             dtype == SL_BF16 ? "bf16" : "f32", Sq, Sk, N, head, biased ? " bias" : "");
    if (!bench_gpu_wanted(b, "attention", shape))
        return SL_OK;
    status = take_attention(b, &a, dtype, Sq, Sk, N * head, err);
    if (status == SL_OK && biased)
        status = BENCH_GPU_TAKE(b, &a.bias, err, SL_F32, 2, N, Sq + Sk - 1);
    if (status == SL_OK) {
        const bench_gpu_case c = { "attention", shape,
                                   dtype == SL_BF16 ? BENCH_GPU_BF16 : BENCH_GPU_F32,
                                   4.0 * (double)Sq * (double)Sk * (double)(N * head),
                                   (double)sl_dtype_bytes(dtype) * 2.0 * (double)(Sq + Sk) *
                                       (double)(N * head) };
        status = bench_gpu_measure(b, &c, run_attention, &a, err);
    }
    return end_group(b, mark, "attention", shape, status, err);
}

sl_status bench_gpu_attention(bench_gpu *b, sl_error *err)
{
    static const struct {
        sl_dtype dtype;
        int64_t Sq, Sk, N, head;
        bool biased;
    } shapes[] = {
        { SL_BF16, 32760, 32760, 12, D, false }, { SL_BF16, 75600, 75600, 40, D, false },
        { SL_BF16, 16384, 512, 12, D, false },   { SL_BF16, 16384, 512, 40, D, false },
        { SL_BF16, 512, 512, 64, 64, true },     { SL_BF16, 100, 100, 64, 64, true },
        { SL_BF16, 6240, 6240, 1, 384, false },  { SL_BF16, 14400, 14400, 1, 384, false },
        { SL_F32, 4096, 4096, 12, D, false },
    };
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(shapes); i++)
        status = bench_one_attention(b, shapes[i].dtype, shapes[i].Sq, shapes[i].Sk, shapes[i].N,
                                     shapes[i].head, shapes[i].biased, err);
    return status;
}
