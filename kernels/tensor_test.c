#include "kernels/tensor.h"

#include "base/test.h"

#include <string.h>

SL_TEST(counts_and_bytes)
{
    const sl_tensor scalar = sl_tensor_of(NULL, SL_F64, 0);
    const sl_tensor t = sl_tensor_of(NULL, SL_BF16, 3, 3, 8, 12);
    const sl_tensor none = sl_tensor_of(NULL, SL_F32, 3, INT64_MAX, 0, INT64_MAX);
    const sl_tensor huge = sl_tensor_of(NULL, SL_F32, 2, INT64_MAX / 2, 3);
    const sl_tensor wide = sl_tensor_of(NULL, SL_F64, 1, INT64_MAX / 2);

    SL_CHECK(sl_tensor_count(&scalar) == 1 && sl_tensor_bytes(&scalar) == 8);
    SL_CHECK(sl_tensor_count(&t) == 288 && sl_tensor_bytes(&t) == 576);
    SL_CHECK(sl_tensor_count(&none) == 0 && sl_tensor_bytes(&none) == 0);
    SL_CHECK(sl_tensor_count(&huge) == INT64_MAX && sl_tensor_bytes(&huge) == SIZE_MAX);
    SL_CHECK(sl_tensor_bytes(&wide) == SIZE_MAX);
}

SL_TEST(describes)
{
    char buf[256], cut[6];
    const sl_tensor t = sl_tensor_of(NULL, SL_F32, 3, 3, 8, 12);
    const sl_tensor scalar = sl_tensor_of(NULL, SL_F8_E4M3, 0);
    const sl_tensor longest = sl_tensor_of(NULL, SL_F8_E5M2, 6, INT64_MAX, INT64_MAX, INT64_MAX,
                                           INT64_MAX, INT64_MAX, INT64_MAX);

    SL_CHECK(strcmp(sl_tensor_describe(&t, buf, sizeof buf), "[3, 8, 12] F32") == 0);
    SL_CHECK(strcmp(sl_tensor_describe(&scalar, buf, sizeof buf), "[] F8_E4M3") == 0);
    SL_CHECK(strlen(sl_tensor_describe(&longest, buf, sizeof buf)) == 6 * 19 + 5 * 2 + 2 + 8);
    SL_CHECK(strcmp(sl_tensor_describe(&t, cut, sizeof cut), "[3, 8") == 0);
}

SL_TEST(views)
{
    float data[24];
    const sl_tensor t = sl_tensor_of(data, SL_F32, 3, 4, 3, 2);
    const sl_tensor rows = sl_tensor_rows(&t, 1, 2), end = sl_tensor_rows(&t, 4, 0);
    const sl_tensor flat = sl_tensor_reshape(&t, 2, (const int64_t[]){ 8, 3 });

    SL_CHECK(rows.data == data + 6 && rows.rank == 3 && rows.dim[0] == 2 && rows.dim[2] == 2);
    SL_CHECK(end.data == data + 24 && sl_tensor_count(&end) == 0);
    SL_CHECK(flat.data == data && flat.dim[0] == 8 && sl_tensor_bytes(&flat) == sizeof data);
    SL_CHECK(!sl_tensor_same_shape(&t, &flat) && sl_tensor_same_shape(&t, &t));
}

SL_TEST(bf16_rounds_to_nearest_even)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) { /* all of them come back */
        const float x = sl_bf16_to_f32((uint16_t)bits);
        const uint16_t back = sl_bf16_from_f32(x);
        SL_CHECK(isnan(x) ? isnan(sl_bf16_to_f32(back)) : back == bits);
    }
    SL_CHECK(sl_bf16_from_f32(0x1.01p0f) == 0x3f80);            /* a tie goes down to even */
    SL_CHECK(sl_bf16_from_f32(0x1.03p0f) == 0x3f82);            /* a tie goes up to even */
    SL_CHECK(sl_bf16_from_f32(0x1.0100020p0f) == 0x3f81);       /* above the tie */
    SL_CHECK(isinf(sl_bf16_to_f32(sl_bf16_from_f32(3.4e38f)))); /* past the largest */
}

SL_TEST(f16_is_exact)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const double sign = bits & 0x8000 ? -1.0 : 1.0;
        const int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
        const float x = sl_f16_to_f32((uint16_t)bits);

        if (exponent == 31 && fraction)
            SL_CHECK(isnan(x));
        else if (exponent == 31)
            SL_CHECK(isinf(x) && (x > 0.0f) == (sign > 0.0));
        else if (exponent == 0)
            SL_CHECK((double)x == sign * ldexp(fraction, -24) && (signbit(x) != 0) == (sign < 0.0));
        else
            SL_CHECK((double)x == sign * ldexp(1024 + fraction, exponent - 25));
    }
}

SL_TEST(dtypes)
{
    SL_CHECK(sl_dtype_bytes(SL_F8_E5M2) == 1 && sl_dtype_bytes(SL_I64) == 8);
    for (int d = 0; d < SL_DTYPE_COUNT; d++)
        SL_CHECK(sl_dtype_bytes((sl_dtype)d) > 0 && sl_dtype_name((sl_dtype)d) != NULL);
}

SL_TEST_MAIN(SL_RUN(counts_and_bytes), SL_RUN(describes), SL_RUN(views),
             SL_RUN(bf16_rounds_to_nearest_even), SL_RUN(f16_is_exact), SL_RUN(dtypes))
