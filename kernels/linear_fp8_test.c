#include "kernels/linear_fp8.h"

#include "kernels/e4m3.h"
#include "kernels/op_test.h"

#include <math.h>

typedef struct {
    int64_t S, I, O;
    sl_dtype b;
    bool bias;
    sl_act act;
} shape;

static const shape shapes[] = {
    { 0, 128, 8, SL_F32, true, SL_ACT_NONE },         /* no rows */
    { 1, 128, 1, SL_F32, false, SL_ACT_NONE },        /* smallest */
    { 5, 0, 7, SL_F32, true, SL_ACT_NONE },           /* an empty sum is the bias */
    { 7, 256, 130, SL_BF16, true, SL_ACT_SILU },      /* two tiles of columns */
    { 130, 384, 65, SL_F32, true, SL_ACT_GELU_TANH }, /* two tiles of rows */
    { 40, 8960, 33, SL_F32, false, SL_ACT_NONE },     /* Wan 1.3B's longest sum */
};

typedef struct {
    sl_tensor x, x_q, x_scale, w, w_q, w_scale, b, y;
} operands;

static operands make(const shape *c, uint64_t seed)
{
    operands t = {
        .x = OP_TEST_TENSOR(SL_F32, 2, c->S, c->I),
        .x_q = OP_TEST_TENSOR(SL_F8_E4M3, 2, c->S, c->I),
        .x_scale = OP_TEST_TENSOR(SL_F32, 2, c->I / SL_FP8_TILE, c->S),
        .w = OP_TEST_TENSOR(SL_BF16, 2, c->O, c->I),
        .w_q = OP_TEST_TENSOR(SL_F8_E4M3, 2, c->O, c->I),
        .w_scale = OP_TEST_TENSOR(SL_F32, 2, sl_ceil_div(c->O, SL_FP8_TILE), c->I / SL_FP8_TILE),
        .b = OP_TEST_TENSOR(c->b, 1, c->O),
        .y = OP_TEST_TENSOR(SL_F32, 2, c->S, c->O),
    };

    op_test_fill(&t.x, seed, 1.0f);
    op_test_fill(&t.w, seed + 1, 3.0f / sqrtf((float)(c->I + 1)));
    op_test_fill(&t.b, seed + 2, 0.5f);
    op_test_poison(&t.y);
    op_test_poison(&t.x_scale);
    op_test_poison(&t.w_scale);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->x);
    op_test_free(&t->x_q);
    op_test_free(&t->x_scale);
    op_test_free(&t->w);
    op_test_free(&t->w_q);
    op_test_free(&t->w_scale);
    op_test_free(&t->b);
    op_test_free(&t->y);
}

static void convert_weights(operands *t, const shape *c)
{
    for (int64_t o = 0; o < c->O; o += SL_FP8_TILE)
        sl_quantize_fp8_rows((uint8_t *)t->w_q.data + o * c->I,
                             (float *)t->w_scale.data + o / SL_FP8_TILE * t->w_scale.dim[1],
                             (uint16_t *)t->w.data + o * c->I,
                             c->O - o < SL_FP8_TILE ? c->O - o : SL_FP8_TILE, c->I);
}

static void run(op_test *r, operands *t, const shape *c)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    SL_CHECK_OK(sl_quantize_fp8_cpu(r->exec, &t->x_q, &t->x_scale, &t->x, err));
    convert_weights(t, c);
    SL_CHECK_OK(sl_linear_fp8_cpu(r->exec, &t->y, &t->x_q, &t->x_scale, &t->w_q, &t->w_scale,
                                  c->bias ? &t->b : NULL, c->act, err));
}

static double code(const sl_tensor *t, int64_t i)
{
    return (double)sl_e4m3_to_f32(((const uint8_t *)t->data)[i]);
}

/* No code is nearer to x / scale; what is left over is at most half a step. */
static void check_code(double x, double scale, double got)
{
    double best = INFINITY;

    for (int i = 0; i < 0x7f; i++)
        best = fmin(best, fabs(fabs(x / scale) - (double)sl_e4m3_to_f32((uint8_t)i)));
    SL_CHECK(fabs(x / scale - got) <= best * (1.0 + 1e-5) + 1e-5);
}

