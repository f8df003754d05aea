#include "kernels/embed.h"

#include "kernels/op_test.h"

SL_TEST(embed_rows_gathers)
{
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16 };
    const int32_t wanted[] = { 0, 9, 3, 3, 8 };
    op_test t;

    op_test_open(&t, 2);
    for (size_t d = 0; d < SL_COUNT(dtypes); d++) {
        sl_tensor table = OP_TEST_TENSOR(dtypes[d], 2, 10, 33);
        sl_tensor ids = OP_TEST_TENSOR(SL_I32, 1, 5), y = OP_TEST_TENSOR(SL_F32, 2, 5, 33);
        memcpy(ids.data, wanted, sizeof wanted);
        op_test_fill(&table, 1, 1.0f);
        op_test_poison(&y);
        SL_CHECK_OK(sl_embed_rows_cpu(t.exec, &y, &table, &ids, err));
        for (int64_t i = 0; i < 5 * 33; i++)
            SL_CHECK(op_test_get(&y, i) == op_test_get(&table, wanted[i / 33] * 33 + i % 33));
        const sl_tensor no_ids = sl_tensor_rows(&ids, 0, 0), no_y = sl_tensor_rows(&y, 0, 0);
        SL_CHECK_OK(sl_embed_rows_cpu(t.exec, &no_y, &table, &no_ids, err));
        op_test_free(&table);
        op_test_free(&ids);
        op_test_free(&y);
    }
    op_test_close(&t);
}

SL_TEST(embed_rows_refuses_ids_outside_of_the_table)
{
    const int32_t bad_ids[] = { -1, 10, INT32_MIN, INT32_MAX };
    sl_tensor table = OP_TEST_TENSOR(SL_F32, 2, 10, 4);
    sl_tensor ids = OP_TEST_TENSOR(SL_I32, 1, 3), y = OP_TEST_TENSOR(SL_F32, 2, 3, 4);
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&y);
    for (size_t i = 0; i < SL_COUNT(bad_ids); i++) {
        ((int32_t *)ids.data)[2] = bad_ids[i];
        SL_CHECK_STATUS(sl_embed_rows_cpu(t.exec, &y, &table, &ids, err), SL_ERR_INVALID);
        SL_CHECK(strstr(err->message, "position 2") != NULL);
        SL_CHECK(op_test_is_poison(&y));
    }
    op_test_close(&t);
    op_test_free(&table);
    op_test_free(&ids);
    op_test_free(&y);
}

SL_TEST(sinusoid_is_cosines_then_sines)
{
    static const int64_t sizes[] = { 0, 2, 6, 256 };
    static const double times[] = { 0.0, 608.0, 988.0, 999.5 };
    op_test t;

    op_test_open(&t, 1);
    for (size_t k = 0; k < SL_COUNT(sizes); k++)
        for (size_t n = 0; n < SL_COUNT(times); n++) {
            const int64_t F = sizes[k];
            sl_tensor y = OP_TEST_TENSOR(SL_F32, 1, F);
            op_test_poison(&y);
            SL_CHECK_OK(sl_sinusoid_cpu(t.exec, &y, times[n], err));
            for (int64_t j = 0; j < F / 2; j++) {
                const long double phase =
                    times[n] * powl(10000.0L, -(long double)j / (long double)(F / 2));
                SL_CHECK(fabs(op_test_get(&y, j) - (double)cosl(phase)) <= 0x1p-24);
                SL_CHECK(fabs(op_test_get(&y, F / 2 + j) - (double)sinl(phase)) <= 0x1p-24);
            }
            op_test_free(&y);
        }
    op_test_close(&t);
}

/* wan.md 3.3: by the formula, except for the distances on a border, where the
 * logarithm's rounding would decide. */
SL_TEST(rel_bucket_follows_the_formula)
{
    for (int64_t n = 0; n < 2000; n++) {
        int want = (int)n;
        if (n >= 8) {
            want = 8 + (int)(log((double)n / 8.0) / log(16.0) * 8.0 + 1e-9);
            want = want > 15 ? 15 : want;
        }
        SL_CHECK(sl_rel_bucket(-n) == want);
        SL_CHECK(sl_rel_bucket(n) == want + (n > 0 ? 16 : 0));
    }
    SL_CHECK(sl_rel_bucket(INT64_MIN) == 15 && sl_rel_bucket(INT64_MAX) == 31);
}

