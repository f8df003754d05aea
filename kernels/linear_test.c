#include "kernels/linear.h"

#include "base/clock.h"
#include "kernels/op_test.h"

#include <pthread.h>
#include <unistd.h>

typedef struct {
    int64_t S, I, O;
    sl_dtype w, b;
    bool bias;
    sl_act act;
} shape;

static const shape shapes[] = {
    { 0, 12, 8, SL_F32, SL_F32, true, SL_ACT_NONE },           /* no rows */
    { 1, 1, 1, SL_F32, SL_F32, false, SL_ACT_NONE },           /* smallest */
    { 1, 256, 1536, SL_F32, SL_F32, true, SL_ACT_SILU },       /* time embedding */
    { 1, 1536, 9216, SL_BF16, SL_BF16, true, SL_ACT_NONE },    /* time projection */
    { 7, 333, 65, SL_BF16, SL_F32, true, SL_ACT_GELU_TANH },   /* most rows without the library */
    { 8, 333, 65, SL_BF16, SL_F32, true, SL_ACT_GELU_TANH },   /* fewest with it */
    { 257, 193, 130, SL_F32, SL_F32, true, SL_ACT_GELU_TANH }, /* ragged */
    { 257, 1537, 193, SL_BF16, SL_BF16, true, SL_ACT_SILU },   /* ragged, three steps over I */
    { 1025, 64, 513, SL_F32, SL_BF16, true, SL_ACT_NONE },     /* one past the tile */
    { 64, 13824, 33, SL_BF16, SL_F32, false, SL_ACT_NONE },    /* Wan 14B's longest sum */
    { 5, 0, 7, SL_F32, SL_F32, true, SL_ACT_NONE },            /* an empty sum is the bias */
};

static double act_f64(sl_act act, double v)
{
    const double pi = 3.14159265358979323846;

    if (act == SL_ACT_GELU_TANH)
        return 0.5 * v * (1.0 + tanh(sqrt(2.0 / pi) * (v + 0.044715 * v * v * v)));
    if (act == SL_ACT_SILU)
        return v / (1.0 + exp(-v));
    return v;
}

static double *naive(const sl_tensor *x, const sl_tensor *w, const sl_tensor *b, sl_act act)
{
    const int64_t S = x->dim[0], I = x->dim[1], O = w->dim[0];
    double *y = calloc((size_t)(S * O + 1), sizeof *y);

    SL_CHECK(y != NULL);
    for (int64_t s = 0; s < S; s++) {
        for (int64_t o = 0; o < O; o++) {
            double sum = b ? op_test_get(b, o) : 0.0;
            for (int64_t i = 0; i < I; i++)
                sum += op_test_get(x, s * I + i) * op_test_get(w, o * I + i);
            y[s * O + o] = act_f64(act, sum);
        }
    }
    return y;
}

typedef struct {
    sl_tensor x, w, b, y;
} operands;

static operands make(const shape *c, uint64_t seed)
{
    operands t = {
        .x = OP_TEST_TENSOR(SL_F32, 2, c->S, c->I),
        .w = OP_TEST_TENSOR(c->w, 2, c->O, c->I),
        .b = OP_TEST_TENSOR(c->b, 1, c->O),
        .y = OP_TEST_TENSOR(SL_F32, 2, c->S, c->O),
    };

    op_test_fill(&t.x, seed, 1.0f);
    op_test_fill(&t.w, seed + 1, 3.0f / sqrtf((float)(c->I + 1)));
    op_test_fill(&t.b, seed + 2, 0.5f);
    op_test_poison(&t.y);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->x);
    op_test_free(&t->w);
    op_test_free(&t->b);
    op_test_free(&t->y);
}

SL_TEST(matches_f64)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t = make(c, i);
        const sl_tensor *b = c->bias ? &t.b : NULL;
        double *want = naive(&t.x, &t.w, b, c->act);

        SL_CHECK_OK(sl_linear_cpu(run.exec, &t.y, &t.x, &t.w, b, c->act, err));
        /* f32 sums of up to 13824 terms in blocks: far below 1e-5. */
        SL_CHECK(op_test_rel_l2(&t.y, want) < 2e-6);
        free(want);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(same_bytes_for_any_number_of_threads)
{
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands a = make(&shapes[i], i), b = make(&shapes[i], i);
        SL_CHECK_OK(sl_linear_cpu(one.exec, &a.y, &a.x, &a.w, &a.b, shapes[i].act, err));
        SL_CHECK_OK(sl_linear_cpu(three.exec, &b.y, &b.x, &b.w, &b.b, shapes[i].act, err));
        SL_CHECK(memcmp(a.y.data, b.y.data, sl_tensor_bytes(&a.y)) == 0);
        drop(&a);
        drop(&b);
    }
    op_test_close(&three);
    op_test_close(&one);
}

