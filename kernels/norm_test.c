#include "kernels/norm.h"

#include "kernels/op_test.h"

typedef struct {
    int64_t S, C;
} shape;

static const shape shapes[] = {
    { 0, 16 },     /* no rows */
    { 1, 1 },      /* smallest */
    { 5, 3 },      /* less than any vector */
    { 700, 16 },   /* tiny VAE */
    { 2000, 96 },  /* VAE: several tiles */
    { 65, 384 },   /* VAE, the widest */
    { 17, 333 },   /* ragged */
    { 9, 1536 },   /* Wan 1.3B */
    { 3, 5120 },   /* Wan 14B */
    { 2, 140000 }, /* wider than a tile */
};

typedef struct {
    sl_tensor x, y, w, b, scale, shift;
} operands;

static operands make(const shape *c, sl_dtype params)
{
    operands t = {
        .x = OP_TEST_TENSOR(SL_F32, 2, c->S, c->C),
        .y = OP_TEST_TENSOR(SL_F32, 2, c->S, c->C),
        .w = OP_TEST_TENSOR(params, 1, c->C),
        .b = OP_TEST_TENSOR(params, 1, c->C),
        .scale = OP_TEST_TENSOR(params, 1, c->C),
        .shift = OP_TEST_TENSOR(params, 1, c->C),
    };

    op_test_fill(&t.x, 1, 3.0f);
    for (int64_t i = 0; i < c->S * c->C; i++) /* a mean that is not 0 */
        ((float *)t.x.data)[i] += 1.5f;
    op_test_fill(&t.w, 2, 1.0f);
    op_test_fill(&t.b, 3, 1.0f);
    op_test_fill(&t.scale, 4, 1.0f);
    op_test_fill(&t.shift, 5, 1.0f);
    op_test_poison(&t.y);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->x);
    op_test_free(&t->y);
    op_test_free(&t->w);
    op_test_free(&t->b);
    op_test_free(&t->scale);
    op_test_free(&t->shift);
}

static double *alloc_like(const sl_tensor *t)
{
    double *p = calloc((size_t)sl_tensor_count(t) + 1, sizeof *p);

    SL_CHECK(p != NULL);
    return p;
}

static void check_close(const sl_tensor *got, double *want, const shape *c)
{
    const double error = op_test_rel_l2(got, want);

    if (!(error < 4e-7))
        fail_msg("[%d, %d]: relative error %g", (int)c->S, (int)c->C, error);
    free(want);
}

static double *naive_layer_norm(const operands *t, bool affine, bool modulated, double eps)
{
    const int64_t C = t->x.dim[1];
    double *want = alloc_like(&t->x);

    for (int64_t s = 0; s < t->x.dim[0]; s++) {
        double mean = 0.0, var = 0.0;
        for (int64_t c = 0; c < C; c++)
            mean += op_test_get(&t->x, s * C + c) / (double)C;
        for (int64_t c = 0; c < C; c++)
            var += pow(op_test_get(&t->x, s * C + c) - mean, 2.0) / (double)C;
        for (int64_t c = 0; c < C; c++) {
            double v = (op_test_get(&t->x, s * C + c) - mean) / sqrt(var + eps);
            if (affine)
                v = v * op_test_get(&t->w, c) + op_test_get(&t->b, c);
            if (modulated)
                v = v * (1.0 + op_test_get(&t->scale, c)) + op_test_get(&t->shift, c);
            want[s * C + c] = v;
        }
    }
    return want;
}

static sl_status run_layer_norm(op_test *t, const operands *x, const sl_tensor *y, bool affine,
                                bool modulated, sl_error *err)
{
    return sl_layer_norm_cpu(t->exec, y, &x->x, affine ? &x->w : NULL, affine ? &x->b : NULL,
                             modulated ? &x->scale : NULL, modulated ? &x->shift : NULL, 1e-6f, 0,
                             err);
}