SL_TEST(codes_are_the_nearest)
{
    const shape c = { 3, 256, 130, SL_F32, false, SL_ACT_NONE };
    operands t = make(&c, 5);
    op_test r;

    op_test_open(&r, 2);
    run(&r, &t, &c);
    for (int64_t s = 0; s < c.S; s++) {
        for (int64_t k = 0; k < c.I; k++) {
            float amax = 0.0f;
            for (int64_t j = k / 128 * 128; j < (k / 128 + 1) * 128; j++)
                amax = fmaxf(amax, fabsf((float)op_test_get(&t.x, s * c.I + j)));
            const float scale = ((float *)t.x_scale.data)[k / 128 * c.S + s];
            SL_CHECK(scale == amax / 448.0f);
            check_code(op_test_get(&t.x, s * c.I + k), (double)scale, code(&t.x_q, s * c.I + k));
        }
    }
    for (int64_t o = 0; o < c.O; o += 43)
        for (int64_t k = 0; k < c.I; k++)
            check_code(op_test_get(&t.w, o * c.I + k),
                       (double)((float *)t.w_scale.data)[o / 128 * 2 + k / 128],
                       code(&t.w_q, o * c.I + k));
    drop(&t);
    op_test_close(&r);
}

static double act_f64(sl_act act, double v)
{
    const double pi = 3.14159265358979323846;

    if (act == SL_ACT_GELU_TANH)
        return 0.5 * v * (1.0 + tanh(sqrt(2.0 / pi) * (v + 0.044715 * v * v * v)));
    if (act == SL_ACT_SILU)
        return v / (1.0 + exp(-v));
    return v;
}

/* From the codes, in f64. */
static double element(const operands *t, const shape *c, int64_t s, int64_t o)
{
    double d = c->bias ? op_test_get(&t->b, o) : 0.0;

    for (int64_t k = 0; k < c->I; k++)
        d += code(&t->x_q, s * c->I + k) * code(&t->w_q, o * c->I + k) *
             (double)((float *)t->x_scale.data)[k / 128 * c->S + s] *
             (double)((float *)t->w_scale.data)[o / 128 * (c->I / 128) + k / 128];
    return act_f64(c->act, d);
}

SL_TEST(linear_matches_its_codes_in_f64)
{
    op_test r;

    op_test_open(&r, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t = make(c, i);
        double *want = malloc((size_t)(c->S * c->O + 1) * sizeof *want);

        SL_CHECK(want != NULL);
        run(&r, &t, c);
        for (int64_t k = 0; k < c->S * c->O; k++)
            want[k] = element(&t, c, k / c->O, k % c->O);
        SL_CHECK(op_test_rel_l2(&t.y, want) <= 1e-6);
        free(want);
        drop(&t);
    }
    op_test_close(&r);
}

/* Rounding twice to 3 bits of mantissa, of many products: some hundredths. */
SL_TEST(linear_is_near_the_unquantised)
{
    const shape c = { 64, 1536, 100, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 9);
    double *want = malloc((size_t)(c.S * c.O) * sizeof *want);
    op_test r;

    SL_CHECK(want != NULL);
    op_test_open(&r, 2);
    run(&r, &t, &c);
    for (int64_t k = 0; k < c.S * c.O; k++) {
        want[k] = op_test_get(&t.b, k % c.O);
        for (int64_t j = 0; j < c.I; j++)
            want[k] += op_test_get(&t.x, k / c.O * c.I + j) * op_test_get(&t.w, k % c.O * c.I + j);
    }
    SL_CHECK(op_test_rel_l2(&t.y, want) <= 0.05);
    free(want);
    drop(&t);
    op_test_close(&r);
}

