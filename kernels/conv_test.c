#include "kernels/conv.h"

#include "kernels/op_test.h"

typedef struct {
    int64_t T, H, W, I, O, kt, kh, kw;
    int64_t cached; /* -1: no cache */
    sl_conv_params p;
    sl_dtype w, b;
    bool bias, residual;
} shape;

#define PLAIN(zeros, pad)                                                                          \
    {                                                                                              \
        zeros, 1, 1, pad, pad, pad, pad, 1                                                         \
    }

static const shape shapes[] = {
    /* the smallest; then the causal 3x3x3 convolution, cache 0 to 2 */
    { 1, 1, 1, 1, 1, 1, 1, 1, -1, PLAIN(0, 0), SL_F32, SL_F32, false, false },
    { 3, 5, 7, 16, 12, 3, 3, 3, -1, PLAIN(2, 1), SL_F32, SL_F32, true, false },
    { 2, 5, 7, 16, 12, 3, 3, 3, 0, PLAIN(2, 1), SL_BF16, SL_BF16, true, true },
    { 4, 5, 7, 6, 5, 3, 3, 3, 1, PLAIN(1, 1), SL_BF16, SL_F32, true, true },
    { 1, 5, 7, 6, 5, 3, 3, 3, 2, PLAIN(0, 1), SL_F32, SL_BF16, true, false },
    /* first and last layers: 3 channels in, 3 out */
    { 2, 9, 8, 3, 16, 3, 3, 3, -1, PLAIN(2, 1), SL_F32, SL_F32, true, false },
    { 2, 9, 8, 16, 3, 3, 3, 3, 2, PLAIN(0, 1), SL_BF16, SL_F32, true, false },
    /* one pixel: shortcuts, time_conv up (3x1x1), down (3x1x1, stride 2) */
    { 2, 6, 5, 24, 9, 1, 1, 1, -1, PLAIN(0, 0), SL_BF16, SL_F32, true, true },
    { 2, 6, 5, 8, 16, 3, 1, 1, -1, PLAIN(2, 0), SL_F32, SL_F32, true, false },
    { 2, 6, 5, 8, 16, 3, 1, 1, 2, PLAIN(0, 0), SL_BF16, SL_F32, true, false },
    { 4, 6, 5, 8, 8, 3, 1, 1, 1, { 0, 2, 1, 0, 0, 0, 0, 1 }, SL_F32, SL_F32, true, false },
    /* one pixel, but with a border or a stride */
    { 1, 6, 5, 8, 4, 1, 1, 1, -1, PLAIN(0, 1), SL_F32, SL_F32, true, true },
    { 1, 6, 5, 8, 4, 1, 1, 1, -1, { 0, 1, 2, 0, 0, 0, 0, 1 }, SL_F32, SL_F32, true, false },
    { 1, 4, 5, 8, 4, 1, 1, 1, -1, { 0, 1, 1, 0, 0, 0, 0, 2 }, SL_F32, SL_F32, false, true },
    /* enlarged twice, then 3x3; down-sampling with padding right and bottom */
    { 2, 5, 6, 8, 4, 1, 3, 3, -1, { 0, 1, 1, 1, 1, 1, 1, 2 }, SL_F32, SL_F32, true, false },
    { 1, 5, 6, 8, 4, 2, 3, 3, -1, { 1, 1, 2, 1, 0, 2, 1, 2 }, SL_BF16, SL_F32, true, true },
    { 2, 8, 6, 8, 8, 1, 3, 3, -1, { 0, 1, 2, 0, 1, 0, 1, 1 }, SL_F32, SL_F32, true, false },
    /* kernels and borders larger than the frame; uneven borders */
    { 1, 2, 2, 3, 2, 1, 5, 4, -1, PLAIN(0, 3), SL_F32, SL_F32, true, false },
    { 3, 4, 3, 2, 3, 2, 3, 2, -1, { 3, 2, 2, 0, 3, 1, 2, 1 }, SL_F32, SL_F32, true, true },
    /* several tiles in a frame; K in several steps: of whole runs, of whole
     * taps, of part of a tap's channels */
    { 1, 40, 67, 8, 5, 1, 3, 3, -1, PLAIN(0, 1), SL_BF16, SL_F32, true, true },
    { 2, 33, 32, 64, 3, 2, 3, 3, -1, PLAIN(1, 1), SL_BF16, SL_F32, true, false },
    { 1, 32, 33, 100, 2, 1, 3, 3, -1, PLAIN(0, 1), SL_F32, SL_F32, true, false },
    { 1, 34, 35, 512, 3, 3, 3, 3, 2, PLAIN(0, 1), SL_F32, SL_F32, true, false },
    { 1, 16, 17, 700, 2, 1, 3, 3, -1, { 0, 1, 1, 1, 1, 1, 1, 2 }, SL_BF16, SL_F32, true, false },
    { 1, 32, 33, 1500, 2, 1, 2, 2, -1, PLAIN(0, 1), SL_F32, SL_F32, true, false },
    { 1, 2, 3, 5000, 300, 1, 1, 1, -1, PLAIN(0, 0), SL_BF16, SL_F32, true, false },
    /* nothing but zeros is seen; too few frames; no frames; no pixels */
    { 0, 3, 3, 4, 4, 2, 1, 1, -1, PLAIN(3, 0), SL_F32, SL_F32, true, true },
    { 1, 3, 3, 4, 4, 3, 1, 1, 1, { 0, 2, 1, 0, 0, 0, 0, 1 }, SL_F32, SL_F32, true, false },
    { 0, 3, 3, 4, 4, 1, 3, 3, -1, PLAIN(0, 1), SL_F32, SL_F32, true, false },
    { 1, 0, 3, 4, 4, 1, 1, 1, -1, PLAIN(0, 0), SL_F32, SL_F32, true, false },
};

