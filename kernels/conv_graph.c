#include "kernels/conv_graph.h"

#include <string.h>

_Static_assert(sizeof(sl_conv_graph) <= sizeof(sl_dnn_key), "the shape is the key");

/* [n, c] pictures of h x w, or one volume of d frames, with channels last. */
static sl_dnn_shape images(int64_t id, bool volume, int64_t n, int64_t c, int64_t d, int64_t h,
                           int64_t w)
{
    if (volume)
        return (sl_dnn_shape){ .id = id,
                               .type = CUDNN_DATA_BFLOAT16,
                               .rank = 5,
                               .dim = { n, c, d, h, w },
                               .stride = { d * h * w * c, 1, h * w * c, w * c, c } };
    return (sl_dnn_shape){ .id = id,
                           .type = CUDNN_DATA_BFLOAT16,
                           .rank = 4,
                           .dim = { n * d, c, h, w },
                           .stride = { h * w * c, 1, w * c, c } };
}

/* Windows of one frame need no third dimension: frames are pictures then. */
static bool is_volume(const sl_conv_graph *s)
{
    return s->kt > 1 || s->stride_t > 1 || s->zeros > 0;
}

static sl_dnn_window window_of(const sl_conv_graph *s)
{
    if (is_volume(s))
        return (sl_dnn_window){ .dims = 3,
                                .pad_before = { s->zeros, s->pad_top, s->pad_left },
                                .pad_after = { 0, s->pad_bottom, s->pad_right },
                                .stride = { s->stride_t, s->stride_hw, s->stride_hw } };
    return (sl_dnn_window){ .dims = 2,
                            .pad_before = { s->pad_top, s->pad_left },
                            .pad_after = { s->pad_bottom, s->pad_right },
                            .stride = { s->stride_hw, s->stride_hw } };
}

/* Where the library's first guess is far from its best, as measured on an H200
 * (gpu_conv_bench): 687 against 370 us for 96 channels at 480p, 656 against 518 us
 * for 384 channels at a quarter of that.  Elsewhere they are not on offer, or no
 * worse than its guess. */
static void prefer(sl_dnn_graph *g, const sl_conv_graph *s)
{
    static const sl_dnn_choice narrow[] = { { 41, 0, 0, 8, 1 } }, wide[] = { { 41, 0, 1, 1, 1 } };
    const int64_t rows = s->To * s->Ho * s->Wo;

    if (s->kt != 3 || s->kh != 3 || s->I < 64 || rows < 20000)
        return;
    if (s->O > 64 && s->O <= 128) {
        g->preferred = narrow;
        g->preferred_count = SL_COUNT(narrow);
    } else if (s->O > 256) {
        g->preferred = wide;
        g->preferred_count = SL_COUNT(wide);
    }
}

/* The residual before the bias: the library's ready-made engines have them in
 * this order alone. */
static void describe(sl_dnn_graph *g, const sl_conv_graph *s)
{
    const bool volume = is_volume(s);
    const sl_dnn_window window = window_of(s);
    const sl_dnn_shape x_shape = images(SL_CONV_X, volume, 1, s->I, s->frames, s->H, s->W),
                       w_shape = images(SL_CONV_W, volume, s->O, s->I, s->kt, s->kh, s->kw),
                       y_shape = images(SL_CONV_Y, volume, 1, s->O, s->To, s->Ho, s->Wo),
                       bias_shape = images(SL_CONV_BIAS, volume, 1, s->O, 1, 1, 1);
    sl_dnn_shape residual_shape = y_shape, sum_shape = y_shape;

    residual_shape.id = SL_CONV_RESIDUAL;
    sum_shape.id = SL_DNN_VIRTUAL;
    sum_shape.type = CUDNN_DATA_FLOAT;
    const sl_dnn_part x = sl_dnn_tensor(g, &x_shape), w = sl_dnn_tensor(g, &w_shape),
                      y = sl_dnn_tensor(g, &y_shape), bias = sl_dnn_tensor(g, &bias_shape);
    sl_dnn_part sum = sl_dnn_tensor(g, &sum_shape);
    sl_dnn_conv(g, x, w, sum, &window);
    if (s->residual) {
        const sl_dnn_part residual = sl_dnn_tensor(g, &residual_shape),
                          both = sl_dnn_tensor(g, &sum_shape);
        sl_dnn_pointwise(g, CUDNN_POINTWISE_ADD, sum, residual, both);
        sum = both;
    }
    sl_dnn_pointwise(g, CUDNN_POINTWISE_ADD, sum, bias, y);
}

sl_status sl_conv_graph_plan(sl_dnn *dnn, const sl_conv_graph *shape, const sl_dnn_plan **out,
                             bool *made, sl_error *err)
{
    sl_dnn_key key = { 0 };
    sl_dnn_graph g;

    memcpy(&key, shape, sizeof *shape);
    *out = sl_dnn_find(dnn, &key);
    *made = !*out;
    if (*out)
        return SL_OK;
    sl_dnn_begin(&g, "convolution", err);
    prefer(&g, shape);
    describe(&g, shape);
    return sl_dnn_finish(&g, dnn, &key, out);
}