SL_TEST(rows_alone_give_the_same_bytes)
{
    const shape c = { 200, 256, 70, SL_F32, true, SL_ACT_GELU_TANH }, one = { 1, 256, 70, 0, 0, 0 };
    operands t = make(&c, 3), single = make(&one, 3);
    op_test r;

    op_test_open(&r, 3);
    run(&r, &t, &c);
    for (int64_t s = 0; s < c.S; s += 33) {
        const sl_tensor x = sl_tensor_rows(&t.x, s, 1);
        sl_tensor b = t.b;

        SL_CHECK_OK(sl_quantize_fp8_cpu(r.exec, &single.x_q, &single.x_scale, &x, err));
        SL_CHECK_OK(sl_linear_fp8_cpu(r.exec, &single.y, &single.x_q, &single.x_scale, &t.w_q,
                                      &t.w_scale, &b, c.act, err));
        for (int64_t o = 0; o < c.O; o++)
            SL_CHECK(fabs(op_test_get(&single.y, o) - op_test_get(&t.y, s * c.O + o)) <=
                     1e-6 * (1.0 + fabs(op_test_get(&single.y, o))));
        SL_CHECK(memcmp(single.x_q.data, (uint8_t *)t.x_q.data + s * c.I, (size_t)c.I) == 0);
    }
    drop(&t);
    drop(&single);
    op_test_close(&r);
}

SL_TEST(not_a_number_reaches_its_row)
{
    const shape c = { 130, 256, 24, SL_F32, true, SL_ACT_NONE };
    const float bad[] = { NAN, INFINITY, -INFINITY };
    op_test r;

    op_test_open(&r, 2);
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        operands t = make(&c, 1);
        ((float *)t.x.data)[3 * c.I + 5] = bad[i];
        run(&r, &t, &c);
        for (int64_t k = 0; k < c.S * c.O; k++)
            SL_CHECK(isfinite(op_test_get(&t.y, k)) == (k / c.O != 3));
        drop(&t);
    }
    op_test_close(&r);
}

SL_TEST(weights_that_are_not_numbers_show)
{
    uint16_t x[2 * 256] = { 0 };
    uint8_t q[2 * 256];
    float scale[2];

    x[256 + 200] = 0x7fc0;
    sl_quantize_fp8_rows(q, scale, x, 2, 256);
    SL_CHECK(scale[0] == 1e-8f / 448.0f && isnan(scale[1]));
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 4, 256, 8, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 1);
    op_test r;

    op_test_open(&r, 1);
    const struct {
        sl_tensor y, x, xs, w, ws, b;
        sl_act act;
    } bad[] = {
        { t.y, sl_tensor_of(t.x_q.data, SL_F8_E4M3, 2, 4, 200), t.x_scale, t.w_q, t.w_scale, t.b,
          0 },
        { t.y, t.x, t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w, t.w_scale, t.b, 0 },
        { t.y, t.x_q, sl_tensor_of(t.x_scale.data, SL_F32, 2, 4, 2), t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, sl_tensor_of(t.w_scale.data, SL_F32, 2, 2, 1), t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, t.w_scale, sl_tensor_of(t.b.data, SL_F32, 1, 7), 0 },
        { t.x, t.x_q, t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, t.w_scale, t.b, (sl_act)9 },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++)
        SL_CHECK(sl_linear_fp8_cpu(r.exec, &bad[i].y, &bad[i].x, &bad[i].xs, &bad[i].w, &bad[i].ws,
                                   &bad[i].b, bad[i].act, err) == SL_ERR_INVALID);
    SL_CHECK(sl_quantize_fp8_cpu(r.exec, &t.x_q, &t.w_scale, &t.x, err) == SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&t.y));
    op_test_close(&r);
    drop(&t);
}

SL_TEST_MAIN(SL_RUN(codes_are_the_nearest), SL_RUN(linear_matches_its_codes_in_f64),
             SL_RUN(linear_is_near_the_unquantised), SL_RUN(rows_alone_give_the_same_bytes),
             SL_RUN(not_a_number_reaches_its_row), SL_RUN(weights_that_are_not_numbers_show),
             SL_RUN(refuses_what_the_contract_does_not_allow))
