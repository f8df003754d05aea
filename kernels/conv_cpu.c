/* A tile is a range of output positions of one frame.  Its inputs are copied
 * into a panel [rows, K] (K runs over kt, kh, kw, I as in w), a step of K at a
 * time, and multiplied with the same columns of w:
 *
 *   - channels are last, so the kw taps of one (frame, row) are one run of
 *     kw*I floats away from the borders and are copied at once;
 *   - kernels of one pixel need no panel: rows of x are rows of the product;
 *   - frames of zeros lie in front of all others and are left out of K.
 *
 * y starts as bias + residual and the steps add to it.  Tiles and steps follow
 * from the shape of one frame, so a sequence gives the same bits in chunks as
 * in one piece.
 *
 * With bf16 activations every product has a panel, which the inputs are upcast
 * into, and a tile's sums stay in the workspace until they are rounded into y.
 */
#include "kernels/conv.h"

#include "base/size.h"
#include "kernels/gemm.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

enum {
    PANEL_FLOATS = 1 << 18,  /* small enough to stay in the second level of cache */
    UPCAST_FLOATS = 1 << 20, /* bf16 weights as f32 */
    SUM_FLOATS = 1 << 19,    /* a tile's sums, with bf16 activations */
    TILE_ROWS_LEAST = 64,
    TILE_ROWS_MOST = 1024,
    MAX_CACHED = 2,
    MAX_PAD = 1 << 20,
    F32 = SL_BIT(SL_F32),
    F32_BF16 = SL_BIT(SL_F32) | SL_BIT(SL_BF16),
};

static const int64_t tile_flop = (int64_t)2 << 30; /* some tens of ms */
static const int64_t max_side = (int64_t)1 << 24;  /* pixels; keeps sums far from overflow */
static const int64_t max_frames = (int64_t)1 << 40;

_Static_assert((PANEL_FLOATS + UPCAST_FLOATS + SUM_FLOATS) * sizeof(float) <=
                   SL_CPU_WORKSPACE_PER_THREAD,
               "all fit the workspace");

typedef struct {
    const sl_tensor *y, *residual;  /* residual: may be NULL */
    const unsigned char *x, *cache; /* cache: may be NULL */
    const sl_tensor *w, *b;         /* b: may be NULL */
    bool bf16;                      /* activations */
    size_t bytes;                   /* of one of them */
    sl_conv_params p;
    int64_t cached; /* frames */
    int64_t H, W, I, Ho, Wo, O;
    int64_t kt, kh, kw, K;
    int64_t tile_rows, tiles_per_frame; /* rows: output positions */
    int64_t step;                       /* the most columns of a panel */
} conv;

/* --- contract --- */

static int64_t out_size(int64_t in, int64_t kernel, int64_t stride)
{
    return in < kernel ? 0 : (in - kernel) / stride + 1;
}

static sl_status check_params(const sl_conv_params *p, sl_error *err)
{
    const struct {
        const char *name;
        int value, least, most;
    } rules[] = {
        { "zero_frames", p->zero_frames, 0, INT_MAX }, { "stride_t", p->stride_t, 1, 2 },
        { "stride_hw", p->stride_hw, 1, 2 },           { "upsample", p->upsample, 1, 2 },
        { "pad_top", p->pad_top, 0, MAX_PAD },         { "pad_bottom", p->pad_bottom, 0, MAX_PAD },
        { "pad_left", p->pad_left, 0, MAX_PAD },       { "pad_right", p->pad_right, 0, MAX_PAD },
    };

    for (size_t i = 0; i < SL_COUNT(rules); i++)
        if (rules[i].value < rules[i].least || rules[i].value > rules[i].most)
            return sl_fail(err, SL_ERR_INVALID, "conv: %s is %d, expected %d to %d", rules[i].name,
                           rules[i].value, rules[i].least, rules[i].most);
    return SL_OK;
}

