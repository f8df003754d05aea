/* The pieces of a plan, done one by one by the cpu op on the frames that they say,
 * must give what the whole convolution gives. */
#include "kernels/conv_plan.h"

#include "kernels/op_test.h"
#include "kernels/ops.h"

typedef struct {
    int64_t T, H, W, I, O, kt, k;
    int64_t cached;
    sl_conv_params p;
    bool behind;  /* x right behind the cache */
    int in_place; /* output frames that read x in place; -1: all */
} shape;

#define CAUSAL(zeros)                                                                              \
    {                                                                                              \
        zeros, 1, 1, 1, 1, 1, 1, 1                                                                 \
    }

static const shape shapes[] = {
    { 1, 5, 7, 16, 8, 3, 3, 0, CAUSAL(2), false, -1 },
    { 5, 5, 7, 16, 8, 3, 3, 0, CAUSAL(2), false, -1 },
    { 1, 5, 7, 16, 8, 3, 3, 1, CAUSAL(1), false, 0 },
    { 1, 5, 7, 16, 8, 3, 3, 2, CAUSAL(0), false, 0 },
    { 2, 5, 7, 16, 8, 3, 3, 2, CAUSAL(0), false, 0 },
    { 4, 5, 7, 16, 8, 3, 3, 2, CAUSAL(0), false, 2 },
    { 4, 5, 7, 16, 8, 3, 3, 1, CAUSAL(1), false, 2 },
    { 4, 5, 7, 16, 8, 3, 3, 2, CAUSAL(0), true, -1 },
    { 4, 5, 7, 16, 8, 3, 3, 1, CAUSAL(1), true, -1 },
    { 4, 5, 7, 5, 8, 3, 3, 1, CAUSAL(1), true, 0 }, /* channels to fill up */
    { 4, 5, 7, 8, 3, 3, 1, 1, { 0, 2, 1, 0, 0, 0, 0, 1 }, false, 1 },
    { 6, 5, 7, 8, 3, 3, 1, 1, { 2, 2, 1, 0, 0, 0, 0, 1 }, false, 2 },
    { 7, 5, 7, 8, 3, 3, 1, 0, { 1, 2, 1, 0, 0, 0, 0, 1 }, false, -1 },
    { 2, 5, 6, 8, 4, 1, 3, 0, { 0, 1, 1, 1, 1, 1, 1, 2 }, false, 0 },
    { 3, 5, 6, 8, 4, 2, 3, 1, { 1, 1, 1, 1, 1, 1, 1, 2 }, false, 0 },
    { 2, 8, 6, 8, 8, 1, 3, 0, { 0, 1, 2, 0, 1, 0, 1, 1 }, false, -1 },
    { 5, 1700, 1700, 1, 1, 3, 1, 0, { 2, 1, 1, 0, 0, 0, 0, 1 }, false, 0 }, /* many pieces */
};

typedef struct {
    sl_tensor x, cache, w, y, want;
} operands;

static sl_tensor as_bf16(const sl_tensor *t)
{
    sl_tensor other = *t;

    other.dtype = SL_BF16;
    return other;
}

/* [first, first + count) of [cache | x], enlarged. */
static sl_tensor gather(const operands *o, const shape *s, int64_t first, int64_t count, int up)
{
    sl_tensor out = OP_TEST_TENSOR(SL_F32, 4, count, up * s->H, up * s->W, s->I);

    for (int64_t f = 0; f < count; f++)
        for (int64_t h = 0; h < up * s->H; h++)
            for (int64_t w = 0; w < up * s->W; w++) {
                const int64_t at = first + f;
                const float *from =
                    at < s->cached ? (const float *)o->cache.data : (const float *)o->x.data;
                const int64_t frame = at < s->cached ? at : at - s->cached;
                memcpy((float *)out.data + ((f * up * s->H + h) * up * s->W + w) * s->I,
                       from + ((frame * s->H + h / up) * s->W + w / up) * s->I,
                       (size_t)s->I * sizeof(float));
            }
    return out;
}

static void run_piece(op_test *t, const operands *o, const shape *s, const sl_conv_piece *piece,
                      sl_error *err)
{
    const int up = piece->gathered ? s->p.upsample : 1;
    sl_tensor frames = gather(o, s, piece->first_in, piece->in_count, up);
    const sl_tensor y = sl_tensor_rows(&o->y, piece->first_out, piece->out_count);
    sl_conv_params p = s->p;

    SL_CHECK(s->p.upsample == 1 || piece->gathered);
    SL_CHECK(piece->zeros < s->kt);
    p.zero_frames = (int)piece->zeros;
    p.upsample = 1;
    SL_CHECK_OK(sl_conv_cpu(t->exec, &y, &frames, NULL, &o->w, NULL, NULL, &p, err));
    op_test_free(&frames);
}