typedef struct {
    sl_tensor x, cache, w, b, residual, y;
    const sl_tensor *cache_arg, *b_arg, *residual_arg;
} operands;

static int64_t out_size(int64_t in, int64_t k, int64_t stride)
{
    return in < k ? 0 : (in - k) / stride + 1;
}

static operands make(const shape *c)
{
    const int64_t cached = c->cached < 0 ? 0 : c->cached;
    const int64_t To = out_size(c->p.zero_frames + cached + c->T, c->kt, c->p.stride_t);
    const int64_t Ho =
        out_size(c->p.upsample * c->H + c->p.pad_top + c->p.pad_bottom, c->kh, c->p.stride_hw);
    const int64_t Wo =
        out_size(c->p.upsample * c->W + c->p.pad_left + c->p.pad_right, c->kw, c->p.stride_hw);
    operands t = {
        .x = OP_TEST_TENSOR(SL_F32, 4, c->T, c->H, c->W, c->I),
        .cache = OP_TEST_TENSOR(SL_F32, 4, cached, c->H, c->W, c->I),
        .w = OP_TEST_TENSOR(c->w, 5, c->O, c->kt, c->kh, c->kw, c->I),
        .b = OP_TEST_TENSOR(c->b, 1, c->O),
        .residual = OP_TEST_TENSOR(SL_F32, 4, To, Ho, Wo, c->O),
        .y = OP_TEST_TENSOR(SL_F32, 4, To, Ho, Wo, c->O),
    };

    op_test_fill(&t.x, 1, 1.0f);
    op_test_fill(&t.cache, 2, 1.0f);
    op_test_fill(&t.w, 3, 1.0f);
    op_test_fill(&t.b, 4, 1.0f);
    op_test_fill(&t.residual, 5, 1.0f);
    op_test_poison(&t.y);
    return t;
}

/* After t has reached its place: the arguments point into it. */
static void choose_args(operands *t, const shape *c)
{
    t->cache_arg = c->cached < 0 ? NULL : &t->cache;
    t->b_arg = c->bias ? &t->b : NULL;
    t->residual_arg = c->residual ? &t->residual : NULL;
}

static void drop(operands *t)
{
    op_test_free(&t->x);
    op_test_free(&t->cache);
    op_test_free(&t->w);
    op_test_free(&t->b);
    op_test_free(&t->residual);
    op_test_free(&t->y);
}

/* in[t, h, w, i] of the header's formula, h and w in the enlarged image. */
static double input(const operands *t, const shape *c, int64_t f, int64_t h, int64_t w, int64_t i)
{
    const int64_t cached = t->cache.dim[0];

    f -= c->p.zero_frames;
    if (f < 0 || h < 0 || w < 0 || h >= c->p.upsample * c->H || w >= c->p.upsample * c->W)
        return 0.0;
    const int64_t at = (h / c->p.upsample * c->W + w / c->p.upsample) * c->I + i;
    const int64_t frame = c->H * c->W * c->I;
    return f < cached ? op_test_get(&t->cache, f * frame + at)
                      : op_test_get(&t->x, (f - cached) * frame + at);
}