static sl_status check_inputs(const sl_tensor *x, const sl_tensor *cache, const sl_tensor *w,
                              const sl_tensor *b, sl_error *err)
{
    sl_status status = SL_OP_EXPECT("conv", "x", x, SL_BITS_ACTIVATION, err, 4, -1, -1, -1, -1);
    int64_t K = 1;

    if (status == SL_OK)
        status = SL_OP_EXPECT("conv", "w", w, F32_BF16, err, 5, -1, -1, -1, -1, x->dim[3]);
    if (status == SL_OK && b)
        status = SL_OP_EXPECT("conv", "b", b, F32_BF16, err, 1, w->dim[0]);
    if (status == SL_OK && cache)
        status = SL_OP_EXPECT("conv", "cache", cache, SL_BIT(x->dtype), err, 4, -1, x->dim[1],
                              x->dim[2], x->dim[3]);
    if (status != SL_OK)
        return status;
    if (cache && cache->dim[0] > MAX_CACHED)
        return sl_fail(err, SL_ERR_INVALID, "conv: %" PRId64 " cached frames, expected 0 to %d",
                       cache->dim[0], MAX_CACHED);
    if (x->dim[0] > max_frames || x->dim[1] > max_side || x->dim[2] > max_side ||
        x->dim[3] > UPCAST_FLOATS)
        return sl_fail(err, SL_ERR_INVALID, "conv: x is too large");
    for (int i = 1; i < 5; i++)
        if (w->dim[i] < 1 || !sl_count_mul(K, w->dim[i], &K) || K > INT_MAX)
            return sl_fail(err, SL_ERR_INVALID,
                           "conv: w has no or too many inputs for each output channel");
    if (w->dim[0] < 1 || w->dim[0] > UPCAST_FLOATS)
        return sl_fail(err, SL_ERR_INVALID,
                       "conv: w has %" PRId64 " output channels, expected 1 to %d", w->dim[0],
                       UPCAST_FLOATS);
    return SL_OK;
}

static sl_status check_apart(const sl_tensor *y, const sl_tensor *x, const sl_tensor *cache,
                             const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                             sl_error *err)
{
    sl_status status = sl_op_expect_apart("conv", "y", y, "x", x, err);

    if (status == SL_OK)
        status = sl_op_expect_apart("conv", "y", y, "w", w, err);
    if (status == SL_OK && cache)
        status = sl_op_expect_apart("conv", "y", y, "cache", cache, err);
    if (status == SL_OK && b)
        status = sl_op_expect_apart("conv", "y", y, "b", b, err);
    if (status == SL_OK && residual)
        status = sl_op_expect_apart_or_same("conv", "y", y, "residual", residual, err);
    return status;
}

sl_status sl_conv_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                        const sl_tensor *cache, const sl_tensor *w, const sl_tensor *b,
                        const sl_tensor *residual, const sl_conv_params *p, sl_error *err)
{
    sl_status status = check_params(p, err);

    (void)exec;
    if (status == SL_OK)
        status = check_inputs(x, cache, w, b, err);
    if (status != SL_OK)
        return status;
    const int64_t frames = p->zero_frames + (cache ? cache->dim[0] : 0) + x->dim[0];
    const int64_t height = p->upsample * x->dim[1] + p->pad_top + p->pad_bottom;
    const int64_t width = p->upsample * x->dim[2] + p->pad_left + p->pad_right;
    status = SL_OP_EXPECT("conv", "y", y, SL_BIT(x->dtype), err, 4,
                          out_size(frames, w->dim[1], p->stride_t),
                          out_size(height, w->dim[2], p->stride_hw),
                          out_size(width, w->dim[3], p->stride_hw), w->dim[0]);
    if (status == SL_OK && residual)
        status = sl_op_expect_like("conv", "residual", residual, SL_BIT(x->dtype), y, err);
    if (status == SL_OK)
        status = check_apart(y, x, cache, w, b, residual, err);
    return status;
}

/* --- a tile --- */

