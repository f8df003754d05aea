/* gpu_linear - linear layers in f32, bf16, int8 and fp8, and what quantises for
 * them.  Where the cpu twin would take seconds it makes some rows only; then the
 * other rows are looked at for not a number, as outputs start as that. */
#include "kernels/cuda.h"
#include "kernels/linear8_cuda.h"
#include "tests/gpu/gpu_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t S, I, O;
} shape;

static const char *const act_names[] = { "", " gelu", " silu" };

/* Sums of bf16 products on the tensor cores drop bits below those of the largest
 * number of each step. */
static const gpu_limits tensor_f32 = { 1e-4, -1, 0.0 };

/* ---- linear ---- */

enum { NO_BIAS = -1 };

typedef struct {
    shape size;
    sl_dtype y, x, w;
    int b; /* an sl_dtype, or NO_BIAS */
    sl_act act;
} linear_case;

static gpu_limits limits_of(const linear_case *c)
{
    if (c->y == SL_BF16)
        return GPU_BF16;
    return c->x == SL_BF16 && c->w == SL_BF16 ? tensor_f32 : GPU_F32;
}

/* All elements are numbers. */
static void expect_numbers(gpu *g, const gpu_tensor *t)
{
    const int64_t count = sl_tensor_count(&t->on[GPU_CUDA]);
    const bool bf16 = t->on[GPU_CUDA].dtype == SL_BF16;
    const void *got = gpu_pull(g, t);

    for (int64_t i = 0; got && i < count; i++) {
        const float v = bf16 ? sl_bf16_to_f32(((const uint16_t *)got)[i]) : ((const float *)got)[i];
        if (!isfinite(v)) {
            gpu_fail(g, "element %lld of %lld is %g", (long long)i, (long long)count, (double)v);
            return;
        }
    }
}

/* A second run gave the same bytes. */
static void expect_same(gpu *g, const gpu_tensor *a, const gpu_tensor *b)
{
    const void *first = gpu_pull(g, a), *second = gpu_pull(g, b);

    if (first && second && memcmp(first, second, sl_tensor_bytes(&a->on[GPU_CUDA])) != 0)
        gpu_fail(g, "two runs differ");
}

/* The cpu side makes `rows` rows at each end; 0: all. */
static void check_linear(gpu *g, const linear_case *c, int64_t rows)
{
    const int64_t S = c->size.S, I = c->size.I, O = c->size.O;

    if (!gpu_begin(g, "linear %s=%s*%s%s%s%s [%lld,%lld]x[%lld,%lld]", gpu_dtype(c->y),
                   gpu_dtype(c->x), gpu_dtype(c->w), c->b == NO_BIAS ? "" : "+",
                   c->b == NO_BIAS ? "" : gpu_dtype((sl_dtype)c->b), act_names[c->act],
                   (long long)S, (long long)I, (long long)O, (long long)I))
        return;
    gpu_tensor x = GPU_RANDOM(g, c->x, 1.0, 2, S, I);
    gpu_tensor w = GPU_RANDOM(g, c->w, 1.0 / sqrt((double)(I > 0 ? I : 1)), 2, O, I);
    gpu_tensor b = GPU_RANDOM(g, c->b == NO_BIAS ? SL_F32 : (sl_dtype)c->b, 0.5, 1, O);
    gpu_tensor y = GPU_OUTPUT(g, c->y, 2, S, O);
    const bool biased = c->b != NO_BIAS;

    GPU_ONE(g, GPU_CUDA, linear, &y.on[GPU_CUDA], &x.on[GPU_CUDA], &w.on[GPU_CUDA],
            biased ? &b.on[GPU_CUDA] : NULL, c->act);
    if (rows == 0 || 2 * rows >= S) {
        rows = S;
    } else {
        gpu_tensor again = GPU_OUTPUT(g, c->y, 2, S, O);

        expect_numbers(g, &y);
        GPU_ONE(g, GPU_CUDA, linear, &again.on[GPU_CUDA], &x.on[GPU_CUDA], &w.on[GPU_CUDA],
                biased ? &b.on[GPU_CUDA] : NULL, c->act);
        expect_same(g, &y, &again);
    }
    for (int64_t first = 0; first < S; first += rows < S ? S - rows : S) {
        gpu_tensor some_y = gpu_rows(&y, first, rows), some_x = gpu_rows(&x, first, rows);
        GPU_ONE(g, GPU_CPU, linear, &some_y.on[GPU_CPU], &some_x.on[GPU_CPU], &w.on[GPU_CPU],
                biased ? &b.on[GPU_CPU] : NULL, c->act);
        gpu_compare(g, first ? "last" : "y", &some_y, limits_of(c));
    }
    gpu_end(g);
}