SL_TEST(layer_norm_matches_the_formula)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        for (int option = 0; option < 8; option++) {
            const bool affine = option & 1, modulated = option & 2;
            operands x = make(&shapes[i], option & 4 ? SL_BF16 : SL_F32);
            SL_CHECK_OK(run_layer_norm(&t, &x, &x.y, affine, modulated, err));
            check_close(&x.y, naive_layer_norm(&x, affine, modulated, 1e-6), &shapes[i]);
            SL_CHECK_OK(run_layer_norm(&t, &x, &x.x, affine, modulated, err)); /* in place */
            SL_CHECK(memcmp(x.x.data, x.y.data, sl_tensor_bytes(&x.y)) == 0);
            drop(&x);
        }
    }
    op_test_close(&t);
}

/* A large common offset: sums in f32 would lose the variance. */
/* The reference's kernel over a row padded with zeros, its mean that of the row. */
SL_TEST(layer_norm_counts_padding)
{
    const shape c = { .S = 3, .C = 12 };
    enum { PADDED = 16 };
    operands x = make(&c, SL_F32);
    op_test t;

    op_test_open(&t, 1);
    SL_CHECK_OK(sl_layer_norm_cpu(t.exec, &x.y, &x.x, NULL, NULL, NULL, NULL, 1e-6f, PADDED - 12,
                                  err));
    double *want = alloc_like(&x.x);
    for (int64_t s = 0; s < c.S; s++) {
        double mean = 0.0, sum = 0.0;
        for (int64_t i = 0; i < c.C; i++)
            mean += op_test_get(&x.x, s * c.C + i) / (double)c.C;
        for (int64_t i = 0; i < PADDED; i++)
            sum += pow((i < c.C ? op_test_get(&x.x, s * c.C + i) : 0.0) - mean, 2.0);
        for (int64_t i = 0; i < c.C; i++)
            want[s * c.C + i] =
                (op_test_get(&x.x, s * c.C + i) - mean) / sqrt(sum / (double)c.C + 1e-6);
    }
    check_close(&x.y, want, &c);
    SL_CHECK_STATUS(
        sl_layer_norm_cpu(t.exec, &x.y, &x.x, NULL, NULL, NULL, NULL, 1e-6f, -1, err),
        SL_ERR_INVALID);
    drop(&x);
    op_test_close(&t);
}

SL_TEST(layer_norm_survives_an_offset)
{
    const shape c = { 3, 5120 };
    operands x = make(&c, SL_F32);
    op_test t;

    for (int64_t i = 0; i < c.S * c.C; i++)
        ((float *)x.x.data)[i] = 4096.0f + (float)(i % 7);
    op_test_open(&t, 1);
    SL_CHECK_OK(run_layer_norm(&t, &x, &x.y, false, false, err));
    double *want = naive_layer_norm(&x, false, false, 1e-6);
    /* x - mean is exact up to the rounding of the mean: half an ulp of 4096. */
    SL_CHECK(op_test_rel_l2(&x.y, want) < 0x1p-12 / 2.0);
    free(want);
    op_test_close(&t);
    drop(&x);
}

SL_TEST(rms_norm_matches_the_formula)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const int64_t C = shapes[i].C;
        operands x = make(&shapes[i], i % 2 ? SL_BF16 : SL_F32);
        double *want = alloc_like(&x.x);
        for (int64_t s = 0; s < shapes[i].S; s++) {
            double square = 0.0;
            for (int64_t c = 0; c < C; c++)
                square += pow(op_test_get(&x.x, s * C + c), 2.0) / (double)C;
            for (int64_t c = 0; c < C; c++)
                want[s * C + c] =
                    op_test_get(&x.x, s * C + c) / sqrt(square + 0.25) * op_test_get(&x.w, c);
        }
        SL_CHECK_OK(sl_rms_norm_cpu(t.exec, &x.y, &x.x, &x.w, 0.25f, err));
        check_close(&x.y, want, &shapes[i]);
        SL_CHECK_OK(sl_rms_norm_cpu(t.exec, &x.x, &x.x, &x.w, 0.25f, err));
        SL_CHECK(memcmp(x.x.data, x.y.data, sl_tensor_bytes(&x.y)) == 0);
        drop(&x);
    }
    op_test_close(&t);
}