static double naive_at(const operands *t, const shape *c, int64_t to, int64_t ho, int64_t wo,
                       int64_t o)
{
    double sum = c->bias ? op_test_get(&t->b, o) : 0.0;
    int64_t k = o * c->kt * c->kh * c->kw * c->I;

    for (int64_t a = 0; a < c->kt; a++)
        for (int64_t d = 0; d < c->kh; d++)
            for (int64_t e = 0; e < c->kw; e++)
                for (int64_t i = 0; i < c->I; i++, k++)
                    sum +=
                        op_test_get(&t->w, k) * input(t, c, to * c->p.stride_t + a,
                                                      ho * c->p.stride_hw + d - c->p.pad_top,
                                                      wo * c->p.stride_hw + e - c->p.pad_left, i);
    return sum;
}

static double *naive(const operands *t, const shape *c)
{
    const int64_t *dim = t->y.dim;
    double *want = calloc((size_t)sl_tensor_count(&t->y) + 1, sizeof *want);
    int64_t n = 0;

    SL_CHECK(want != NULL);
    for (int64_t to = 0; to < dim[0]; to++)
        for (int64_t ho = 0; ho < dim[1]; ho++)
            for (int64_t wo = 0; wo < dim[2]; wo++)
                for (int64_t o = 0; o < dim[3]; o++, n++)
                    want[n] = naive_at(t, c, to, ho, wo, o) +
                              (c->residual ? op_test_get(&t->residual, n) : 0.0);
    return want;
}

static sl_status run(op_test *t, const operands *x, const sl_tensor *y, const sl_tensor *residual,
                     const sl_conv_params *p, sl_error *err)
{
    return sl_conv_cpu(t->exec, y, &x->x, x->cache_arg, &x->w, x->b_arg, residual, p, err);
}

SL_TEST(matches_the_formula)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands x = make(&shapes[i]);
        choose_args(&x, &shapes[i]);
        double *want = naive(&x, &shapes[i]);

        SL_CHECK_OK(run(&t, &x, &x.y, x.residual_arg, &shapes[i].p, err));
        const double error = op_test_rel_l2(&x.y, want);
        if (!(error < 2e-6))
            fail_msg("shape %zu: relative error %g", i, error);
        if (shapes[i].residual) { /* in place: the same bytes */
            SL_CHECK_OK(run(&t, &x, &x.residual, &x.residual, &shapes[i].p, err));
            SL_CHECK(memcmp(x.y.data, x.residual.data, sl_tensor_bytes(&x.y)) == 0);
        }
        free(want);
        drop(&x);
    }
    op_test_close(&t);
}

SL_TEST(threads_do_not_change_a_bit)
{
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands x = make(&shapes[i]), z = make(&shapes[i]);
        choose_args(&x, &shapes[i]);
        SL_CHECK_OK(run(&one, &x, &x.y, x.residual_arg, &shapes[i].p, err));
        SL_CHECK_OK(run(&three, &x, &z.y, x.residual_arg, &shapes[i].p, err));
        SL_CHECK(memcmp(x.y.data, z.y.data, sl_tensor_bytes(&x.y)) == 0);
        drop(&x);
        drop(&z);
    }
    op_test_close(&three);
    op_test_close(&one);
}

/* A causal 3x3x3 convolution of 9 frames as a whole, and in the given chunks
 * with a cache of the last two input frames. */
static void check_chunks(op_test *t, const int64_t *chunks, size_t chunk_count, sl_dtype w,
                         sl_error *err)
{
    const shape whole_shape = {
        9, 12, 13, 24, 20, 3, 3, 3, -1, PLAIN(2, 1), w, SL_F32, true, false
    };
    operands whole = make(&whole_shape);
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 4, 9, 12, 13, 20);
    int64_t first = 0;

    choose_args(&whole, &whole_shape);
    SL_CHECK_OK(run(t, &whole, &whole.y, NULL, &whole_shape.p, err));
    op_test_poison(&y);
    for (size_t i = 0; i < chunk_count; i++) {
        const int64_t cached = first < 2 ? first : 2;
        const sl_tensor x = sl_tensor_rows(&whole.x, first, chunks[i]);
        const sl_tensor cache = sl_tensor_rows(&whole.x, first - cached, cached);
        const sl_tensor out = sl_tensor_rows(&y, first, chunks[i]);
        const sl_conv_params p = PLAIN(2 - (int)cached, 1);
        SL_CHECK_OK(sl_conv_cpu(t->exec, &out, &x, &cache, &whole.w, &whole.b, NULL, &p, err));
        first += chunks[i];
    }
    SL_CHECK(first == 9);
    SL_CHECK(memcmp(y.data, whole.y.data, sl_tensor_bytes(&y)) == 0);
    op_test_free(&y);
    drop(&whole);
}