/* Nothing is a multiple of anything, or too few rows for a tile. */
static const shape ragged[] = {
    { 0, 64, 8 }, { 1, 1, 1 },      { 3, 7, 5 },    { 8, 256, 96 },   { 9, 33, 65 },
    { 20, 0, 9 }, { 129, 100, 30 }, { 77, 64, 64 }, { 257, 384, 64 },
};

/* Every mix of dtypes on every shape, with two of the ways to end; all of those
 * for all bf16 and all f32. */
static void check_ragged(gpu *g)
{
    static const sl_dtype types[] = { SL_F32, SL_BF16 };
    static const struct {
        int b;
        sl_act act;
    } ends[] = { { NO_BIAS, SL_ACT_NONE },
                 { SL_F32, SL_ACT_GELU_TANH },
                 { SL_BF16, SL_ACT_SILU },
                 { SL_F32, SL_ACT_NONE },
                 { SL_BF16, SL_ACT_GELU_TANH } };

    for (size_t i = 0; i < SL_COUNT(ragged); i++)
        for (size_t mix = 0; mix < 8; mix++)
            for (size_t e = 0; e < SL_COUNT(ends); e++) {
                const linear_case c = { ragged[i],       types[mix & 1], types[mix >> 1 & 1],
                                        types[mix >> 2], ends[e].b,      ends[e].act };
                if (mix == 0 || mix == 7 || (i + mix + e) % 3 == 0)
                    check_linear(g, &c, 0);
            }
}