SL_TEST(rel_bias_reads_the_bucket_of_each_distance)
{
    static const struct {
        int64_t Sq, Sk;
    } shapes[] = { { 1, 1 }, { 1, 40 }, { 300, 1 }, { 77, 130 } };
    op_test t;

    op_test_open(&t, 2);
    for (size_t k = 0; k < SL_COUNT(shapes); k++) {
        const int64_t Sq = shapes[k].Sq, Sk = shapes[k].Sk, N = 5;
        sl_tensor table = OP_TEST_TENSOR(k % 2 ? SL_BF16 : SL_F32, 2, 32, N);
        sl_tensor y = OP_TEST_TENSOR(SL_F32, 2, N, Sq + Sk - 1);
        op_test_fill(&table, 1, 1.0f);
        op_test_poison(&y);
        SL_CHECK_OK(sl_rel_bias_cpu(t.exec, &y, &table, Sq, Sk, err));
        for (int64_t n = 0; n < N; n++)
            for (int64_t q = 0; q < Sq; q++)
                for (int64_t key = 0; key < Sk; key++)
                    SL_CHECK(op_test_get(&y, n * (Sq + Sk - 1) + key - q + Sq - 1) ==
                             op_test_get(&table, sl_rel_bucket(key - q) * N + n));
        op_test_free(&table);
        op_test_free(&y);
    }
    op_test_close(&t);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    sl_tensor table = OP_TEST_TENSOR(SL_F32, 2, 32, 4), ids = OP_TEST_TENSOR(SL_I32, 1, 3);
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 2, 4, 9);
    const sl_tensor rows = sl_tensor_of(y.data, SL_F32, 2, 3, 4);
    const sl_tensor half_table = sl_tensor_of(table.data, SL_F16, 2, 32, 4);
    const sl_tensor few_buckets = sl_tensor_of(table.data, SL_F32, 2, 31, 4);
    const sl_tensor long_ids = sl_tensor_of(table.data, SL_I64, 1, 3);
    const sl_tensor narrow = sl_tensor_of(y.data, SL_F32, 2, 3, 3);
    const sl_tensor odd = sl_tensor_of(y.data, SL_F32, 1, 7);
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&y);
    SL_CHECK_STATUS(sl_embed_rows_cpu(t.exec, &rows, &half_table, &ids, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_embed_rows_cpu(t.exec, &rows, &table, &long_ids, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_embed_rows_cpu(t.exec, &narrow, &table, &ids, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sinusoid_cpu(t.exec, &odd, 1.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sinusoid_cpu(t.exec, &y, 1.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rel_bias_cpu(t.exec, &y, &few_buckets, 5, 5, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rel_bias_cpu(t.exec, &y, &table, 5, 6, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rel_bias_cpu(t.exec, &y, &table, 10, 0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rel_bias_cpu(t.exec, &y, &table, INT64_MAX, INT64_MAX, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&y));
    op_test_close(&t);
    op_test_free(&table);
    op_test_free(&ids);
    op_test_free(&y);
}

SL_TEST(check_touches_no_memory)
{
    void *nowhere = (void *)(uintptr_t)0x7000000000000000u;
    const sl_tensor y = sl_tensor_of(nowhere, SL_F32, 2, 512, 4096);
    const sl_tensor ids = sl_tensor_of(NULL, SL_I32, 1, 512);
    const sl_tensor table = sl_tensor_of(NULL, SL_BF16, 2, 256384, 4096);
    const sl_tensor buckets = sl_tensor_of(NULL, SL_BF16, 2, 32, 64);
    const sl_tensor bias = sl_tensor_of(nowhere, SL_F32, 2, 64, 1023);
    const sl_tensor wave = sl_tensor_of(nowhere, SL_F32, 1, 256);

    SL_CHECK_OK(sl_embed_rows_check(NULL, &y, &table, &ids, err));
    SL_CHECK_OK(sl_rel_bias_check(NULL, &bias, &buckets, 512, 512, err));
    SL_CHECK_OK(sl_sinusoid_check(NULL, &wave, 988.0, err));
}

SL_TEST_MAIN(SL_RUN(embed_rows_gathers), SL_RUN(embed_rows_refuses_ids_outside_of_the_table),
             SL_RUN(sinusoid_is_cosines_then_sines), SL_RUN(rel_bucket_follows_the_formula),
             SL_RUN(rel_bias_reads_the_bucket_of_each_distance),
             SL_RUN(refuses_what_the_contract_excludes), SL_RUN(check_touches_no_memory))
