#include "kernels/elementwise.h"

#include "kernels/op_test.h"

static const int64_t sizes[] = { 0, 1, 3, 17, 1000, 65536, 65537, 200001 };

typedef struct {
    sl_tensor a, b, y;
} operands;

static operands make(int64_t count, sl_dtype b)
{
    operands t = {
        .a = OP_TEST_TENSOR(SL_F32, 1, count),
        .b = OP_TEST_TENSOR(b, 1, count),
        .y = OP_TEST_TENSOR(SL_F32, 1, count),
    };

    op_test_fill(&t.a, 1, 5.0f);
    op_test_fill(&t.b, 2, 3.0f);
    op_test_poison(&t.y);
    return t;
}

static void drop(operands *t)
{
    op_test_free(&t->a);
    op_test_free(&t->b);
    op_test_free(&t->y);
}

/* y holds f32(want(a, b)) exactly. */
static void check_exact(const operands *x, double (*want)(double, double))
{
    for (int64_t i = 0; i < sl_tensor_count(&x->y); i++)
        SL_CHECK(((const float *)x->y.data)[i] ==
                 (float)want(op_test_get(&x->a, i), op_test_get(&x->b, i)));
}

static double sum(double a, double b)
{
    return a + b;
}

static double product(double a, double b)
{
    return a * b;
}

SL_TEST(add_and_mul_round_once)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        operands x = make(sizes[i], SL_F32), h = make(sizes[i], SL_BF16);
        SL_CHECK_OK(sl_add_cpu(t.exec, &x.y, &x.a, &x.b, err));
        check_exact(&x, sum);
        SL_CHECK_OK(sl_add_cpu(t.exec, &h.y, &h.a, &h.b, err));
        check_exact(&h, sum);
        SL_CHECK_OK(sl_mul_cpu(t.exec, &x.y, &x.a, &x.b, err));
        check_exact(&x, product);
        drop(&x);
        drop(&h);
    }
    op_test_close(&t);
}

SL_TEST(add_and_mul_in_place)
{
    const size_t size_bytes = 70000 * sizeof(float);
    operands x = make(70000, SL_F32), z = make(70000, SL_F32);
    op_test t;

    op_test_open(&t, 3);
    SL_CHECK_OK(sl_add_cpu(t.exec, &x.y, &x.a, &x.b, err));
    SL_CHECK_OK(sl_add_cpu(t.exec, &z.a, &z.a, &z.b, err));
    SL_CHECK(memcmp(z.a.data, x.y.data, size_bytes) == 0);
    SL_CHECK_OK(sl_mul_cpu(t.exec, &x.y, &x.a, &x.b, err));
    SL_CHECK_OK(sl_mul_cpu(t.exec, &x.b, &x.a, &x.b, err));
    SL_CHECK(memcmp(x.b.data, x.y.data, size_bytes) == 0);
    op_test_close(&t);
    drop(&x);
    drop(&z);
}

SL_TEST(gated_add_uses_a_gate_for_each_channel)
{
    static const struct {
        int64_t S, C;
    } shapes[] = { { 0, 8 }, { 4, 0 }, { 1, 1 }, { 5, 333 }, { 100, 1536 }, { 2, 70000 } };
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const int64_t S = shapes[i].S, C = shapes[i].C;
        sl_tensor x = OP_TEST_TENSOR(SL_F32, 2, S, C), was = OP_TEST_TENSOR(SL_F32, 2, S, C);
        sl_tensor y = OP_TEST_TENSOR(SL_F32, 2, S, C), gate = OP_TEST_TENSOR(SL_F32, 1, C);
        op_test_fill(&x, 1, 1.0f);
        op_test_fill(&was, 1, 1.0f);
        op_test_fill(&y, 2, 1.0f);
        op_test_fill(&gate, 3, 1.0f);
        SL_CHECK_OK(sl_gated_add_cpu(t.exec, &x, &y, &gate, err));
        for (int64_t k = 0; k < S * C; k++) {
            const float scaled = ((float *)y.data)[k] * ((float *)gate.data)[k % C];
            SL_CHECK(((float *)x.data)[k] == ((float *)was.data)[k] + scaled);
        }
        op_test_free(&x);
        op_test_free(&was);
        op_test_free(&y);
        op_test_free(&gate);
    }
    op_test_close(&t);
}

