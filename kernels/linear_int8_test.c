#include "kernels/linear_int8.h"

#include "base/clock.h"
#include "kernels/gemm_int8.h"
#include "kernels/op_test.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

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
    { 7, 256, 130, SL_BF16, true, SL_ACT_SILU },      /* every number of rows left over */
    { 130, 384, 65, SL_F32, true, SL_ACT_GELU_TANH }, /* two tiles of rows, the last of 2 */
    { 515, 256, 193, SL_BF16, true, SL_ACT_NONE },    /* one past the largest tile */
    { 140, 13824, 33, SL_F32, false, SL_ACT_NONE },   /* Wan 14B's longest sum */
};

typedef struct {
    sl_tensor x, x_q, x_scale, w, w_q, w_scale, b, y;
} operands;

static sl_tensor make_scale(const sl_tensor *of)
{
    return OP_TEST_TENSOR(SL_F32, 2, sl_ceil_div(of->dim[0], SL_INT8_TILE),
                          sl_ceil_div(of->dim[1], SL_INT8_TILE));
}

static operands make(const shape *c, uint64_t seed)
{
    operands t = {
        .x = OP_TEST_TENSOR(SL_F32, 2, c->S, c->I),
        .x_q = OP_TEST_TENSOR(SL_I8, 2, c->S, c->I),
        .w = OP_TEST_TENSOR(SL_BF16, 2, c->O, c->I),
        .w_q = OP_TEST_TENSOR(SL_I8, 2, c->O, c->I),
        .b = OP_TEST_TENSOR(c->b, 1, c->O),
        .y = OP_TEST_TENSOR(SL_F32, 2, c->S, c->O),
    };

    t.x_scale = make_scale(&t.x);
    t.w_scale = make_scale(&t.w);
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

static float bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

/* The rule of wan.md 6 written down once more, with libm's rounding. */
static void check_codes(const sl_tensor *x, const sl_tensor *q, const sl_tensor *scale)
{
    const int64_t R = x->dim[0], C = x->dim[1], tile = SL_INT8_TILE;

    for (int64_t r0 = 0; r0 < R; r0 += tile) {
        for (int64_t c0 = 0; c0 < C; c0 += tile) {
            float amax = 1e-8f;
            for (int64_t r = r0; r < R && r < r0 + tile; r++)
                for (int64_t c = c0; c < C && c < c0 + tile; c++)
                    amax = fmaxf(amax, fabsf(bf16((float)op_test_get(x, r * C + c))));
            SL_CHECK(((float *)scale->data)[r0 / tile * scale->dim[1] + c0 / tile] ==
                     amax / 128.0f);
            for (int64_t r = r0; r < R && r < r0 + tile; r++)
                for (int64_t c = c0; c < C && c < c0 + tile; c++) {
                    const float v = bf16((float)op_test_get(x, r * C + c)) * (128.0f / amax);
                    const float code = fminf(127.0f, fmaxf(-128.0f, rintf(v)));
                    SL_CHECK((float)((int8_t *)q->data)[r * C + c] == code);
                }
        }
    }
}

/* By rows of tiles: the same codes and scales. */
static void check_rows(const sl_tensor *x, const sl_tensor *q, const sl_tensor *scale)
{
    const int64_t C = x->dim[1];
    sl_tensor again = OP_TEST_TENSOR(SL_I8, 2, x->dim[0], C), scales = make_scale(x);
    void *space = malloc(SL_QUANTIZE_INT8_SPACE_BYTES);

    SL_CHECK(space != NULL);
    for (int64_t r = 0; r < x->dim[0]; r += SL_INT8_TILE) {
        const int64_t left = x->dim[0] - r;
        sl_quantize_int8_rows(
            (int8_t *)again.data + r * C, (float *)scales.data + r / SL_INT8_TILE * scales.dim[1],
            (uint16_t *)x->data + r * C, left < SL_INT8_TILE ? left : SL_INT8_TILE, C, space);
    }
    SL_CHECK(memcmp(again.data, q->data, sl_tensor_bytes(q)) == 0);
    SL_CHECK(memcmp(scales.data, scale->data, sl_tensor_bytes(scale)) == 0);
    free(space);
    op_test_free(&again);
    op_test_free(&scales);
}

SL_TEST(codes_follow_the_rule)
{
    static const struct {
        int64_t R, C;
        float scale;
    } sizes[] = { { 128, 128, 1.0f },
                  { 1, 1, 3.0f },
                  { 300, 200, 100.0f },
                  { 129, 257, 1e-3f },
                  { 5, 130, 1e-10f } /* below the least amax */,
                  { 0, 7, 1.0f } };
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        for (int bf = 0; bf < 2; bf++) {
            sl_tensor x = OP_TEST_TENSOR(bf ? SL_BF16 : SL_F32, 2, sizes[i].R, sizes[i].C);
            sl_tensor q = OP_TEST_TENSOR(SL_I8, 2, sizes[i].R, sizes[i].C);
            sl_tensor scale = make_scale(&x);

            op_test_fill(&x, i, sizes[i].scale);
            op_test_poison(&scale);
            SL_CHECK_OK(sl_quantize_int8_cpu(run.exec, &q, &scale, &x, err));
            check_codes(&x, &q, &scale);
            if (bf)
                check_rows(&x, &q, &scale);
            op_test_free(&x);
            op_test_free(&q);
            op_test_free(&scale);
        }
    }
    op_test_close(&run);
}

