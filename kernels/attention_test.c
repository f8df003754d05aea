#include "kernels/attention.h"

#include "base/clock.h"
#include "kernels/op_test.h"

#include <pthread.h>
#include <unistd.h>

typedef struct {
    int64_t Sq, Sk, N, D;
    bool bias;
    float spread; /* of q and k: how sharp the softmax is */
} shape;

static const shape shapes[] = {
    { 0, 5, 2, 32, false, 1.0f },      /* no queries */
    { 1, 1, 1, 4, false, 1.0f },       /* smallest */
    { 1, 700, 3, 64, true, 1.0f },     /* one query, two key blocks */
    { 257, 193, 2, 128, false, 1.0f }, /* ragged */
    { 65, 1025, 2, 32, true, 1.0f },   /* one past two key blocks */
    { 130, 514, 4, 64, true, 8.0f },   /* sharp: the maximum moves between blocks */
    { 300, 300, 1, 384, false, 1.0f }, /* the VAE's head */
    { 33, 40, 1, 512, false, 1.0f },   /* the largest head */
    { 40, 600, 2, 12, true, 30.0f },   /* scores in the thousands do not overflow */
};

typedef struct {
    sl_tensor q, k, v, o, bias;
} operands;

static operands make(const shape *c, uint64_t seed)
{
    const int64_t width = c->N * c->D;
    operands t = {
        .q = OP_TEST_TENSOR(SL_F32, 2, c->Sq, width),
        .k = OP_TEST_TENSOR(SL_F32, 2, c->Sk, width),
        .v = OP_TEST_TENSOR(SL_F32, 2, c->Sk, width),
        .o = OP_TEST_TENSOR(SL_F32, 2, c->Sq, width),
        .bias = OP_TEST_TENSOR(SL_F32, 2, c->N, c->Sq ? c->Sq + c->Sk - 1 : 0),
    };

    op_test_fill(&t.q, seed, c->spread);
    op_test_fill(&t.k, seed + 1, c->spread);
    op_test_fill(&t.v, seed + 2, 1.0f);
    op_test_fill(&t.bias, seed + 3, 2.0f);
    op_test_poison(&t.o);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->q);
    op_test_free(&t->k);
    op_test_free(&t->v);
    op_test_free(&t->o);
    op_test_free(&t->bias);
}

/* One query and head, all in f64. */
static void naive_row(double *o, const operands *t, const shape *c, int64_t q, int64_t n,
                      float scale, double *p)
{
    const int64_t width = c->N * c->D;
    double top = -INFINITY, sum = 0.0;

    for (int64_t k = 0; k < c->Sk; k++) {
        p[k] = 0.0;
        for (int64_t d = 0; d < c->D; d++)
            p[k] += op_test_get(&t->q, q * width + n * c->D + d) *
                    op_test_get(&t->k, k * width + n * c->D + d);
        p[k] *= (double)scale;
        if (c->bias)
            p[k] += op_test_get(&t->bias, n * (c->Sq + c->Sk - 1) + k - q + c->Sq - 1);
        top = p[k] > top ? p[k] : top;
    }
    for (int64_t k = 0; k < c->Sk; k++)
        sum += p[k] = exp(p[k] - top);
    for (int64_t d = 0; d < c->D; d++) {
        o[d] = 0.0;
        for (int64_t k = 0; k < c->Sk; k++)
            o[d] += p[k] / sum * op_test_get(&t->v, k * width + n * c->D + d);
    }
}

static double *naive(const operands *t, const shape *c, float scale)
{
    double *o = calloc((size_t)(c->Sq * c->N * c->D + 1), sizeof *o);
    double *p = calloc((size_t)c->Sk, sizeof *p);

    SL_CHECK(o != NULL && p != NULL);
    for (int64_t q = 0; q < c->Sq; q++)
        for (int64_t n = 0; n < c->N; n++)
            naive_row(o + (q * c->N + n) * c->D, t, c, q, n, scale, p);
    free(p);
    return o;
}

static float usual_scale(const shape *c)
{
    return 1.0f / sqrtf((float)c->D);
}

SL_TEST(matches_f64)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t = make(c, i);
        double *want = naive(&t, c, usual_scale(c));

        SL_CHECK_OK(sl_attention_cpu(run.exec, &t.o, &t.q, &t.k, &t.v, c->bias ? &t.bias : NULL,
                                     c->N, usual_scale(c), err));
        /* exp turns the rounding of a score s into s * 6e-8 of its weight. */
        SL_CHECK(op_test_rel_l2(&t.o, want) < 2e-6 * (double)(1.0f + c->spread * c->spread));
        free(want);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(output_may_be_the_queries)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t = make(c, i);
        const sl_tensor *bias = c->bias ? &t.bias : NULL;

        SL_CHECK_OK(
            sl_attention_cpu(run.exec, &t.o, &t.q, &t.k, &t.v, bias, c->N, usual_scale(c), err));
        SL_CHECK_OK(
            sl_attention_cpu(run.exec, &t.q, &t.q, &t.k, &t.v, bias, c->N, usual_scale(c), err));
        SL_CHECK(memcmp(t.o.data, t.q.data, sl_tensor_bytes(&t.o)) == 0);
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
        const shape *c = &shapes[i];
        operands a = make(c, i), b = make(c, i);

        SL_CHECK_OK(sl_attention_cpu(one.exec, &a.o, &a.q, &a.k, &a.v, NULL, c->N, 0.1f, err));
        SL_CHECK_OK(sl_attention_cpu(three.exec, &b.o, &b.q, &b.k, &b.v, NULL, c->N, 0.1f, err));
        SL_CHECK(memcmp(a.o.data, b.o.data, sl_tensor_bytes(&a.o)) == 0);
        drop(&a);
        drop(&b);
    }
    op_test_close(&three);
    op_test_close(&one);
}