SL_TEST(silu_is_right_to_some_ulp)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        operands x = make(sizes[i], SL_F32);
        op_test_fill(&x.a, 3, i % 2 ? 10.0f : 100.0f);
        SL_CHECK_OK(sl_silu_cpu(t.exec, &x.y, &x.a, err));
        for (int64_t k = 0; k < sizes[i]; k++) {
            const double v = op_test_get(&x.a, k), want = v / (1.0 + exp(-v));
            SL_CHECK(fabs(op_test_get(&x.y, k) - want) <= 4 * 0x1p-24 * fabs(want) + 1e-36);
        }
        SL_CHECK_OK(sl_silu_cpu(t.exec, &x.a, &x.a, err));
        SL_CHECK(memcmp(x.a.data, x.y.data, sl_tensor_bytes(&x.y)) == 0);
        drop(&x);
    }
    op_test_close(&t);
}

SL_TEST(silu_at_the_ends)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 1, 5);
    float *v = x.data;
    op_test t;

    v[0] = 0.0f, v[1] = -1e30f, v[2] = 1e30f, v[3] = NAN, v[4] = INFINITY;
    op_test_open(&t, 1);
    SL_CHECK_OK(sl_silu_cpu(t.exec, &x, &x, err));
    SL_CHECK(v[0] == 0.0f && fabsf(v[1]) < 1e-6f && v[2] == 1e30f && isnan(v[3]) &&
             v[4] == INFINITY);
    op_test_close(&t);
    op_test_free(&x);
}

SL_TEST(copy_and_zero_work_on_bytes)
{
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16, SL_F64, SL_U8, SL_BOOL };
    static const int64_t counts[] = { 0, 1, 333, (1 << 20) + 7 };
    op_test t;

    op_test_open(&t, 2);
    for (size_t d = 0; d < SL_COUNT(dtypes); d++) {
        for (size_t i = 0; i < SL_COUNT(counts); i++) {
            sl_tensor x = OP_TEST_TENSOR(dtypes[d], 1, counts[i]);
            sl_tensor y = OP_TEST_TENSOR(dtypes[d], 2, counts[i], 1);
            const size_t size_bytes = sl_tensor_bytes(&x);
            for (size_t k = 0; k < size_bytes; k++)
                ((unsigned char *)x.data)[k] = (unsigned char)(k * 7 + k / 256);
            op_test_poison(&y);
            SL_CHECK_OK(sl_copy_cpu(t.exec, &y, &x, err));
            SL_CHECK(memcmp(x.data, y.data, size_bytes) == 0);
            SL_CHECK_OK(sl_copy_cpu(t.exec, &y, &y, err));
            SL_CHECK(memcmp(x.data, y.data, size_bytes) == 0);
            SL_CHECK_OK(sl_zero_cpu(t.exec, &y, err));
            for (size_t k = 0; k < size_bytes; k++)
                SL_CHECK(((unsigned char *)y.data)[k] == 0);
            op_test_free(&x);
            op_test_free(&y);
        }
    }
    op_test_close(&t);
}

