#include "kernels/rope.h"

#include "kernels/op_test.h"

/* Pairs of each axis in the order t, h, w. */
static void axis_pairs(int64_t D, int64_t out[3])
{
    out[1] = out[2] = D / 6;
    out[0] = D / 2 - 2 * (D / 6);
}

/* Axis of pair j, and its index and dimension there. */
static int axis_of(int64_t D, int64_t j, int64_t *index, int64_t *dimension)
{
    int64_t pairs[3];
    int axis = 0;

    axis_pairs(D, pairs);
    while (axis < 2 && j >= pairs[axis])
        j -= pairs[axis++];
    *index = j;
    *dimension = 2 * pairs[axis];
    return axis;
}

SL_TEST(table_matches_the_formula)
{
    static const int64_t dims[] = { 2, 4, 6, 8, 64, 128, 130 };
    op_test t;

    op_test_open(&t, 2);
    for (size_t k = 0; k < SL_COUNT(dims); k++) {
        const int64_t D = dims[k];
        sl_tensor table = OP_TEST_TENSOR(SL_F32, 3, SL_ROPE_MAX_POS, D / 2, 2);
        op_test_poison(&table);
        SL_CHECK_OK(sl_rope_table_cpu(t.exec, &table, err));
        for (int64_t pos = 0; pos < SL_ROPE_MAX_POS; pos++)
            for (int64_t j = 0; j < D / 2; j++) {
                int64_t i, m;
                axis_of(D, j, &i, &m);
                const double angle = (double)pos * pow(10000.0, -2.0 * (double)i / (double)m);
                /* The angle's error: half an ulp each of the exponent (times
                 * ln 10000), the power, its inverse and the product. */
                const double bound = 0x1p-24 * (9.3 + 3.0) * angle + 0x1p-24;
                const int64_t at = (pos * D / 2 + j) * 2;
                SL_CHECK(fabs(op_test_get(&table, at) - cos(angle)) <= bound);
                SL_CHECK(fabs(op_test_get(&table, at + 1) - sin(angle)) <= bound);
            }
        op_test_free(&table);
    }
    op_test_close(&t);
}

SL_TEST(the_f64_table_is_the_formula_rounded_once)
{
    enum { D = 128 };
    float *table = malloc(sizeof *table * SL_ROPE_MAX_POS * D);

    SL_CHECK(table != NULL);
    sl_rope_table_f64(table, SL_ROPE_MAX_POS, D / 2);
    for (int64_t pos = 0; pos < SL_ROPE_MAX_POS; pos++)
        for (int64_t j = 0; j < D / 2; j++) {
            const float *entry = table + (pos * (D / 2) + j) * 2;
            int64_t i, m;
            axis_of(D, j, &i, &m);
            const double angle = (double)pos * pow(10000.0, -2.0 * (double)i / (double)m);
            SL_CHECK(fabs((double)entry[0] - cos(angle)) <= 0x1p-24);
            SL_CHECK(fabs((double)entry[1] - sin(angle)) <= 0x1p-24);
        }
    free(table);
}

SL_TEST(pairs_split_22_21_21)
{
    int64_t pairs[3], i, m;

    axis_pairs(128, pairs);
    SL_CHECK(pairs[0] == 22 && pairs[1] == 21 && pairs[2] == 21);
    SL_CHECK(axis_of(128, 21, &i, &m) == 0 && i == 21 && m == 44);
    SL_CHECK(axis_of(128, 22, &i, &m) == 1 && i == 0 && m == 42);
    SL_CHECK(axis_of(128, 63, &i, &m) == 2 && i == 20 && m == 42);
}

typedef struct {
    sl_grid grid;
    int64_t N, D;
} shape;

static const shape shapes[] = {
    { { 0, 3, 4 }, 2, 8 },    /* no tokens */
    { { 1, 1, 1 }, 1, 2 },    /* smallest: one pair, on t */
    { { 2, 3, 5 }, 3, 10 },   /* ragged: 3/1/1 */
    { { 3, 6, 7 }, 12, 128 }, /* 1.3B's heads */
    { { 2, 5, 4 }, 3, 64 },   /* the other head size */
    { { 1, 2, 128 }, 1, 12 }, /* the largest position */
};