/* Frame t of [zeros | cache | x]; NULL: zeros. */
static const unsigned char *frame_at(const conv *c, int64_t t)
{
    const size_t frame_bytes = (size_t)(c->H * c->W * c->I) * c->bytes;

    t -= c->p.zero_frames;
    if (t < 0)
        return NULL;
    return t < c->cached ? c->cache + (size_t)t * frame_bytes
                         : c->x + (size_t)(t - c->cached) * frame_bytes;
}

/* Inputs [from, from + count) of a line, as f32. */
static inline void take(const conv *c, float *dst, const unsigned char *line, int64_t from,
                        int64_t count)
{
    if (c->bf16)
        sl_upcast_bf16(dst, (const uint16_t *)(const void *)line + from, count);
    else
        memcpy(dst, (const float *)(const void *)line + from, (size_t)count * sizeof *dst);
}

SL_MULTIARCH static void start_rows(float *y, const float *bias, const float *residual,
                                    int64_t rows, int64_t O)
{
    for (int64_t m = 0; m < rows; m++, y += O) {
        const float *r = residual ? residual + m * O : NULL;
        if (r && bias) {
            SL_IVDEP
            for (int64_t o = 0; o < O; o++)
                y[o] = r[o] + bias[o];
        } else if (r && r != y) {
            memcpy(y, r, (size_t)O * sizeof *y);
        } else if (bias) {
            memcpy(y, bias, (size_t)O * sizeof *y);
        } else if (!r) {
            memset(y, 0, (size_t)O * sizeof *y);
        }
    }
}

/* y [rows, O] += a [rows, columns] . w[:, k : k + columns]^T */
static void add_product(const conv *c, float *y, const float *a, int64_t a_stride, int64_t rows,
                        int64_t k, int64_t columns, float *upcast)
{
    if (c->w->dtype == SL_F32) {
        const float *w = (const float *)c->w->data + k;
        sl_gemm_nt(rows, c->O, columns, 1.0f, a, a_stride, w, c->K, 1.0f, y, c->O);
        return;
    }
    const int64_t block = UPCAST_FLOATS / columns < c->O ? UPCAST_FLOATS / columns : c->O;
    for (int64_t first = 0; first < c->O; first += block) {
        const int64_t count = c->O - first < block ? c->O - first : block;
        for (int64_t o = 0; o < count; o++)
            sl_upcast_bf16(upcast + o * columns,
                           (const uint16_t *)c->w->data + (first + o) * c->K + k, columns);
        sl_gemm_nt(rows, count, columns, 1.0f, a, a_stride, upcast, columns, 1.0f, y + first, c->O);
    }
}

/* One panel row's part of a run of taps that touches the border or reads an
 * enlarged frame: floats [from, to) of the kw*I that start at column `left`. */
static void copy_taps(const conv *c, float *dst, const unsigned char *line, int64_t left,
                      int64_t from, int64_t to)
{
    for (int64_t at = from; at < to;) {
        const int64_t tap = at / c->I, channel = at % c->I;
        const int64_t count = (tap + 1) * c->I < to ? c->I - channel : to - at;
        const int64_t column = left + tap;
        if (column < 0 || column >= c->p.upsample * c->W)
            memset(dst, 0, (size_t)count * sizeof *dst);
        else
            take(c, dst, line, column / c->p.upsample * c->I + channel, count);
        dst += count;
        at += count;
    }
}

/* Floats [from, to) of the kw*I inputs of (frame, kernel row `row`), for
 * `count` output positions of line ho from wo on. */