SL_TEST(check_finite_counts_every_one)
{
    enum { N = 200001 };
    sl_tensor f = OP_TEST_TENSOR(SL_F32, 1, N), d = OP_TEST_TENSOR(SL_F64, 3, 3, 66667, 1);
    const float odd_floats[] = { NAN, -NAN, INFINITY, -INFINITY };
    const float fine_floats[] = { 3.4028235e38f, -3.4028235e38f, 1e-45f, -0.0f };
    int64_t bad_count = -1;
    op_test t;

    op_test_fill(&f, 1, 1.0f);
    op_test_fill(&d, 1, 1.0f);
    op_test_open(&t, 3);
    for (int i = 0; i < 4; i++) {
        ((float *)f.data)[i * 54321] = fine_floats[i];
        ((double *)d.data)[i * 54321] = fine_floats[i] * 1e200;
    }
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &f, &bad_count, err));
    SL_CHECK(bad_count == 0);
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &d, &bad_count, err));
    SL_CHECK(bad_count == 0);
    for (int i = 0; i < 40; i++) {
        ((float *)f.data)[N - 1 - i * 5000] = odd_floats[i % 4];
        ((double *)d.data)[N - 1 - i * 5000] = (double)odd_floats[i % 4];
    }
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &f, &bad_count, err));
    SL_CHECK(bad_count == 40);
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &d, &bad_count, err));
    SL_CHECK(bad_count == 40);

    const uint16_t fine_bf16[] = { 0x7f7f, 0xff7f, 0x0001, 0x8000 };
    const uint16_t odd_bf16[] = { 0x7f80, 0xff80, 0x7fc0, 0xffff };
    const sl_tensor h = sl_tensor_of(f.data, SL_BF16, 1, N);
    for (int i = 0; i < N; i++)
        ((uint16_t *)h.data)[i] = fine_bf16[i % 4];
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &h, &bad_count, err));
    SL_CHECK(bad_count == 0);
    for (int i = 0; i < 40; i++)
        ((uint16_t *)h.data)[N - 1 - i * 5000] = odd_bf16[i % 4];
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &h, &bad_count, err));
    SL_CHECK(bad_count == 40);

    op_test_fill(&f, 1, 1.0f);
    const sl_tensor none = sl_tensor_rows(&f, 0, 0);
    SL_CHECK_OK(sl_check_finite_cpu(t.exec, &none, &bad_count, err));
    SL_CHECK(bad_count == 0);
    bad_count = 7;
    SL_CHECK_OK(sl_check_finite_check(t.exec, &f, &bad_count, err));
    SL_CHECK(bad_count == 0);
    bad_count = 7; /* cancelled: nothing is known */
    atomic_store(&t.cancel, 1);
    SL_CHECK_STATUS(sl_check_finite_cpu(t.exec, &f, &bad_count, err), SL_ERR_CANCELLED);
    SL_CHECK(bad_count == 7);
    op_test_close(&t);
    op_test_free(&f);
    op_test_free(&d);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    operands x = make(24, SL_F32);
    const sl_tensor shorter = sl_tensor_of(x.b.data, SL_F32, 1, 23);
    const sl_tensor square = sl_tensor_of(x.b.data, SL_F32, 2, 4, 6);
    const sl_tensor bf16 = sl_tensor_of(x.b.data, SL_BF16, 1, 24);
    const sl_tensor half = sl_tensor_of(x.b.data, SL_F16, 1, 24);
    const sl_tensor y2 = sl_tensor_of(x.y.data, SL_F32, 2, 4, 6);
    const sl_tensor a2 = sl_tensor_of(x.a.data, SL_F32, 2, 4, 6);
    const sl_tensor gate = sl_tensor_of(x.b.data, SL_F32, 1, 5);
    const sl_tensor beside = sl_tensor_of((float *)x.y.data + 8, SL_F32, 1, 24);
    int64_t bad_count = 7;
    op_test t;

    op_test_open(&t, 1);
    SL_CHECK_STATUS(sl_add_cpu(t.exec, &x.y, &x.a, &shorter, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_add_cpu(t.exec, &x.y, &square, &x.b, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_add_cpu(t.exec, &x.y, &half, &x.b, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_add_cpu(t.exec, &x.y, &x.a, &half, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_add_cpu(t.exec, &x.y, &beside, &x.b, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_mul_cpu(t.exec, &x.y, &x.a, &square, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_mul_cpu(t.exec, &x.y, &x.a, &half, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_gated_add_cpu(t.exec, &y2, &a2, &gate, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_gated_add_cpu(t.exec, &y2, &x.a, &gate, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_silu_cpu(t.exec, &x.y, &shorter, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_silu_cpu(t.exec, &x.y, &beside, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_copy_cpu(t.exec, &x.y, &bf16, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_copy_cpu(t.exec, &x.y, &shorter, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_copy_cpu(t.exec, &x.y, &beside, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_check_finite_cpu(t.exec, &half, &bad_count, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_check_finite_check(t.exec, &half, &bad_count, err), SL_ERR_INVALID);
    SL_CHECK(bad_count == 7);
    SL_CHECK(op_test_is_poison(&x.y));
    op_test_close(&t);
    drop(&x);
}

SL_TEST(check_touches_no_memory)
{
    void *nowhere = (void *)(uintptr_t)0x7000000000000000u;
    const sl_tensor x = sl_tensor_of(nowhere, SL_F32, 2, 32760, 1536);
    const sl_tensor w = sl_tensor_of(NULL, SL_F32, 1, 1536);
    const sl_tensor other =
        sl_tensor_of((void *)(uintptr_t)0x7100000000000000u, SL_F32, 2, 32760, 1536);
    int64_t bad_count = 1;

    SL_CHECK_OK(sl_add_check(NULL, &x, &x, &other, err));
    SL_CHECK_OK(sl_mul_check(NULL, &x, &x, &other, err));
    SL_CHECK_OK(sl_gated_add_check(NULL, &x, &other, &w, err));
    SL_CHECK_OK(sl_silu_check(NULL, &x, &x, err));
    SL_CHECK_OK(sl_copy_check(NULL, &x, &other, err));
    SL_CHECK_OK(sl_zero_check(NULL, &x, err));
    SL_CHECK_OK(sl_check_finite_check(NULL, &x, &bad_count, err));
    SL_CHECK(bad_count == 0);
}

SL_TEST_MAIN(SL_RUN(add_and_mul_round_once), SL_RUN(add_and_mul_in_place),
             SL_RUN(gated_add_uses_a_gate_for_each_channel), SL_RUN(silu_is_right_to_some_ulp),
             SL_RUN(silu_at_the_ends), SL_RUN(copy_and_zero_work_on_bytes),
             SL_RUN(check_finite_counts_every_one), SL_RUN(refuses_what_the_contract_excludes),
             SL_RUN(check_touches_no_memory))