static double *naive_channel_norm(const operands *t, bool silu)
{
    const int64_t C = t->x.dim[1];
    double *want = alloc_like(&t->x);

    for (int64_t s = 0; s < t->x.dim[0]; s++) {
        double square = 0.0;
        for (int64_t c = 0; c < C; c++)
            square += pow(op_test_get(&t->x, s * C + c), 2.0);
        for (int64_t c = 0; c < C; c++) {
            const double v = op_test_get(&t->x, s * C + c) / fmax(sqrt(square), 1e-12) *
                             sqrt((double)C) * op_test_get(&t->w, c);
            want[s * C + c] = silu ? v / (1.0 + exp(-v)) : v;
        }
    }
    return want;
}

SL_TEST(channel_norm_matches_the_formula)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        for (int option = 0; option < 4; option++) {
            const bool silu = option & 1;
            operands x = make(&shapes[i], option & 2 ? SL_BF16 : SL_F32);
            if (shapes[i].S > 2) /* a row of zeros stays zeros */
                memset((float *)x.x.data + shapes[i].C, 0, (size_t)shapes[i].C * sizeof(float));
            SL_CHECK_OK(sl_channel_norm_cpu(t.exec, &x.y, &x.x, &x.w, silu, err));
            check_close(&x.y, naive_channel_norm(&x, silu), &shapes[i]);
            SL_CHECK_OK(sl_channel_norm_cpu(t.exec, &x.x, &x.x, &x.w, silu, err));
            SL_CHECK(memcmp(x.x.data, x.y.data, sl_tensor_bytes(&x.y)) == 0);
            drop(&x);
        }
    }
    op_test_close(&t);
}

/* Parameters come as [1, C] or [C, 1, 1, 1], rows as frames. */
SL_TEST(any_rank_and_parameter_shape)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 4, 2, 3, 4, 8), y = OP_TEST_TENSOR(SL_F32, 4, 2, 3, 4, 8);
    sl_tensor gamma = OP_TEST_TENSOR(SL_F32, 4, 8, 1, 1, 1);
    sl_tensor scale = OP_TEST_TENSOR(SL_F32, 2, 1, 8);
    op_test t;

    op_test_fill(&x, 1, 1.0f);
    op_test_fill(&gamma, 2, 1.0f);
    op_test_poison(&y);
    op_test_open(&t, 1);
    SL_CHECK_OK(sl_channel_norm_cpu(t.exec, &y, &x, &gamma, true, err));
    for (int64_t i = 0; i < 192; i++)
        SL_CHECK(isfinite(op_test_get(&y, i)));
    SL_CHECK_OK(sl_layer_norm_cpu(t.exec, &y, &x, NULL, NULL, &scale, &scale, 1e-6f, 0, err));
    SL_CHECK_OK(sl_rms_norm_cpu(t.exec, &y, &x, &gamma, 1e-6f, err));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
    op_test_free(&gamma);
    op_test_free(&scale);
}

