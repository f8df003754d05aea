/* gpu_conv - the video VAE's ops: convolutions in every form that its layers have,
 * channel_norm, pair_frames.  Pictures are small where the cpu twin makes them
 * whole; at full size it makes some lines at the top and the bottom. */
#include "kernels/cuda.h"
#include "kernels/dnn.h"
#include "tests/gpu/gpu_test.h"

#include <math.h>
#include <string.h>

typedef struct {
    const char *name;
    int64_t T, H, W, I, O;
    int cached, zeros;
    int kt, k; /* of time; of height and width */
    int stride_t, stride_hw, up;
    bool residual; /* in place */
    bool behind;   /* x comes right behind the cache in memory */
} conv_case;

enum { SMALL_H = 12, SMALL_W = 20, ODD_H = 13, ODD_W = 17, EDGE_LINES = 6 };

static sl_conv_params params_of(const conv_case *c)
{
    const int pad = c->k == 3 && c->stride_hw == 1;

    return (sl_conv_params){ .zero_frames = c->zeros,
                             .stride_t = c->stride_t,
                             .stride_hw = c->stride_hw,
                             .pad_top = pad,
                             .pad_bottom = c->k == 3,
                             .pad_left = pad,
                             .pad_right = c->k == 3,
                             .upsample = c->up };
}

static int64_t side_of(const conv_case *c, int64_t in)
{
    const sl_conv_params p = params_of(c);

    return (c->up * in + p.pad_top + p.pad_bottom - c->k) / c->stride_hw + 1;
}

/* ---- one convolution ---- */

typedef struct {
    gpu_tensor x, cache, w, b, y, residual;
    bool has_cache, has_bias;
} operands;

static operands make_operands(gpu *g, const conv_case *c, sl_dtype act, sl_dtype weights,
                              bool has_bias)
{
    const int64_t To = (c->zeros + c->cached + c->T - c->kt) / c->stride_t + 1;
    const int64_t Ho = side_of(c, c->H), Wo = side_of(c, c->W);
    const double spread = 1.0 / sqrt((double)(c->kt * c->k * c->k * c->I));
    operands o = { .has_cache = c->cached > 0, .has_bias = has_bias };

    if (c->behind) {
        const gpu_tensor both = GPU_RANDOM(g, act, 1.0, 4, c->cached + c->T, c->H, c->W, c->I);
        o.cache = gpu_rows(&both, 0, c->cached);
        o.x = gpu_rows(&both, c->cached, c->T);
    } else {
        o.x = GPU_RANDOM(g, act, 1.0, 4, c->T, c->H, c->W, c->I);
        o.cache = GPU_RANDOM(g, act, 1.0, 4, c->cached, c->H, c->W, c->I);
    }
    o.w = GPU_RANDOM(g, weights, spread, 5, c->O, c->kt, c->k, c->k, c->I);
    o.b = GPU_RANDOM(g, weights, 0.5, 1, c->O);
    if (c->residual) /* in place */
        o.y = GPU_RANDOM(g, act, 1.0, 4, To, Ho, Wo, c->O);
    else
        o.y = GPU_OUTPUT(g, act, 4, To, Ho, Wo, c->O);
    return o;
}

static void run_side(gpu *g, int side, const conv_case *c, const operands *o)
{
    const sl_conv_params p = params_of(c);

    GPU_ONE(g, side, conv, &o->y.on[side], &o->x.on[side], o->has_cache ? &o->cache.on[side] : NULL,
            &o->w.on[side], o->has_bias ? &o->b.on[side] : NULL,
            c->residual ? &o->y.on[side] : NULL, &p);
}

static uint64_t library_runs(gpu *g)
{
    const sl_dnn *dnn = sl_cuda_cache_of(g->on[GPU_CUDA].exec, SL_CUDA_SLOT_CONV)->value;

    return dnn ? sl_dnn_run_count(dnn) : 0;
}

/* The way that was taken is part of the check: the direct kernel is right, but
 * far too slow for the VAE. */