static void copy_run(const conv *c, float *dst, int64_t dst_stride, const unsigned char *frame,
                     int64_t row, int64_t from, int64_t to, int64_t ho, int64_t wo, int64_t count)
{
    const size_t size_bytes = (size_t)(to - from) * sizeof *dst;
    const int64_t at = ho * c->p.stride_hw + row - c->p.pad_top;

    if (at < 0 || at >= c->p.upsample * c->H) {
        for (int64_t m = 0; m < count; m++)
            memset(dst + m * dst_stride, 0, size_bytes);
        return;
    }
    const unsigned char *line = frame + (size_t)(at / c->p.upsample * c->W * c->I) * c->bytes;
    for (int64_t m = 0; m < count; m++, dst += dst_stride) {
        const int64_t left = (wo + m) * c->p.stride_hw - c->p.pad_left;
        if (c->p.upsample == 1 && left >= 0 && left + c->kw <= c->W)
            take(c, dst, line, left * c->I + from, to - from);
        else
            copy_taps(c, dst, line, left, from, to);
    }
}

/* Columns [k, k + columns) of the inputs of output positions [p, p + rows) of
 * frame `to`. */
static void fill_panel(const conv *c, float *panel, int64_t to, int64_t p, int64_t rows, int64_t k,
                       int64_t columns)
{
    const int64_t run = c->kw * c->I, end = k + columns;

    for (int64_t m = 0; m < rows;) {
        const int64_t ho = (p + m) / c->Wo, wo = (p + m) % c->Wo;
        const int64_t count = c->Wo - wo < rows - m ? c->Wo - wo : rows - m;
        for (int64_t r = k / run; r * run < end; r++) {
            const int64_t from = k > r * run ? k - r * run : 0;
            const int64_t until = end < (r + 1) * run ? end - r * run : run;
            copy_run(c, panel + m * columns + r * run + from - k, columns,
                     frame_at(c, to * c->p.stride_t + r / c->kh), r % c->kh, from, until, ho, wo,
                     count);
        }
        m += count;
    }
}

static bool is_one_pixel(const conv *c)
{
    return !c->bf16 && c->kh == 1 && c->kw == 1 && c->p.stride_hw == 1 && c->p.upsample == 1 &&
           c->Ho == c->H && c->Wo == c->W;
}

static void conv_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const conv *c = arg;
    const int64_t to = i / c->tiles_per_frame, p = i % c->tiles_per_frame * c->tile_rows;
    const int64_t rows = sl_tile_length(i % c->tiles_per_frame, c->tile_rows, c->Ho * c->Wo);
    const int64_t first = (to * c->Ho * c->Wo + p) * c->O, taps = c->kh * c->kw * c->I;
    float *panel = workspace, *upcast = panel + PANEL_FLOATS, *sums = upcast + UPCAST_FLOATS;
    float *y = sl_target_f32(c->y, first, sums);
    int64_t a = 0; /* the first frame that is not zeros */

    (void)thread;
    SL_ASSERT(y);
    start_rows(y, sl_param_f32(c->b, upcast),
               c->residual ? sl_load_f32(c->residual, first, rows * c->O, sums) : NULL, rows, c->O);
    while (a < c->kt && !frame_at(c, to * c->p.stride_t + a))
        a++;
    if (is_one_pixel(c)) {
        for (; a < c->kt; a++)
            add_product(c, y,
                        (const float *)(const void *)frame_at(c, to * c->p.stride_t + a) + p * c->I,
                        c->I, rows, a * c->I, c->I, upcast);
        return;
    }
    for (int64_t k = a * taps; k < c->K; k += c->step) {
        const int64_t columns = c->K - k < c->step ? c->K - k : c->step;
        fill_panel(c, panel, to, p, rows, k, columns);
        add_product(c, y, panel, columns, rows, k, columns, upcast);
    }
    sl_store_f32(c->y, first, rows * c->O, y);
}

/* --- conv --- */

static int64_t clamp(int64_t v, int64_t least, int64_t most)
{
    return v < least ? least : v > most ? most : v;
}

/* Cuts a frame in tiles of about equal size, and K in steps of whole runs of
 * taps where the panel has room for one. */