/* As the nets call it: bf16 activations and weights, f32 biases. */
static const linear_case model_linears[] = {
    /* 1.3B: patch, q k v o, cross-attention's k v, feed-forward, head */
    { { 32760, 64, 1536 }, SL_F32, SL_F32, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 32760, 64, 1536 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 16384, 1536, 1536 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 16376, 1536, 1536 }, SL_F32, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 512, 1536, 1536 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 16384, 1536, 8960 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    { { 4100, 8960, 1536 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 32760, 1536, 64 }, SL_F32, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    /* time and text embedding */
    { { 1, 256, 1536 }, SL_F32, SL_F32, SL_BF16, SL_F32, SL_ACT_SILU },
    { { 1, 1536, 9216 }, SL_F32, SL_F32, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 4, 5120, 5120 }, SL_F32, SL_F32, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 512, 4096, 1536 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    { { 512, 4096, 5120 }, SL_BF16, SL_F32, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    /* 14B */
    { { 4096, 5120, 5120 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 4096, 5120, 13824 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    { { 4096, 13824, 5120 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    /* umT5 */
    { { 512, 4096, 4096 }, SL_BF16, SL_BF16, SL_BF16, NO_BIAS, SL_ACT_NONE },
    { { 100, 4096, 10240 }, SL_BF16, SL_BF16, SL_BF16, NO_BIAS, SL_ACT_GELU_TANH },
    { { 100, 10240, 4096 }, SL_F32, SL_BF16, SL_BF16, NO_BIAS, SL_ACT_NONE },
    /* VAE's attention */
    { { 6240, 384, 1152 }, SL_BF16, SL_BF16, SL_BF16, SL_F32, SL_ACT_NONE },
    /* true f32 */
    { { 2048, 1536, 1536 }, SL_F32, SL_F32, SL_F32, SL_F32, SL_ACT_GELU_TANH },
    { { 1000, 8960, 1536 }, SL_F32, SL_F32, SL_F32, SL_F32, SL_ACT_NONE },
};

/* ---- int8 ---- */

static gpu_tensor int8_scales(gpu *g, int64_t rows, int64_t cols)
{
    return GPU_OUTPUT(g, SL_F32, 2, sl_ceil_div(rows, SL_INT8_TILE),
                      sl_ceil_div(cols, SL_INT8_TILE));
}

static void check_quantize_int8(gpu *g, sl_dtype dtype, int64_t R, int64_t C, double scale)
{
    if (!gpu_begin(g, "quantize_int8 %s [%lld,%lld] of %g", gpu_dtype(dtype), (long long)R,
                   (long long)C, scale))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, scale, 2, R, C);
    gpu_tensor q = GPU_OUTPUT(g, SL_I8, 2, R, C);
    gpu_tensor s = int8_scales(g, R, C);

    GPU_BOTH(g, quantize_int8, GPU_ON(q), GPU_ON(s), GPU_ON(x));
    gpu_compare(g, "codes", &q, GPU_EXACT);
    gpu_compare(g, "scales", &s, GPU_EXACT);
    gpu_end(g);
}

typedef struct {
    shape size;
    sl_dtype y;
    int b;
    sl_act act;
} int8_case;

/* Without act every bit is given; y BF16 stands for the F32 rounded once more. */
static gpu_limits int8_limits(const int8_case *c)
{
    return c->act == SL_ACT_NONE ? GPU_EXACT : c->y == SL_BF16 ? GPU_BF16 : GPU_F32;
}

/* What the op does on cards without wgmma. */
static void run_mma(gpu *g, const int8_case *c, bool fp8, const gpu_tensor *y, const gpu_tensor *x,
                    const gpu_tensor *xs, const gpu_tensor *w, const gpu_tensor *ws,
                    const gpu_tensor *b)
{
    sl_exec *exec = g->on[GPU_CUDA].exec;
    const sl_cuda_linear8 l = {
        .y = y->on[GPU_CUDA].data,
        .x = x->on[GPU_CUDA].data,
        .w = w->on[GPU_CUDA].data,
        .x_scale = xs->on[GPU_CUDA].data,
        .w_scale = ws->on[GPU_CUDA].data,
        .b = c->b == NO_BIAS ? NULL : b->on[GPU_CUDA].data,
        .y_bf16 = c->y == SL_BF16,
        .b_bf16 = c->b == SL_BF16,
        .act = c->act,
        .S = c->size.S,
        .I = c->size.I,
        .O = c->size.O,
    };

    const char *op = fp8 ? "linear_fp8_mma" : "linear_int8_mma";
    if (!gpu_ready(g, op, GPU_CUDA, true))
        return;
    sl_status status = sl_cuda_begin(exec, &g->err);
    if (status == SL_OK)
        status = sl_cuda_end(exec, op,
                             fp8 ? sl_cuda_linear_fp8_mma(sl_cuda_stream(exec), &l)
                                 : sl_cuda_linear_int8_mma(sl_cuda_stream(exec), &l),
                             &g->err);
    gpu_ran(g, op, GPU_CUDA, status);
}

/* The first 128 rows, those in the middle, and what is left over at the end. */
static void compare_int8(gpu *g, const int8_case *c, const gpu_tensor *y, const gpu_tensor *x,
                         const gpu_tensor *xs, const gpu_tensor *w, const gpu_tensor *ws,
                         const gpu_tensor *b)
{
    const int64_t S = c->size.S, tiles = sl_ceil_div(S, SL_INT8_TILE);
    const int64_t chosen[] = { 0, tiles / 2, tiles - 1 };

    for (int i = 0; i < 3; i++) {
        const int64_t first = chosen[i] * SL_INT8_TILE;
        const int64_t rows = S - first < SL_INT8_TILE ? S - first : SL_INT8_TILE;

        if (tiles == 0 || (i > 0 && chosen[i] == chosen[i - 1]))
            continue;
        gpu_tensor some_y = gpu_rows(y, first, rows), some_x = gpu_rows(x, first, rows);
        gpu_tensor some_xs = gpu_rows(xs, chosen[i], 1);
        GPU_ONE(g, GPU_CPU, linear_int8, &some_y.on[GPU_CPU], &some_x.on[GPU_CPU],
                &some_xs.on[GPU_CPU], &w->on[GPU_CPU], &ws->on[GPU_CPU],
                c->b == NO_BIAS ? NULL : &b->on[GPU_CPU], c->act);
        gpu_compare(g, "y", &some_y, int8_limits(c));
    }
}

/* Codes come from quantize_int8, of numbers whose tiles differ in size. */
static void check_linear_int8(gpu *g, const int8_case *c, bool mma)
{
    const int64_t S = c->size.S, I = c->size.I, O = c->size.O;

    if (!gpu_begin(g, "linear_int8%s %s%s%s%s [%lld,%lld]x[%lld,%lld]", mma ? " mma" : "",
                   gpu_dtype(c->y), c->b == NO_BIAS ? "" : "+",
                   c->b == NO_BIAS ? "" : gpu_dtype((sl_dtype)c->b), act_names[c->act],
                   (long long)S, (long long)I, (long long)O, (long long)I))
        return;
    gpu_tensor x = GPU_RANDOM(g, SL_I8, 127, 2, S, I);
    gpu_tensor w = GPU_RANDOM(g, SL_I8, 127, 2, O, I);
    gpu_tensor xs = GPU_RANDOM(g, SL_F32, 0.02, 2, sl_ceil_div(S, SL_INT8_TILE), I / SL_INT8_TILE);
    gpu_tensor ws = GPU_RANDOM(g, SL_F32, 0.1 / sqrt((double)(I + 1)), 2,
                               sl_ceil_div(O, SL_INT8_TILE), I / SL_INT8_TILE);
    gpu_tensor b = GPU_RANDOM(g, c->b == NO_BIAS ? SL_F32 : (sl_dtype)c->b, 0.5, 1, O);
    gpu_tensor y = GPU_OUTPUT(g, c->y, 2, S, O);

    if (mma)
        run_mma(g, c, false, &y, &x, &xs, &w, &ws, &b);
    else
        GPU_ONE(g, GPU_CUDA, linear_int8, &y.on[GPU_CUDA], &x.on[GPU_CUDA], &xs.on[GPU_CUDA],
                &w.on[GPU_CUDA], &ws.on[GPU_CUDA], c->b == NO_BIAS ? NULL : &b.on[GPU_CUDA],
                c->act);
    expect_numbers(g, &y);
    if (!mma) {
        gpu_tensor again = GPU_OUTPUT(g, c->y, 2, S, O);

        GPU_ONE(g, GPU_CUDA, linear_int8, &again.on[GPU_CUDA], &x.on[GPU_CUDA], &xs.on[GPU_CUDA],
                &w.on[GPU_CUDA], &ws.on[GPU_CUDA], c->b == NO_BIAS ? NULL : &b.on[GPU_CUDA],
                c->act);
        expect_same(g, &y, &again);
    }
    compare_int8(g, c, &y, &x, &xs, &w, &ws, &b);
    gpu_end(g);
}

static const int8_case int8_small[] = {
    { { 1, 128, 1 }, SL_F32, NO_BIAS, SL_ACT_NONE },
    { { 0, 128, 8 }, SL_F32, SL_F32, SL_ACT_NONE },
    { { 5, 0, 7 }, SL_F32, SL_F32, SL_ACT_NONE },
    { { 7, 256, 130 }, SL_F32, SL_BF16, SL_ACT_SILU },
    { { 130, 384, 65 }, SL_F32, SL_F32, SL_ACT_GELU_TANH },
    { { 130, 384, 65 }, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 515, 256, 194 }, SL_BF16, SL_BF16, SL_ACT_GELU_TANH },
    { { 257, 640, 128 }, SL_F32, SL_F32, SL_ACT_NONE },
    { { 256, 128, 128 }, SL_BF16, NO_BIAS, SL_ACT_NONE },
    { { 140, 13824, 33 }, SL_F32, NO_BIAS, SL_ACT_NONE },
    { { 1300, 1536, 1536 }, SL_BF16, SL_F32, SL_ACT_NONE },
};

/* More tiles than a card has multiprocessors, so that blocks make several. */
static const int8_case int8_large[] = {
    { { 16376, 1536, 1536 }, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 16384, 1536, 8960 }, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    { { 12000, 8960, 1536 }, SL_F32, SL_F32, SL_ACT_NONE },
    { { 8192, 5120, 5120 }, SL_BF16, SL_F32, SL_ACT_NONE },
    { { 5000, 5120, 13824 }, SL_BF16, SL_F32, SL_ACT_GELU_TANH },
    { { 8192, 13824, 5120 }, SL_F32, SL_F32, SL_ACT_NONE },
    { { 512, 5120, 5120 }, SL_BF16, SL_F32, SL_ACT_NONE },
};

static void check_int8(gpu *g)
{
    static const struct {
        int64_t R, C;
        double scale;
    } sizes[] = { { 128, 128, 1.0 },  { 1, 1, 3.0 },     { 300, 200, 100.0 },
                  { 129, 257, 1e-3 }, { 5, 144, 1e-10 }, { 1300, 1536, 10.0 } };

    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        check_quantize_int8(g, SL_F32, sizes[i].R, sizes[i].C, sizes[i].scale);
        check_quantize_int8(g, SL_BF16, sizes[i].R, sizes[i].C, sizes[i].scale);
    }
    for (size_t i = 0; i < SL_COUNT(int8_small); i++) {
        check_linear_int8(g, &int8_small[i], true);
        check_linear_int8(g, &int8_small[i], false);
    }
    if (g->small)
        return;
    check_quantize_int8(g, SL_BF16, 16376, 5120, 1.0);
    check_linear_int8(g, &int8_large[0], true);
    for (size_t i = 0; i < SL_COUNT(int8_large); i++)
        check_linear_int8(g, &int8_large[i], false);
}

/* ---- fp8 ---- */

static void check_quantize_fp8(gpu *g, sl_dtype dtype, int64_t S, int64_t I, double scale)
{
    if (!gpu_begin(g, "quantize_fp8 %s [%lld,%lld] of %g", gpu_dtype(dtype), (long long)S,
                   (long long)I, scale))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, scale, 2, S, I);
    gpu_tensor q = GPU_OUTPUT(g, SL_F8_E4M3, 2, S, I);
    gpu_tensor s = GPU_OUTPUT(g, SL_F32, 2, I / SL_FP8_TILE, S);

    GPU_BOTH(g, quantize_fp8, GPU_ON(q), GPU_ON(s), GPU_ON(x));
    gpu_compare(g, "codes", &q, GPU_EXACT);
    gpu_compare(g, "scales", &s, GPU_EXACT);
    gpu_end(g);
}

/* The matrix units of sm_90 drop what lies 2^-13 below the largest of 32 products. */
static const gpu_limits fp8_f32 = { 1e-3, -1, 0.0 };

/* Codes of weights as a loader makes them, from what bf16 x the cpu side holds. */
static void make_fp8_weights(gpu *g, gpu_tensor *q, gpu_tensor *scale, const gpu_tensor *w)
{
    const int64_t O = q->on[GPU_CPU].dim[0], I = q->on[GPU_CPU].dim[1];
    const float *from = w->on[GPU_CPU].data;
    uint16_t *rows = malloc((size_t)(SL_FP8_TILE * I + 1) * sizeof *rows);

    if (!rows) {
        gpu_fail(g, "no memory");
        return;
    }
    for (int64_t o = 0; o < O && !g->broken; o += SL_FP8_TILE) {
        const int64_t count = O - o < SL_FP8_TILE ? O - o : SL_FP8_TILE;

        for (int64_t i = 0; i < count * I; i++)
            rows[i] = sl_bf16_from_f32(from[o * I + i]);
        sl_quantize_fp8_rows((uint8_t *)q->on[GPU_CPU].data + o * I,
                             (float *)scale->on[GPU_CPU].data + o / SL_FP8_TILE * (I / SL_FP8_TILE),
                             rows, count, I);
    }
    free(rows);
    gpu_push(g, q);
    gpu_push(g, scale);
}

/* The cpu twin makes `rows` rows at each end; a row's result is its own. */
static void compare_fp8(gpu *g, const int8_case *c, int64_t rows, const gpu_tensor *y,
                        const gpu_tensor *x, const gpu_tensor *w, const gpu_tensor *ws,
                        const gpu_tensor *b)
{
    const int64_t S = c->size.S, I = c->size.I;
    const gpu_limits limits = c->y == SL_BF16 ? GPU_BF16 : fp8_f32;

    if (2 * rows >= S)
        rows = S;
    for (int64_t first = 0; first < S; first += rows < S ? S - rows : S) {
        gpu_tensor some_y = gpu_rows(y, first, rows), some_x = gpu_rows(x, first, rows);
        gpu_tensor q = GPU_OUTPUT(g, SL_F8_E4M3, 2, rows, I);
        gpu_tensor s = GPU_OUTPUT(g, SL_F32, 2, I / SL_FP8_TILE, rows);

        GPU_ONE(g, GPU_CPU, quantize_fp8, &q.on[GPU_CPU], &s.on[GPU_CPU], &some_x.on[GPU_CPU]);
        GPU_ONE(g, GPU_CPU, linear_fp8, &some_y.on[GPU_CPU], &q.on[GPU_CPU], &s.on[GPU_CPU],
                &w->on[GPU_CPU], &ws->on[GPU_CPU], c->b == NO_BIAS ? NULL : &b->on[GPU_CPU],
                c->act);
        gpu_compare(g, first ? "last" : "y", &some_y, limits);
    }
}

static void check_linear_fp8(gpu *g, const int8_case *c, bool mma)
{
    const int64_t S = c->size.S, I = c->size.I, O = c->size.O;

    if (!gpu_begin(g, "linear_fp8%s %s%s%s%s [%lld,%lld]x[%lld,%lld]", mma ? " mma" : "",
                   gpu_dtype(c->y), c->b == NO_BIAS ? "" : "+",
                   c->b == NO_BIAS ? "" : gpu_dtype((sl_dtype)c->b), act_names[c->act],
                   (long long)S, (long long)I, (long long)O, (long long)I))
        return;
    gpu_tensor x = GPU_RANDOM(g, SL_BF16, 1.0, 2, S, I);
    gpu_tensor xq = GPU_OUTPUT(g, SL_F8_E4M3, 2, S, I);
    gpu_tensor xs = GPU_OUTPUT(g, SL_F32, 2, I / SL_FP8_TILE, S);
    gpu_tensor w = GPU_RANDOM(g, SL_BF16, 1.0 / sqrt((double)(I + 1)), 2, O, I);
    gpu_tensor wq = GPU_OUTPUT(g, SL_F8_E4M3, 2, O, I);
    gpu_tensor ws = GPU_OUTPUT(g, SL_F32, 2, sl_ceil_div(O, SL_FP8_TILE), I / SL_FP8_TILE);
    gpu_tensor b = GPU_RANDOM(g, c->b == NO_BIAS ? SL_F32 : (sl_dtype)c->b, 0.5, 1, O);
    gpu_tensor y = GPU_OUTPUT(g, c->y, 2, S, O);

    make_fp8_weights(g, &wq, &ws, &w);
    GPU_ONE(g, GPU_CUDA, quantize_fp8, &xq.on[GPU_CUDA], &xs.on[GPU_CUDA], &x.on[GPU_CUDA]);
    if (mma)
        run_mma(g, c, true, &y, &xq, &xs, &wq, &ws, &b);
    else
        GPU_ONE(g, GPU_CUDA, linear_fp8, &y.on[GPU_CUDA], &xq.on[GPU_CUDA], &xs.on[GPU_CUDA],
                &wq.on[GPU_CUDA], &ws.on[GPU_CUDA], c->b == NO_BIAS ? NULL : &b.on[GPU_CUDA],
                c->act);
    expect_numbers(g, &y);
    compare_fp8(g, c, 24, &y, &x, &wq, &ws, &b);
    gpu_end(g);
}

static void check_fp8(gpu *g)
{
    check_quantize_fp8(g, SL_F32, 1, 128, 1.0);
    check_quantize_fp8(g, SL_BF16, 300, 384, 100.0);
    check_quantize_fp8(g, SL_F32, 77, 1536, 1e-10);
    for (size_t i = 0; i < SL_COUNT(int8_small); i++) {
        check_linear_fp8(g, &int8_small[i], true);
        check_linear_fp8(g, &int8_small[i], false);
    }
    if (g->small)
        return;
    check_quantize_fp8(g, SL_BF16, 16376, 5120, 1.0);
    check_linear_fp8(g, &int8_large[0], true);
    for (size_t i = 0; i < SL_COUNT(int8_large); i += 2)
        check_linear_fp8(g, &int8_large[i], false);
}

void gpu_test_linear(gpu *g)
{
    check_ragged(g);
    for (size_t i = 0; i < SL_COUNT(model_linears) && !g->small; i++)
        check_linear(g, &model_linears[i], 24);
    check_int8(g);
    check_fp8(g);
}