static void expect_way(gpu *g, uint64_t runs_before, bool library)
{
    const sl_dnn *dnn = sl_cuda_cache_of(g->on[GPU_CUDA].exec, SL_CUDA_SLOT_CONV)->value;
    const sl_dnn_plan *plan = dnn ? sl_dnn_latest(dnn) : NULL;
    const bool was = library_runs(g) > runs_before;

    if (was)
        gpu_say(g, "  %s", plan ? sl_dnn_plan_text(plan) : "");
    if (was != library)
        gpu_fail(g, "went through %s: %s", was ? "cuDNN" : "the direct kernel",
                 plan ? sl_dnn_plan_text(plan) : "");
}

static gpu_limits limits_of(sl_dtype act)
{
    return act == SL_BF16 ? GPU_BF16 : GPU_F32;
}

static void check_conv(gpu *g, const conv_case *c, sl_dtype act, sl_dtype weights, bool library)
{
    if (!gpu_begin(g, "conv %s*%s %s: [%d|%d|%lld,%lld,%lld,%lld] * [%lld,%d,%d,%d]",
                   gpu_dtype(act), gpu_dtype(weights), c->name, c->zeros, c->cached,
                   (long long)c->T, (long long)c->H, (long long)c->W, (long long)c->I,
                   (long long)c->O, c->kt, c->k, c->k))
        return;
    const operands o = make_operands(g, c, act, weights, true);
    const uint64_t before = library_runs(g);

    run_side(g, GPU_CUDA, c, &o);
    expect_way(g, before, library);
    run_side(g, GPU_CPU, c, &o);
    gpu_compare(g, "y", &o.y, limits_of(act));
    gpu_end(g);
}

/* Every layer of both directions, with the frames that it gets in the first, the
 * second and later chunks. */