static void check_shape(op_test *t, const shape *s, sl_error *err)
{
    const sl_conv_params *p = &s->p;
    const int64_t To = (p->zero_frames + s->cached + s->T - s->kt) / p->stride_t + 1;
    const int64_t Ho = (p->upsample * s->H + p->pad_top + p->pad_bottom - s->k) / p->stride_hw + 1;
    const int64_t Wo = (p->upsample * s->W + p->pad_left + p->pad_right - s->k) / p->stride_hw + 1;
    operands o = { .x = OP_TEST_TENSOR(SL_F32, 4, s->T, s->H, s->W, s->I),
                   .cache = OP_TEST_TENSOR(SL_F32, 4, s->cached, s->H, s->W, s->I),
                   .w = OP_TEST_TENSOR(SL_F32, 5, s->O, s->kt, s->k, s->k, s->I),
                   .y = OP_TEST_TENSOR(SL_F32, 4, To, Ho, Wo, s->O),
                   .want = OP_TEST_TENSOR(SL_F32, 4, To, Ho, Wo, s->O) };
    sl_tensor x = as_bf16(&o.x), cache = as_bf16(&o.cache), y = as_bf16(&o.y);
    int64_t in_place = 0, pieces = 0;

    op_test_fill(&o.x, 1, 1.0f);
    op_test_fill(&o.cache, 2, 1.0f);
    op_test_fill(&o.w, 3, 1.0f);
    op_test_poison(&o.y);
    SL_CHECK_OK(
        sl_conv_cpu(t->exec, &o.want, &o.x, s->cached ? &o.cache : NULL, &o.w, NULL, NULL, p, err));
    if (s->behind)
        x.data = (unsigned char *)cache.data + sl_tensor_bytes(&cache);
    const sl_conv_plan plan = sl_conv_plan_of(&y, &x, s->cached ? &cache : NULL, &o.w, NULL, p);
    SL_CHECK(plan.library && plan.adjacent == s->behind);
    for (int64_t to = 0; to < To; pieces++) {
        const sl_conv_piece piece = sl_conv_piece_at(&plan, &y, &x, &o.w, p, to);

        SL_CHECK(piece.first_out == to && piece.out_count > 0);
        SL_CHECK((piece.zeros + piece.in_count - s->kt) / p->stride_t + 1 == piece.out_count);
        SL_CHECK(!piece.gathered || piece.in_count <= plan.gather_frames);
        SL_CHECK(piece.gathered || piece.first_in >= (plan.adjacent ? 0 : s->cached));
        run_piece(t, &o, s, &piece, err);
        in_place += piece.gathered ? 0 : piece.out_count;
        to += piece.out_count;
    }
    SL_CHECK(in_place == (s->in_place < 0 ? To : s->in_place));
    SL_CHECK(s->H < 1000 || pieces > 1);
    for (int64_t i = 0; i < sl_tensor_count(&o.y); i++)
        SL_CHECK(fabsf(((float *)o.y.data)[i] - ((float *)o.want.data)[i]) <= 1e-4f);
    op_test_free(&o.x);
    op_test_free(&o.cache);
    op_test_free(&o.w);
    op_test_free(&o.y);
    op_test_free(&o.want);
}

SL_TEST(pieces_make_the_whole)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++)
        check_shape(&t, &shapes[i], err);
    op_test_close(&t);
}

SL_TEST(counting_takes_what_the_plan_says)
{
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    const sl_conv_params p = CAUSAL(1);
    const sl_tensor x = sl_tensor_of(NULL, SL_BF16, 4, 1, 480, 832, 96),
                    cache = sl_tensor_of(NULL, SL_BF16, 4, 1, 480, 832, 96),
                    w = sl_tensor_of(NULL, SL_F32, 5, 96, 3, 3, 3, 96),
                    b = sl_tensor_of(NULL, SL_F32, 1, 96),
                    y = sl_tensor_of(NULL, SL_BF16, 4, 1, 480, 832, 96);
    const size_t frame_bytes = 480 * 832 * 96 * 2, w_bytes = 96 * 27 * 96 * 2;
    sl_scratch scratch;
    sl_exec *exec;

    SL_CHECK_OK(sl_exec_create_counting(&exec, &numerics, err));
    SL_CHECK_STATUS(sl_conv_count_cuda(exec, &y, &x, &cache, &w, &b, NULL, &p, err),
                    SL_ERR_INTERNAL); /* nothing to take it from */
    sl_scratch_init_counting(&scratch);
    sl_exec_lend_scratch(exec, &scratch);
    SL_CHECK_OK(sl_exec_ops(exec)->conv(exec, &y, &x, &cache, &w, &b, NULL, &p, err));
    SL_CHECK(scratch.used_bytes == 0);
    SL_CHECK(scratch.peak_bytes == w_bytes + 256 + 2 * frame_bytes);
    sl_exec_destroy(exec);
}

SL_TEST_MAIN(SL_RUN(pieces_make_the_whole), SL_RUN(counting_takes_what_the_plan_says))