SL_TEST(chunks_give_the_bits_of_the_whole)
{
    static const int64_t fours[] = { 1, 4, 4 }, mixed[] = { 1, 1, 2, 5 };
    op_test t;

    op_test_open(&t, 2);
    check_chunks(&t, fours, SL_COUNT(fours), SL_F32, err);
    check_chunks(&t, mixed, SL_COUNT(mixed), SL_BF16, err);
    op_test_close(&t);
}

typedef struct {
    const char *what; /* in the message */
    void (*spoil)(operands *x, sl_conv_params *p);
} violation;

static void no_stride(operands *x, sl_conv_params *p)
{
    (void)x;
    p->stride_hw = 0;
}

static void far_upsample(operands *x, sl_conv_params *p)
{
    (void)x;
    p->upsample = 3;
}

static void negative_pad(operands *x, sl_conv_params *p)
{
    (void)x;
    p->pad_left = -1;
}

static void negative_zeros(operands *x, sl_conv_params *p)
{
    (void)x;
    p->zero_frames = -1;
}

static void one_zero_less(operands *x, sl_conv_params *p)
{
    (void)x;
    p->zero_frames--;
}

static void other_inputs(operands *x, sl_conv_params *p)
{
    (void)p;
    x->w.dim[4]++;
}

static void no_taps(operands *x, sl_conv_params *p)
{
    (void)p;
    x->w.dim[2] = 0;
}

static void huge_kernel(operands *x, sl_conv_params *p)
{
    (void)p;
    x->w.dim[1] = x->w.dim[2] = INT64_C(1) << 40;
}

static void half_weights(operands *x, sl_conv_params *p)
{
    (void)p;
    x->w.dtype = SL_F16;
}

static void short_bias(operands *x, sl_conv_params *p)
{
    (void)p;
    x->b.dim[0]--;
}

static void other_cache(operands *x, sl_conv_params *p)
{
    (void)p;
    x->cache.dim[2]++;
}

static void long_cache(operands *x, sl_conv_params *p)
{
    (void)p;
    x->cache.dim[0] = 3;
}

static void other_residual(operands *x, sl_conv_params *p)
{
    (void)p;
    x->residual.dim[3]--;
}

static void huge_frame(operands *x, sl_conv_params *p)
{
    (void)p;
    x->x.dim[1] = x->cache.dim[1] = INT64_MAX / 2;
}

static void y_on_x(operands *x, sl_conv_params *p)
{
    (void)p;
    x->x.data = (float *)x->y.data + 1;
}

static void y_beside_residual(operands *x, sl_conv_params *p)
{
    (void)p;
    x->residual.data = (float *)x->y.data + 4;
}

static const violation violations[] = {
    { "stride_hw is 0", no_stride },    { "upsample is 3", far_upsample },
    { "pad_left is -1", negative_pad }, { "zero_frames is -1", negative_zeros },
    { "y is", one_zero_less },          { "w is", other_inputs },
    { "no or too many", no_taps },      { "no or too many", huge_kernel },
    { "w is", half_weights },           { "b is", short_bias },
    { "cache is", other_cache },        { "3 cached frames", long_cache },
    { "residual is", other_residual },  { "too large", huge_frame },
    { "y overlaps x", y_on_x },         { "y overlaps residual", y_beside_residual },
};