static const conv_case layers[] = {
    { "dec conv1, first", 1, SMALL_H, SMALL_W, 16, 384, 0, 2, 3, 3, 1, 1, 1, false, false },
    { "dec conv1, second", 1, SMALL_H, SMALL_W, 16, 384, 1, 1, 3, 3, 1, 1, 1, false, false },
    { "dec conv1, later", 1, SMALL_H, SMALL_W, 16, 384, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "res 384, first", 1, SMALL_H, SMALL_W, 384, 384, 0, 2, 3, 3, 1, 1, 1, true, false },
    { "res 384, second", 1, SMALL_H, SMALL_W, 384, 384, 1, 1, 3, 3, 1, 1, 1, true, false },
    { "res 384, later", 1, SMALL_H, SMALL_W, 384, 384, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 384, two", 2, ODD_H, ODD_W, 384, 384, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 384, two, second", 2, ODD_H, ODD_W, 384, 384, 1, 1, 3, 3, 1, 1, 1, false, false },
    { "res 384, behind", 2, ODD_H, ODD_W, 384, 384, 2, 0, 3, 3, 1, 1, 1, true, true },
    { "res 192-384", 2, SMALL_H, SMALL_W, 192, 384, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "res 192", 1, ODD_H, ODD_W, 192, 192, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 96", 1, ODD_H, ODD_W, 96, 96, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 96, first", 1, ODD_H, ODD_W, 96, 96, 0, 2, 3, 3, 1, 1, 1, true, false },
    { "res 96, four", 4, SMALL_H, SMALL_W, 96, 96, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 96, nine at once", 9, SMALL_H, SMALL_W, 96, 96, 0, 2, 3, 3, 1, 1, 1, true, false },
    { "res 96-192", 4, ODD_H, ODD_W, 96, 192, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "up time, second", 1, SMALL_H, SMALL_W, 384, 768, 0, 2, 3, 1, 1, 1, 1, false, false },
    { "up time, third", 1, SMALL_H, SMALL_W, 384, 768, 1, 1, 3, 1, 1, 1, 1, false, false },
    { "up time, later", 2, ODD_H, ODD_W, 384, 768, 2, 0, 3, 1, 1, 1, 1, false, false },
    { "up 384-192", 2, SMALL_H, SMALL_W, 384, 192, 0, 0, 1, 3, 1, 1, 2, false, false },
    { "up 192-96", 1, ODD_H, ODD_W, 192, 96, 0, 0, 1, 3, 1, 1, 2, false, false },
    { "head 3, first", 1, SMALL_H, SMALL_W, 96, 3, 0, 2, 3, 3, 1, 1, 1, false, false },
    { "head 3", 1, ODD_H, ODD_W, 96, 3, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "head 32", 1, ODD_H, ODD_W, 384, 32, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "enc conv1, first", 1, SMALL_H, SMALL_W, 3, 96, 0, 2, 3, 3, 1, 1, 1, false, false },
    { "enc conv1, second", 1, SMALL_H, SMALL_W, 3, 96, 1, 1, 3, 3, 1, 1, 1, false, false },
    { "enc conv1, later", 1, ODD_H, ODD_W, 3, 96, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "down 96", 1, SMALL_H, SMALL_W, 96, 96, 0, 0, 1, 3, 1, 2, 1, false, false },
    { "down 192", 1, SMALL_H, SMALL_W, 192, 192, 0, 0, 1, 3, 1, 2, 1, false, false },
    { "down 384", 4, SMALL_H, SMALL_W, 384, 384, 0, 0, 1, 3, 1, 2, 1, false, false },
    { "down time 192", 4, SMALL_H, SMALL_W, 192, 192, 1, 0, 3, 1, 2, 1, 1, false, false },
    { "down time 384", 2, ODD_H, ODD_W, 384, 384, 1, 0, 3, 1, 2, 1, 1, false, false },
    { "one pixel", 3, ODD_H, ODD_W, 192, 384, 0, 0, 1, 1, 1, 1, 1, true, false },
    { "odd frames in one piece", 3, 5, 7, 8, 3, 0, 2, 3, 3, 1, 1, 1, true, false },
    { "filled up channels", 3, 6, 10, 20, 24, 2, 0, 3, 3, 1, 1, 1, true, false },
};

/* What the library does not take: frames that do not start at 16 bytes, windows of
 * zeros alone. */
static const conv_case odd[] = {
    { "odd frames", 4, 5, 7, 8, 3, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "tiny", 1, 1, 1, 1, 1, 0, 4, 3, 1, 1, 1, 1, false, false },
    { "zeros alone", 2, 4, 5, 24, 40, 2, 5, 3, 3, 2, 1, 1, true, false },
};

/* ---- full size ---- */

static const conv_case full[] = {
    { "res 96, 480p", 1, 480, 832, 96, 96, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 192, half 480p", 1, 240, 416, 192, 192, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "res 384, quarter 480p", 2, 120, 208, 384, 384, 2, 0, 3, 3, 1, 1, 1, true, false },
    { "up 192-96, 480p", 1, 240, 416, 192, 96, 0, 0, 1, 3, 1, 1, 2, false, false },
    { "head 3, 480p", 1, 480, 832, 96, 3, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "enc conv1, 480p", 1, 480, 832, 3, 96, 2, 0, 3, 3, 1, 1, 1, false, false },
    { "res 96, 720p", 1, 720, 1280, 96, 96, 2, 0, 3, 3, 1, 1, 1, true, false },
};

/* Lines [from, from + count) of every frame, as a tensor of their own. */
static gpu_tensor lines_of(gpu *g, const gpu_tensor *t, int64_t from, int64_t count)
{
    const sl_tensor *all = &t->on[GPU_CPU];
    gpu_tensor part = GPU_OUTPUT(g, SL_F32, 4, all->dim[0], count, all->dim[2], all->dim[3]);
    const int64_t line = all->dim[2] * all->dim[3];

    for (int64_t f = 0; !g->broken && f < all->dim[0]; f++)
        memcpy((float *)part.on[GPU_CPU].data + f * count * line,
               (const float *)all->data + (f * all->dim[1] + from) * line,
               (size_t)(count * line) * sizeof(float));
    return part;
}

/* `count` lines of frame f, in place. */
static sl_tensor lines_at(const sl_tensor *t, int64_t f, int64_t from, int64_t count)
{
    const size_t line_bytes = (size_t)(t->dim[2] * t->dim[3]) * sl_dtype_bytes(t->dtype);
    unsigned char *at = (unsigned char *)t->data + (size_t)(f * t->dim[1] + from) * line_bytes;

    return sl_tensor_of(at, t->dtype, 4, 1, count, t->dim[2], t->dim[3]);
}

/* The cpu side works on some input lines at the border alone: all that comes out
 * is right but for the line next to the cut. */
static void compare_edge(gpu *g, const conv_case *c, const operands *o, bool bottom)
{
    const int64_t out_lines = c->up * EDGE_LINES, valid = out_lines - 1;
    const int64_t in_from = bottom ? c->H - EDGE_LINES : 0, out_from = bottom ? c->up * in_from : 0;
    const int64_t skip = bottom ? 1 : 0;
    operands part = *o;

    part.x = lines_of(g, &o->x, in_from, EDGE_LINES);
    if (o->has_cache)
        part.cache = lines_of(g, &o->cache, in_from, EDGE_LINES);
    part.y = lines_of(g, &o->y, out_from, out_lines); /* the residual, or poison */
    run_side(g, GPU_CPU, c, &part);
    for (int64_t f = 0; f < o->y.on[GPU_CPU].dim[0]; f++) {
        const gpu_tensor lines = { { lines_at(&part.y.on[GPU_CPU], f, skip, valid),
                                     lines_at(&o->y.on[GPU_CUDA], f, out_from + skip, valid) } };
        gpu_compare(g, bottom ? "bottom" : "top", &lines, GPU_BF16);
    }
}

static void expect_numbers(gpu *g, const gpu_tensor *t)
{
    const int64_t count = sl_tensor_count(&t->on[GPU_CUDA]);
    const uint16_t *got = gpu_pull(g, t);

    for (int64_t i = 0; got && i < count; i++)
        if (!isfinite(sl_bf16_to_f32(got[i]))) {
            gpu_fail(g, "element %lld of %lld is %g", (long long)i, (long long)count,
                     (double)sl_bf16_to_f32(got[i]));
            return;
        }
}

static void check_full(gpu *g, const conv_case *c)
{
    if (!gpu_begin(g, "conv %s: [%d|%lld,%lld,%lld,%lld] to %lld", c->name, c->cached,
                   (long long)c->T, (long long)c->H, (long long)c->W, (long long)c->I,
                   (long long)c->O))
        return;
    const operands o = make_operands(g, c, SL_BF16, SL_BF16, true);
    const uint64_t before = library_runs(g);

    run_side(g, GPU_CUDA, c, &o);
    expect_way(g, before, true);
    expect_numbers(g, &o.y);
    compare_edge(g, c, &o, false);
    compare_edge(g, c, &o, true);
    gpu_end(g);
}

/* ---- two runs ---- */

static void check_twice(gpu *g, const conv_case *c)
{
    if (!gpu_begin(g, "conv %s twice", c->name))
        return;
    operands o = make_operands(g, c, SL_BF16, SL_BF16, true);
    const gpu_tensor again = GPU_OUTPUT(g, SL_BF16, 4, o.y.on[0].dim[0], o.y.on[0].dim[1],
                                        o.y.on[0].dim[2], o.y.on[0].dim[3]);
    conv_case plain = *c;
    plain.residual = false;

    run_side(g, GPU_CUDA, &plain, &o);
    const void *first = gpu_pull(g, &o.y);
    o.y = again;
    run_side(g, GPU_CUDA, &plain, &o);
    const void *second = gpu_pull(g, &again);
    if (first && second && memcmp(first, second, sl_tensor_bytes(&again.on[GPU_CUDA])) != 0)
        gpu_fail(g, "two runs differ");
    gpu_end(g);
}

/* In place and apart must give the same bits. */
static void check_in_place(gpu *g, const conv_case *c)
{
    if (!gpu_begin(g, "conv %s in place and apart", c->name))
        return;
    const operands o = make_operands(g, c, SL_BF16, SL_BF16, true);
    const gpu_tensor apart = GPU_OUTPUT(g, SL_BF16, 4, o.y.on[0].dim[0], o.y.on[0].dim[1],
                                        o.y.on[0].dim[2], o.y.on[0].dim[3]);
    const sl_conv_params p = params_of(c);

    GPU_ONE(g, GPU_CUDA, conv, &apart.on[GPU_CUDA], &o.x.on[GPU_CUDA], &o.cache.on[GPU_CUDA],
            &o.w.on[GPU_CUDA], &o.b.on[GPU_CUDA], &o.y.on[GPU_CUDA], &p);
    run_side(g, GPU_CUDA, c, &o);
    const void *first = gpu_pull(g, &apart), *second = gpu_pull(g, &o.y);
    if (first && second && memcmp(first, second, sl_tensor_bytes(&apart.on[GPU_CUDA])) != 0)
        gpu_fail(g, "they differ");
    gpu_end(g);
}

static void check_no_bias(gpu *g, const conv_case *c)
{
    if (!gpu_begin(g, "conv %s without bias", c->name))
        return;
    const operands o = make_operands(g, c, SL_BF16, SL_BF16, false);

    run_side(g, GPU_CUDA, c, &o);
    run_side(g, GPU_CPU, c, &o);
    gpu_compare(g, "y", &o.y, GPU_BF16);
    gpu_end(g);
}

/* ---- channel_norm, pair_frames ---- */

static void check_channel_norm(gpu *g, sl_dtype dtype, int64_t rows, int64_t C, bool silu,
                               bool in_place)
{
    if (!gpu_begin(g, "channel_norm %s [%lld,%lld]%s%s", gpu_dtype(dtype), (long long)rows,
                   (long long)C, silu ? " silu" : "", in_place ? " in place" : ""))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 2.0, 2, rows, C);
    gpu_tensor gamma = GPU_RANDOM(g, C % 2 ? SL_F32 : SL_BF16, 1.0, 1, C);
    gpu_tensor y = in_place ? x : GPU_OUTPUT(g, dtype, 2, rows, C);

    GPU_BOTH(g, channel_norm, GPU_ON(y), GPU_ON(x), GPU_ON(gamma), silu);
    gpu_compare(g, "y", &y, limits_of(dtype));
    gpu_end(g);
}

static void check_pair_frames(gpu *g, sl_dtype dtype, int64_t n, int64_t H, int64_t W, int64_t C)
{
    if (!gpu_begin(g, "pair_frames %s [%lld,%lld,%lld,2*%lld]", gpu_dtype(dtype), (long long)n,
                   (long long)H, (long long)W, (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 1.0, 4, n, H, W, 2 * C);
    gpu_tensor y = GPU_OUTPUT(g, dtype, 4, 2 * n, H, W, C);

    GPU_BOTH(g, pair_frames, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

static void test_norms(gpu *g)
{
    static const int64_t channels[] = { 96, 192, 384, 16, 8, 48, 640, 1024, 3, 21, 1032 };
    static const sl_dtype dtypes[] = { SL_BF16, SL_F32 };

    for (size_t d = 0; d < SL_COUNT(dtypes); d++) {
        for (size_t i = 0; i < SL_COUNT(channels); i++)
            check_channel_norm(g, dtypes[d], 1025, channels[i], i % 2 == 0, i % 3 == 0);
        check_channel_norm(g, dtypes[d], g->small ? 3000 : 480 * 832, 96, true, false);
        check_channel_norm(g, dtypes[d], 1, 96, false, true);
        check_channel_norm(g, dtypes[d], 0, 96, false, true);
        check_pair_frames(g, dtypes[d], 2, 13, 17, 384);
        check_pair_frames(g, dtypes[d], 3, 5, 7, 5);
        check_pair_frames(g, dtypes[d], 0, 5, 7, 5);
    }
}

void gpu_test_conv(gpu *g)
{
    test_norms(g);
    for (size_t i = 0; i < SL_COUNT(layers); i++)
        if (!g->small || layers[i].I * layers[i].O <= 96 * 96)
            check_conv(g, &layers[i], SL_BF16, SL_BF16, true);
    check_conv(g, &layers[11], SL_BF16, SL_F32, true); /* weights rounded on the way */
    for (size_t i = 0; i < SL_COUNT(odd); i++) {
        check_conv(g, &odd[i], SL_BF16, SL_BF16, false);
        check_conv(g, &odd[i], SL_F32, SL_F32, false);
    }
    for (size_t i = 0; i < SL_COUNT(layers); i += 3)
        if (!g->small || layers[i].I * layers[i].O <= 96 * 96)
            check_conv(g, &layers[i], SL_F32, i % 2 ? SL_BF16 : SL_F32, false);
    check_no_bias(g, &layers[11]);
    check_twice(g, &layers[5]);
    check_in_place(g, &layers[11]);
    check_in_place(g, &layers[5]);
    for (size_t i = 0; !g->small && i < SL_COUNT(full); i++)
        check_full(g, &full[i]);
    if (!g->small) {
        check_twice(g, &full[0]);
        check_in_place(g, &full[0]);
        check_in_place(g, &full[1]);
    }
}