SL_TEST(not_a_number_goes_through)
{
    const shape c = { 40, 64, 24, SL_BF16, SL_F32, true, SL_ACT_GELU_TANH };
    operands t = make(&c, 1);
    op_test run;

    op_test_open(&run, 2);
    ((float *)t.x.data)[3 * c.I + 5] = NAN;
    SL_CHECK_OK(sl_linear_cpu(run.exec, &t.y, &t.x, &t.w, &t.b, c.act, err));
    for (int64_t i = 0; i < c.S * c.O; i++)
        SL_CHECK(isnan(op_test_get(&t.y, i)) == (i / c.O == 3));
    op_test_close(&run);
    drop(&t);
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 4, 12, 8, SL_F32, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 1);
    op_test run;

    op_test_open(&run, 1);
    const struct {
        sl_tensor y, x, w, b;
        sl_act act;
    } bad[] = {
        { t.y, t.x, sl_tensor_of(t.w.data, SL_F32, 2, 8, 11), t.b, SL_ACT_NONE },
        { t.y, t.x, sl_tensor_of(t.w.data, SL_F32, 1, 96), t.b, SL_ACT_NONE },
        { t.y, t.x, sl_tensor_of(t.w.data, SL_F16, 2, 8, 12), t.b, SL_ACT_NONE },
        { t.y, sl_tensor_of(t.x.data, SL_F16, 2, 4, 12), t.w, t.b, SL_ACT_NONE },
        { t.y, t.x, t.w, sl_tensor_of(t.b.data, SL_F32, 1, 7), SL_ACT_NONE },
        { sl_tensor_of(t.y.data, SL_F32, 2, 3, 8), t.x, t.w, t.b, SL_ACT_NONE },
        { sl_tensor_of(t.y.data, SL_F64, 2, 4, 8), t.x, t.w, t.b, SL_ACT_NONE },
        { t.y, t.x, t.w, t.b, (sl_act)17 },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(
            sl_linear_cpu(run.exec, &bad[i].y, &bad[i].x, &bad[i].w, &bad[i].b, bad[i].act, err),
            SL_ERR_INVALID);
        SL_CHECK(op_test_is_poison(&t.y));
    }
    const sl_tensor inside = sl_tensor_of((float *)t.x.data + 8, SL_F32, 2, 4, 8);
    SL_CHECK_STATUS(sl_linear_cpu(run.exec, &inside, &t.x, &t.w, &t.b, SL_ACT_NONE, err),
                    SL_ERR_INVALID);
    op_test_close(&run);
    drop(&t);
}

SL_TEST(counting_reads_nothing)
{
    const sl_tensor x = sl_tensor_of(NULL, SL_F32, 2, 4, 12),
                    w = sl_tensor_of(NULL, SL_BF16, 2, 8, 12);
    const sl_tensor y = sl_tensor_of(NULL, SL_F32, 2, 4, 8),
                    bad = sl_tensor_of(NULL, SL_F32, 2, 4, 9);
    sl_exec *exec;

    SL_CHECK_OK(sl_exec_create_counting(&exec, NULL, err));
    SL_CHECK_OK(sl_linear_check(exec, &y, &x, &w, NULL, SL_ACT_NONE, err));
    SL_CHECK_STATUS(sl_linear_check(exec, &bad, &x, &w, NULL, SL_ACT_NONE, err), SL_ERR_INVALID);
    sl_exec_destroy(exec);
}

static void *cancel_soon(void *arg)
{
    usleep(30000);
    atomic_store((atomic_uint *)arg, 1);
    return NULL;
}

SL_TEST(cancel_stops_it)
{
    const shape c = { 4096, 4096, 4096, SL_BF16, SL_F32, true, SL_ACT_NONE };
    operands t = make(&c, 1);
    pthread_t thread;
    op_test run;

    op_test_open(&run, 2);
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &run.cancel) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_linear_cpu(run.exec, &t.y, &t.x, &t.w, &t.b, c.act, err), SL_ERR_CANCELLED);
    SL_CHECK(sl_clock_now_ns() - start_ns < 230 * SL_NS_PER_MS);
    SL_CHECK(pthread_join(thread, NULL) == 0);

    op_test_poison(&t.y);
    SL_CHECK_STATUS(sl_linear_cpu(run.exec, &t.y, &t.x, &t.w, &t.b, c.act, err), SL_ERR_CANCELLED);
    SL_CHECK(op_test_is_poison(&t.y));
    op_test_close(&run);
    drop(&t);
}

SL_TEST_MAIN(SL_RUN(matches_f64), SL_RUN(same_bytes_for_any_number_of_threads),
             SL_RUN(not_a_number_goes_through), SL_RUN(refuses_what_the_contract_does_not_allow),
             SL_RUN(counting_reads_nothing), SL_RUN(cancel_stops_it))