/* The largest code is 127 for the positive maximum and -128 for the negative. */
SL_TEST(both_ends_of_the_range)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 2, 1, 8), q = OP_TEST_TENSOR(SL_I8, 2, 1, 8);
    sl_tensor scale = OP_TEST_TENSOR(SL_F32, 2, 1, 1);
    static const float values[8] = { 128, -128, 127.5f, 126.5f, 0.5f, 1.5f, -0.5f, -2.5f };
    static const int8_t codes[8] = { 127, -128, 127, 126, 0, 2, 0, -2 };
    op_test run;

    op_test_open(&run, 1);
    memcpy(x.data, values, sizeof values);
    SL_CHECK_OK(sl_quantize_int8_cpu(run.exec, &q, &scale, &x, err));
    SL_CHECK(memcmp(q.data, codes, sizeof codes) == 0);
    SL_CHECK(((float *)scale.data)[0] == 1.0f);
    op_test_free(&x);
    op_test_free(&q);
    op_test_free(&scale);
    op_test_close(&run);
}

/* Exact sums in i64, then f32 as the contract says. */
static float element(const operands *t, const shape *c, int64_t s, int64_t o)
{
    const int8_t *x = (int8_t *)t->x_q.data + s * c->I, *w = (int8_t *)t->w_q.data + o * c->I;
    const int64_t steps = c->I / SL_INT8_TILE;
    float d = 0.0f;

    for (int64_t step = 0; step < steps; step++) {
        const float by = ((float *)t->x_scale.data)[s / SL_INT8_TILE * steps + step] *
                         ((float *)t->w_scale.data)[o / SL_INT8_TILE * steps + step];
        int64_t sum = 0;
        for (int64_t k = step * SL_INT8_TILE; k < (step + 1) * SL_INT8_TILE; k++)
            sum += x[k] * w[k];
        d = d + (float)sum * by;
    }
    d = bf16(d);
    return c->bias ? bf16(d + bf16((float)op_test_get(&t->b, o))) : d;
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

static void run_both(op_test *run, operands *t, const shape *c)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    SL_CHECK_OK(sl_quantize_int8_cpu(run->exec, &t->x_q, &t->x_scale, &t->x, err));
    SL_CHECK_OK(sl_quantize_int8_cpu(run->exec, &t->w_q, &t->w_scale, &t->w, err));
    SL_CHECK_OK(sl_linear_int8_cpu(run->exec, &t->y, &t->x_q, &t->x_scale, &t->w_q, &t->w_scale,
                                   c->bias ? &t->b : NULL, c->act, err));
}

SL_TEST(linear_matches_the_integer_oracle)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t = make(c, i);

        run_both(&run, &t, c);
        for (int64_t s = 0; s < c->S; s++)
            for (int64_t o = 0; o < c->O; o++) {
                const double want = act_f64(c->act, (double)element(&t, c, s, o));
                const double got = op_test_get(&t.y, s * c->O + o);
                /* without act every bit is given by the contract */
                SL_CHECK(fabs(got - want) <=
                         (c->act == SL_ACT_NONE ? 0.0 : 1e-6 * fabs(want) + 1e-12));
            }
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(every_kernel_gives_the_same_bits)
{
    enum { ROWS = 300, LD = 160 };
    static int8_t x[ROWS * LD], w[128 * LD];
    static float plain[ROWS * 128], vnni[ROWS * 128];
    const float scale[3] = { 0.37f, 1e-3f, 2.5f };
    void *space = aligned_alloc(64, SL_GEMM_INT8_SPACE_BYTES);
    uint64_t state = 1;

    if (!sl_gemm_int8_has_vnni())
        SL_SKIP("this processor has no avx512vnni");
    SL_CHECK(space != NULL);
    for (size_t i = 0; i < sizeof x; i++)
        x[i] = (int8_t)((state = state * 6364136223846793005u + 1) >> 56);
    for (size_t i = 0; i < sizeof w; i++)
        w[i] = (int8_t)((state = state * 6364136223846793005u + 1) >> 56);
    memset(x, -128, LD); /* the largest sums that there are */
    memset(w, -128, LD);
    for (int64_t rows = 1; rows <= ROWS; rows += rows < 15 ? 1 : 57) {
        for (int64_t cols = 1; cols <= 128; cols += cols == 1 ? 63 : 32) {
            for (int64_t i = 0; i < ROWS * 128; i++)
                plain[i] = vnni[i] = (float)i;
            sl_gemm_int8_plain(plain, x, LD, w, LD, rows, cols, scale, space);
            sl_gemm_int8_vnni(vnni, x, LD, w, LD, rows, cols, scale, space);
            for (int64_t r = 0; r < ROWS; r++)
                SL_CHECK(memcmp(plain + r * 128, vnni + r * 128, (size_t)cols * sizeof(float)) ==
                         0);
        }
    }
    free(space);
}