SL_TEST(threads_do_not_change_a_bit)
{
    const shape c = { 3001, 96 };
    operands a = make(&c, SL_BF16), b = make(&c, SL_BF16);
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    SL_CHECK_OK(run_layer_norm(&one, &a, &a.y, true, true, err));
    SL_CHECK_OK(run_layer_norm(&three, &b, &b.y, true, true, err));
    SL_CHECK(memcmp(a.y.data, b.y.data, sl_tensor_bytes(&a.y)) == 0);
    SL_CHECK_OK(sl_rms_norm_cpu(one.exec, &a.y, &a.x, &a.w, 1e-6f, err));
    SL_CHECK_OK(sl_rms_norm_cpu(three.exec, &b.y, &b.x, &b.w, 1e-6f, err));
    SL_CHECK(memcmp(a.y.data, b.y.data, sl_tensor_bytes(&a.y)) == 0);
    SL_CHECK_OK(sl_channel_norm_cpu(one.exec, &a.y, &a.x, &a.w, true, err));
    SL_CHECK_OK(sl_channel_norm_cpu(three.exec, &b.y, &b.x, &b.w, true, err));
    SL_CHECK(memcmp(a.y.data, b.y.data, sl_tensor_bytes(&a.y)) == 0);
    op_test_close(&three);
    op_test_close(&one);
    drop(&a);
    drop(&b);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    const shape c = { 6, 24 };
    operands x = make(&c, SL_F32);
    const sl_tensor short_w = sl_tensor_of(x.w.data, SL_F32, 1, 23);
    const sl_tensor half_w = sl_tensor_of(x.w.data, SL_F16, 1, 24);
    const sl_tensor half_x = sl_tensor_of(x.x.data, SL_F16, 2, 6, 24);
    const sl_tensor other_y = sl_tensor_of(x.y.data, SL_F32, 2, 5, 24);
    const sl_tensor f64_y = sl_tensor_of(x.y.data, SL_F64, 2, 6, 24);
    const sl_tensor shifted_x = sl_tensor_of((float *)x.y.data + 24, SL_F32, 2, 6, 24);
    const sl_tensor scalar = sl_tensor_make(x.x.data, SL_F32, 0, NULL);
    const sl_tensor no_channels = sl_tensor_of(x.x.data, SL_F32, 2, 6, 0);
    const sl_tensor wide = sl_tensor_of(NULL, SL_F32, 2, 0, INT64_C(1) << 40);
    op_test t;

    op_test_open(&t, 1);
    const struct {
        const sl_tensor *y, *x, *w;
    } bad[] = {
        { &x.y, &x.x, &short_w },   { &x.y, &x.x, &half_w },
        { &x.y, &half_x, &x.w },    { &other_y, &x.x, &x.w },
        { &f64_y, &x.x, &x.w },     { &x.y, &shifted_x, &x.w },
        { &scalar, &scalar, &x.w }, { &no_channels, &no_channels, &x.w },
        { &wide, &wide, &x.w },     { &x.y, &x.x, &x.y },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_rms_norm_cpu(t.exec, bad[i].y, bad[i].x, bad[i].w, 1e-6f, err),
                        SL_ERR_INVALID);
        SL_CHECK_STATUS(sl_channel_norm_cpu(t.exec, bad[i].y, bad[i].x, bad[i].w, true, err),
                        SL_ERR_INVALID);
        SL_CHECK_STATUS(sl_layer_norm_cpu(t.exec, bad[i].y, bad[i].x, bad[i].w, bad[i].w, NULL,
                                          NULL, 1e-6f, 0, err),
                        SL_ERR_INVALID);
    }
    SL_CHECK_STATUS(sl_layer_norm_cpu(t.exec, &x.y, &x.x, &x.w, NULL, NULL, NULL, 1e-6f, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "w without b") != NULL);
    SL_CHECK_STATUS(sl_layer_norm_cpu(t.exec, &x.y, &x.x, NULL, NULL, NULL, &x.shift, 1e-6f, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "shift without scale") != NULL);
    SL_CHECK(op_test_is_poison(&x.y));
    op_test_close(&t);
    drop(&x);
}

SL_TEST(check_touches_no_memory)
{
    void *nowhere = (void *)(uintptr_t)0x7000000000000000u;
    const sl_tensor x = sl_tensor_of(nowhere, SL_F32, 2, 32760, 1536);
    const sl_tensor w = sl_tensor_of(NULL, SL_BF16, 1, 1536);

    SL_CHECK_OK(sl_layer_norm_check(NULL, &x, &x, &w, &w, &w, &w, 1e-6f, 0, err));
    SL_CHECK_OK(sl_rms_norm_check(NULL, &x, &x, &w, 1e-6f, err));
    SL_CHECK_OK(sl_channel_norm_check(NULL, &x, &x, &w, true, err));
}

SL_TEST_MAIN(SL_RUN(layer_norm_matches_the_formula), SL_RUN(layer_norm_counts_padding),
             SL_RUN(layer_norm_survives_an_offset),
             SL_RUN(rms_norm_matches_the_formula), SL_RUN(channel_norm_matches_the_formula),
             SL_RUN(any_rank_and_parameter_shape), SL_RUN(threads_do_not_change_a_bit),
             SL_RUN(refuses_what_the_contract_excludes), SL_RUN(check_touches_no_memory))