SL_TEST(refuses_what_the_contract_excludes)
{
    const shape c = { 2, 5, 7, 6, 5, 3, 3, 3, 1, PLAIN(1, 1), SL_F32, SL_F32, true, true };
    op_test t;

    op_test_open(&t, 1);
    for (size_t i = 0; i < SL_COUNT(violations); i++) {
        operands good = make(&c);
        operands bad = good;
        sl_conv_params p = c.p;

        choose_args(&bad, &c);
        violations[i].spoil(&bad, &p);
        SL_CHECK_STATUS(run(&t, &bad, &bad.y, bad.residual_arg, &p, err), SL_ERR_INVALID);
        if (!strstr(err->message, violations[i].what))
            fail_msg("violation %zu: \"%s\"", i, err->message);
        SL_CHECK(op_test_is_poison(&good.y));
        SL_CHECK_STATUS(sl_conv_check(t.exec, &bad.y, &bad.x, bad.cache_arg, &bad.w, bad.b_arg,
                                      bad.residual_arg, &p, err),
                        SL_ERR_INVALID);
        drop(&good);
    }
    op_test_close(&t);
}

/* A plan has shapes and addresses without memory behind them. */
SL_TEST(check_touches_no_memory)
{
    const int64_t MiB = 1 << 20;
    unsigned char *nowhere = (unsigned char *)(uintptr_t)0x7000000000000000u;
    const sl_tensor x = sl_tensor_of(nowhere, SL_F32, 4, 4, 480, 832, 96);
    const sl_tensor w = sl_tensor_of(NULL, SL_BF16, 5, 96, 3, 3, 3, 96);
    const sl_tensor b = sl_tensor_of(NULL, SL_F32, 1, 96);
    const sl_tensor y = sl_tensor_of(nowhere + 1024 * MiB, SL_F32, 4, 4, 480, 832, 96);
    const sl_tensor u = sl_tensor_of(nowhere + 4096 * MiB, SL_F32, 4, 8, 480, 832, 48);
    const sl_conv_params p = PLAIN(2, 1);

    SL_CHECK_OK(sl_conv_check(NULL, &y, &x, NULL, &w, &b, &y, &p, err));
    SL_CHECK_OK(sl_pair_frames_check(NULL, &u, &x, err));
}

SL_TEST(cancel_stops_it)
{
    const shape c = { 3, 5, 7, 16, 12, 3, 3, 3, -1, PLAIN(2, 1), SL_F32, SL_F32, true, false };
    operands x = make(&c);
    op_test t;

    choose_args(&x, &c);
    op_test_open(&t, 2);
    atomic_store(&t.cancel, 1);
    SL_CHECK_STATUS(run(&t, &x, &x.y, NULL, &c.p, err), SL_ERR_CANCELLED);
    op_test_close(&t);
    drop(&x);
}

SL_TEST(pair_frames_takes_halves)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 4, 3, 2, 5, 14);
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 4, 6, 2, 5, 7);
    op_test t;

    op_test_open(&t, 2);
    op_test_fill(&x, 1, 1.0f);
    op_test_poison(&y);
    SL_CHECK_OK(sl_pair_frames_cpu(t.exec, &y, &x, err));
    for (int64_t f = 0; f < 6; f++)
        for (int64_t p = 0; p < 10; p++)
            for (int64_t c = 0; c < 7; c++)
                SL_CHECK(op_test_get(&y, (f * 10 + p) * 7 + c) ==
                         op_test_get(&x, ((f / 2) * 10 + p) * 14 + f % 2 * 7 + c));

    op_test_poison(&y);
    sl_tensor bad = y;
    bad.dim[0] = 5;
    SL_CHECK_STATUS(sl_pair_frames_cpu(t.exec, &bad, &x, err), SL_ERR_INVALID);
    bad = sl_tensor_of(x.data, SL_F32, 4, 3, 2, 7, 10);
    SL_CHECK_STATUS(sl_pair_frames_cpu(t.exec, &y, &bad, err), SL_ERR_INVALID);
    bad = sl_tensor_of(x.data, SL_F32, 4, 2, 3, 5, 13);
    SL_CHECK_STATUS(sl_pair_frames_cpu(t.exec, &y, &bad, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&y));
    const sl_tensor none_x = sl_tensor_of(x.data, SL_F32, 4, 0, 2, 5, 14);
    const sl_tensor none_y = sl_tensor_of(y.data, SL_F32, 4, 0, 2, 5, 7);
    SL_CHECK_OK(sl_pair_frames_cpu(t.exec, &none_y, &none_x, err));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
}

SL_TEST_MAIN(SL_RUN(matches_the_formula), SL_RUN(threads_do_not_change_a_bit),
             SL_RUN(chunks_give_the_bits_of_the_whole), SL_RUN(refuses_what_the_contract_excludes),
             SL_RUN(check_touches_no_memory), SL_RUN(cancel_stops_it),
             SL_RUN(pair_frames_takes_halves))