static void choose_tiles(conv *c)
{
    const int64_t positions = c->Ho * c->Wo;
    int64_t most = clamp(tile_flop / (2 * c->K * c->O), TILE_ROWS_LEAST, TILE_ROWS_MOST);

    if (c->bf16 && most > SUM_FLOATS / c->O)
        most = SUM_FLOATS / c->O;

    c->tiles_per_frame = sl_ceil_div(positions, most);
    c->tile_rows = sl_ceil_div(positions, c->tiles_per_frame);
    c->step = clamp(PANEL_FLOATS / c->tile_rows, 1, c->K);
    if (c->step > c->kw * c->I)
        c->step -= c->step % (c->kw * c->I);
    else if (c->step > c->I)
        c->step -= c->step % c->I;
}

sl_status sl_conv_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, const sl_tensor *cache,
                      const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                      const sl_conv_params *params, sl_error *err)
{
    sl_status status = sl_conv_check(exec, y, x, cache, w, b, residual, params, err);

    if (status == SL_OK && x->dtype == SL_BF16 && y->dim[3] > SUM_FLOATS)
        status = sl_fail(err, SL_ERR_UNIMPLEMENTED,
                         "conv: %" PRId64 " output channels of BF16: the cpu device has room for "
                         "%d",
                         y->dim[3], (int)SUM_FLOATS);
    if (status != SL_OK)
        return status;
    if (sl_tensor_count(y) == 0)
        return SL_OK;
    conv c = {
        .y = y,
        .x = x->data,
        .cache = cache ? cache->data : NULL,
        .residual = residual,
        .bf16 = x->dtype == SL_BF16,
        .bytes = sl_dtype_bytes(x->dtype),
        .w = w,
        .b = b,
        .p = *params,
        .cached = cache ? cache->dim[0] : 0,
        .H = x->dim[1],
        .W = x->dim[2],
        .I = x->dim[3],
        .Ho = y->dim[1],
        .Wo = y->dim[2],
        .O = y->dim[3],
        .kt = w->dim[1],
        .kh = w->dim[2],
        .kw = w->dim[3],
        .K = w->dim[1] * w->dim[2] * w->dim[3] * w->dim[4],
    };
    choose_tiles(&c);
    return sl_exec_parallel(exec, y->dim[0] * c.tiles_per_frame, conv_tile, &c, err);
}

/* --- pair_frames --- */

typedef struct {
    unsigned char *y;
    const unsigned char *x;
    int64_t positions; /* of one frame */
    size_t bytes;      /* of a position of y */
} pairs;

sl_status sl_pair_frames_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    const char *op = "pair_frames";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 4, -1, -1, -1, -1);

    (void)exec;
    if (status == SL_OK && (x->dim[3] % 2 || x->dim[0] > max_frames))
        status = sl_fail(err, SL_ERR_INVALID,
                         "%s: x has %" PRId64 " frames of %" PRId64
                         " channels, expected an even number of channels",
                         op, x->dim[0], x->dim[3]);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "y", y, SL_BIT(x->dtype), err, 4, 2 * x->dim[0], x->dim[1],
                              x->dim[2], x->dim[3] / 2);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "x", x, err);
    return status;
}

/* Tile: one frame of y. */
static void pair_frames_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const pairs *j = arg;
    const size_t bytes = j->bytes;
    unsigned char *y = j->y + (size_t)(i * j->positions) * bytes;
    const unsigned char *x =
        j->x + (size_t)(i / 2 * j->positions) * 2 * bytes + (size_t)(i % 2) * bytes;

    (void)thread, (void)workspace;
    for (size_t p = 0; p < (size_t)j->positions; p++)
        memcpy(y + p * bytes, x + p * 2 * bytes, bytes);
}

sl_status sl_pair_frames_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_pair_frames_check(exec, y, x, err);

    if (status != SL_OK)
        return status;
    pairs j = { .y = y->data,
                .x = x->data,
                .positions = x->dim[1] * x->dim[2],
                .bytes = (size_t)(x->dim[3] / 2) * sl_dtype_bytes(x->dtype) };
    return sl_exec_parallel(exec, y->dim[0], pair_frames_tile, &j, err);
}