SL_TEST(not_a_number_goes_through)
{
    const shape c = { 20, 600, 2, 32, false, 1.0f };
    operands t = make(&c, 1);
    op_test run;

    op_test_open(&run, 1);
    ((float *)t.q.data)[7 * 64 + 40] = NAN; /* query 7, head 1 */
    SL_CHECK_OK(sl_attention_cpu(run.exec, &t.o, &t.q, &t.k, &t.v, NULL, 2, 0.1f, err));
    for (int64_t i = 0; i < 20 * 64; i++)
        SL_CHECK(isnan(op_test_get(&t.o, i)) == (i / 32 == 15));
    op_test_close(&run);
    drop(&t);
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 6, 9, 2, 8, true, 1.0f };
    operands t = make(&c, 1);
    op_test run;

    op_test_open(&run, 1);
    const struct {
        sl_tensor o, q, k, v, bias;
        int64_t N;
        float scale;
    } bad[] = {
        { t.o, t.q, t.k, t.v, t.bias, 0, 1.0f },
        { t.o, t.q, t.k, t.v, t.bias, 3, 1.0f },
        { t.o, t.q, t.k, t.v, t.bias, 8, 1.0f }, /* heads of 2 */
        { t.o, t.q, t.k, t.v, t.bias, 2, NAN },
        { t.o, t.q, sl_tensor_rows(&t.k, 0, 0), sl_tensor_rows(&t.v, 0, 0), t.bias, 2, 1.0f },
        { t.o, t.q, t.k, sl_tensor_rows(&t.v, 0, 8), t.bias, 2, 1.0f },
        { sl_tensor_rows(&t.o, 0, 5), t.q, t.k, t.v, t.bias, 2, 1.0f },
        { t.o, t.q, t.k, t.v, sl_tensor_of(t.bias.data, SL_F32, 2, 2, 13), 2, 1.0f },
        { t.o, t.q, sl_tensor_of(t.k.data, SL_BF16, 2, 9, 16), t.v, t.bias, 2, 1.0f },
        { t.o, t.q, t.o, t.o, t.bias, 2, 1.0f },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_attention_cpu(run.exec, &bad[i].o, &bad[i].q, &bad[i].k, &bad[i].v,
                                         &bad[i].bias, bad[i].N, bad[i].scale, err),
                        SL_ERR_INVALID);
        SL_CHECK(op_test_is_poison(&t.o));
    }
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
    const shape c = { 16384, 16384, 4, 64, false, 1.0f };
    operands t = make(&c, 1);
    pthread_t thread;
    op_test run;

    op_test_open(&run, 2);
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &run.cancel) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_attention_cpu(run.exec, &t.o, &t.q, &t.k, &t.v, NULL, 4, 0.1f, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(sl_clock_now_ns() - start_ns < 230 * SL_NS_PER_MS);
    SL_CHECK(pthread_join(thread, NULL) == 0);
    op_test_close(&run);
    drop(&t);
}

/* Tiles of 256 queries on 65536 keys take far longer than the 30 ms until the
 * word is set, and write only at their end: none may have got there. */
SL_TEST(cancel_is_seen_inside_a_tile)
{
    sl_tensor q = OP_TEST_TENSOR(SL_F32, 2, 12288, 512), o = OP_TEST_TENSOR(SL_F32, 2, 12288, 512);
    sl_tensor kv = OP_TEST_TENSOR(SL_F32, 2, 65536, 512);
    pthread_t thread;
    op_test run;

    op_test_poison(&o);
    op_test_open(&run, 2);
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &run.cancel) == 0);
    SL_CHECK_STATUS(sl_attention_cpu(run.exec, &o, &q, &kv, &kv, NULL, 1, 0.1f, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(op_test_is_poison(&o));
    SL_CHECK(pthread_join(thread, NULL) == 0);
    op_test_close(&run);
    op_test_free(&q);
    op_test_free(&o);
    op_test_free(&kv);
}

SL_TEST_MAIN(SL_RUN(matches_f64), SL_RUN(output_may_be_the_queries),
             SL_RUN(same_bytes_for_any_number_of_threads), SL_RUN(not_a_number_goes_through),
             SL_RUN(refuses_what_the_contract_does_not_allow), SL_RUN(cancel_stops_it),
             SL_RUN(cancel_is_seen_inside_a_tile))