SL_TEST(rope_matches_the_formula)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t k = 0; k < SL_COUNT(shapes); k++) {
        const sl_grid g = shapes[k].grid;
        const int64_t S = g.T * g.H * g.W, N = shapes[k].N, D = shapes[k].D;
        sl_tensor x = OP_TEST_TENSOR(SL_F32, 2, S, N * D);
        sl_tensor table = OP_TEST_TENSOR(SL_F32, 3, SL_ROPE_MAX_POS, D / 2, 2);
        double *want = calloc((size_t)(S * N * D + 1), sizeof *want);
        SL_CHECK(want != NULL);
        op_test_fill(&x, 1, 1.0f);
        SL_CHECK_OK(sl_rope_table_cpu(t.exec, &table, err));
        for (int64_t at = 0; at < S * N * D; at += 2) {
            const int64_t s = at / (N * D), j = at % D / 2;
            const int64_t pos[3] = { s / (g.H * g.W), s / g.W % g.H, s % g.W };
            int64_t i, m;
            const int axis = axis_of(D, j, &i, &m);
            const double angle = (double)pos[axis] * pow(10000.0, -2.0 * (double)i / (double)m);
            const double a = op_test_get(&x, at), b = op_test_get(&x, at + 1);
            want[at] = a * cos(angle) - b * sin(angle);
            want[at + 1] = a * sin(angle) + b * cos(angle);
        }
        SL_CHECK_OK(sl_rope_cpu(t.exec, &x, &table, g, err));
        SL_CHECK(op_test_rel_l2(&x, want) < 3e-6);
        free(want);
        op_test_free(&x);
        op_test_free(&table);
    }
    op_test_close(&t);
}

SL_TEST(threads_do_not_change_a_bit)
{
    const sl_grid grid = { 3, 7, 11 };
    sl_tensor a = OP_TEST_TENSOR(SL_F32, 2, 231, 1536), b = OP_TEST_TENSOR(SL_F32, 2, 231, 1536);
    sl_tensor table = OP_TEST_TENSOR(SL_F32, 3, SL_ROPE_MAX_POS, 64, 2);
    op_test one, three;

    op_test_fill(&a, 1, 1.0f);
    op_test_fill(&b, 1, 1.0f);
    op_test_open(&one, 1);
    op_test_open(&three, 3);
    SL_CHECK_OK(sl_rope_table_cpu(one.exec, &table, err));
    SL_CHECK_OK(sl_rope_cpu(one.exec, &a, &table, grid, err));
    SL_CHECK_OK(sl_rope_cpu(three.exec, &b, &table, grid, err));
    SL_CHECK(memcmp(a.data, b.data, sl_tensor_bytes(&a)) == 0);
    op_test_close(&three);
    op_test_close(&one);
    op_test_free(&a);
    op_test_free(&b);
    op_test_free(&table);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 2, 24, 32), table = OP_TEST_TENSOR(SL_F32, 3, 16, 8, 2);
    const sl_tensor half_x = sl_tensor_of(x.data, SL_F16, 2, 24, 32);
    const sl_tensor odd_x = sl_tensor_of(x.data, SL_F32, 2, 24, 24);
    const sl_tensor triple_table = sl_tensor_of(table.data, SL_F32, 3, 16, 4, 3);
    const sl_tensor no_pairs = sl_tensor_of(table.data, SL_F32, 3, 16, 0, 2);
    const sl_tensor f64_table = sl_tensor_of(table.data, SL_F64, 3, 8, 8, 2);
    const sl_tensor x_as_table = sl_tensor_of(x.data, SL_F32, 3, 16, 8, 2);
    const sl_grid good = { 2, 3, 4 }, other = { 2, 3, 5 }, far = { 24, 1, 1 },
                  negative = { -2, -3, 4 };
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&x);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &table, other, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &table, far, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &table, negative, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &half_x, &table, good, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &odd_x, &table, good, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &triple_table, good, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &no_pairs, good, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_cpu(t.exec, &x, &x_as_table, good, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_table_cpu(t.exec, &triple_table, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rope_table_cpu(t.exec, &f64_table, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&x));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&table);
}

SL_TEST(check_touches_no_memory)
{
    const sl_tensor x =
        sl_tensor_of((void *)(uintptr_t)0x7000000000000000u, SL_F32, 2, 32760, 1536);
    const sl_tensor table = sl_tensor_of(NULL, SL_F32, 3, SL_ROPE_MAX_POS, 64, 2);
    const sl_grid grid = { 21, 30, 52 };

    SL_CHECK_OK(sl_rope_table_check(NULL, &table, err));
    SL_CHECK_OK(sl_rope_check(NULL, &x, &table, grid, err));
}

SL_TEST_MAIN(SL_RUN(table_matches_the_formula),
             SL_RUN(the_f64_table_is_the_formula_rounded_once), SL_RUN(pairs_split_22_21_21),
             SL_RUN(rope_matches_the_formula), SL_RUN(threads_do_not_change_a_bit),
             SL_RUN(refuses_what_the_contract_excludes), SL_RUN(check_touches_no_memory))