SL_TEST(same_bytes_for_any_number_of_threads)
{
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands a = make(&shapes[i], i), b = make(&shapes[i], i);
        run_both(&one, &a, &shapes[i]);
        run_both(&three, &b, &shapes[i]);
        SL_CHECK(memcmp(a.y.data, b.y.data, sl_tensor_bytes(&a.y)) == 0);
        drop(&a);
        drop(&b);
    }
    op_test_close(&three);
    op_test_close(&one);
}

SL_TEST(not_a_number_reaches_its_tile)
{
    const shape c = { 130, 256, 24, SL_F32, true, SL_ACT_NONE };
    const float bad[] = { NAN, INFINITY, -INFINITY };
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        operands t = make(&c, 1);
        ((float *)t.x.data)[3 * c.I + 5] = bad[i];
        run_both(&run, &t, &c);
        for (int64_t k = 0; k < c.S * c.O; k++)
            SL_CHECK(isfinite(op_test_get(&t.y, k)) == (k / c.O >= SL_INT8_TILE));
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 4, 256, 8, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 1);
    op_test run;

    op_test_open(&run, 1);
    const struct {
        sl_tensor y, x, xs, w, ws, b;
        sl_act act;
    } bad[] = {
        { t.y, sl_tensor_of(t.x_q.data, SL_I8, 2, 4, 200), t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x, t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, sl_tensor_of(t.w_q.data, SL_I8, 2, 8, 128), t.w_scale, t.b, 0 },
        { t.y, t.x_q, sl_tensor_of(t.x_scale.data, SL_F32, 2, 1, 1), t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, sl_tensor_of(t.w_scale.data, SL_F32, 2, 2, 1), t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, t.w_scale, sl_tensor_of(t.b.data, SL_F32, 1, 7), 0 },
        { sl_tensor_of(t.y.data, SL_F32, 2, 4, 7), t.x_q, t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { sl_tensor_of(t.x_q.data, SL_F32, 2, 4, 8), t.x_q, t.x_scale, t.w_q, t.w_scale, t.b, 0 },
        { t.y, t.x_q, t.x_scale, t.w_q, t.w_scale, t.b, (sl_act)17 },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_linear_int8_cpu(run.exec, &bad[i].y, &bad[i].x, &bad[i].xs, &bad[i].w,
                                           &bad[i].ws, &bad[i].b, bad[i].act, err),
                        SL_ERR_INVALID);
        SL_CHECK(op_test_is_poison(&t.y));
    }
    const sl_tensor small = sl_tensor_of(t.x_q.data, SL_I8, 2, 4, 255);
    const sl_tensor scales = sl_tensor_of(t.x_scale.data, SL_F32, 2, 1, 3);
    SL_CHECK_STATUS(sl_quantize_int8_cpu(run.exec, &small, &t.x_scale, &t.x, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_quantize_int8_cpu(run.exec, &t.x_q, &scales, &t.x, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_quantize_int8_cpu(run.exec, &t.x_q, &t.x_scale, &t.x_q, err),
                    SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&t.x_scale));
    op_test_close(&run);
    drop(&t);
}

static void *cancel_soon(void *arg)
{
    usleep(30000);
    atomic_store((atomic_uint *)arg, 1);
    return NULL;
}

SL_TEST(cancel_stops_it)
{
    const shape c = { 4096, 4096, 4096, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 1);
    pthread_t thread;
    op_test run;

    op_test_open(&run, 2);
    SL_CHECK_OK(sl_quantize_int8_cpu(run.exec, &t.x_q, &t.x_scale, &t.x, err));
    SL_CHECK_OK(sl_quantize_int8_cpu(run.exec, &t.w_q, &t.w_scale, &t.w, err));
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &run.cancel) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_linear_int8_cpu(run.exec, &t.y, &t.x_q, &t.x_scale, &t.w_q, &t.w_scale, &t.b,
                                       c.act, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(sl_clock_now_ns() - start_ns < 230 * SL_NS_PER_MS);
    SL_CHECK(pthread_join(thread, NULL) == 0);
    op_test_close(&run);
    drop(&t);
}

SL_TEST_MAIN(SL_RUN(codes_follow_the_rule), SL_RUN(both_ends_of_the_range),
             SL_RUN(linear_matches_the_integer_oracle), SL_RUN(every_kernel_gives_the_same_bits),
             SL_RUN(same_bytes_for_any_number_of_threads), SL_RUN(not_a_number_reaches_its_tile),
             SL_RUN(refuses_what_the_contract_does_not_allow), SL_RUN(cancel_stops_it))
