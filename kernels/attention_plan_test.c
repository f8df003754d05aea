#include "kernels/attention_plan.h"

#include "base/size.h"
#include "base/test.h"
#include "kernels/ops.h"
#include "kernels/scratch.h"

static sl_attention_plan plan_of(sl_dtype dtype, int64_t N, int64_t D, int64_t Sq, int64_t Sk,
                                 bool biased, bool in_place)
{
    static char memory[2]; /* two addresses */
    const sl_tensor q = sl_tensor_of(&memory[0], dtype, 2, Sq, N * D),
                    o = sl_tensor_of(&memory[in_place ? 0 : 1], dtype, 2, Sq, N * D),
                    k = sl_tensor_of(NULL, dtype, 2, Sk, N * D),
                    bias = sl_tensor_of(NULL, SL_F32, 2, N, Sq + Sk - 1);

    return sl_attention_plan_of(&o, &q, &k, biased ? &bias : NULL, N);
}

SL_TEST(each_case_has_its_way)
{
    SL_CHECK(plan_of(SL_BF16, 12, 128, 99, 77, false, false).way == SL_ATTENTION_LIBRARY);
    SL_CHECK(plan_of(SL_BF16, 4, 64, 99, 77, false, true).way == SL_ATTENTION_LIBRARY);
    SL_CHECK(plan_of(SL_BF16, 1, 384, 99, 77, false, true).way == SL_ATTENTION_WIDE);
    SL_CHECK(plan_of(SL_F32, 12, 128, 99, 77, false, true).way == SL_ATTENTION_PLAIN);
    SL_CHECK(plan_of(SL_BF16, 12, 128, 99, 77, true, true).way == SL_ATTENTION_PLAIN);
    SL_CHECK(plan_of(SL_BF16, 2, 384, 99, 77, false, true).way == SL_ATTENTION_PLAIN);
    SL_CHECK(plan_of(SL_BF16, 1, 388, 99, 77, false, true).way == SL_ATTENTION_PLAIN);
    SL_CHECK(plan_of(SL_BF16, 6, 32, 99, 77, false, true).way == SL_ATTENTION_PLAIN);
}

/* Apart from its input nothing is needed; in place, at most 128 MiB. */
SL_TEST(in_place_works_in_passes)
{
    sl_attention_plan plan = plan_of(SL_BF16, 12, 128, 32760, 32760, false, false);

    SL_CHECK(plan.rows == 32760 && plan.o_bytes == 0);
    plan = plan_of(SL_BF16, 12, 128, 32760, 32760, false, true);
    SL_CHECK(plan.rows == 32760 && plan.o_bytes == (size_t)32760 * 1536 * 2);
    plan = plan_of(SL_BF16, 40, 128, 32760, 32760, false, true);
    SL_CHECK(plan.rows == 10920 && plan.o_bytes == (size_t)10920 * 5120 * 2);
    plan = plan_of(SL_BF16, 40, 128, 75600, 75600, false, true);
    SL_CHECK(plan.rows == 12600 && plan.o_bytes <= 128 * SL_MIB);
    plan = plan_of(SL_BF16, 1, 384, 14400, 14400, false, true);
    SL_CHECK(plan.rows * 14400 * 6 <= (int64_t)(128 * SL_MIB) && plan.rows > 1000);
    SL_CHECK(plan.score_bytes == 2 * plan.weight_bytes &&
             plan.turned_bytes == (size_t)14400 * 384 * 2);
}

SL_TEST(counting_takes_what_the_plan_says)
{
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    const sl_attention_plan plan = plan_of(SL_BF16, 1, 384, 6240, 6240, false, true);
    const sl_tensor t = sl_tensor_of(NULL, SL_BF16, 2, 6240, 384);
    const size_t sizes[] = { plan.turned_bytes, plan.score_bytes, plan.weight_bytes,
                             plan.sum_bytes };
    sl_scratch scratch;
    sl_exec *exec;
    size_t sum = 0;

    for (size_t i = 0; i < SL_COUNT(sizes); i++)
        sum += (sizes[i] + SL_SCRATCH_ALIGN - 1) / SL_SCRATCH_ALIGN * SL_SCRATCH_ALIGN;
    SL_CHECK_OK(sl_exec_create_counting(&exec, &numerics, err));
    sl_scratch_init_counting(&scratch);
    sl_exec_lend_scratch(exec, &scratch);
    SL_CHECK_OK(sl_exec_ops(exec)->attention(exec, &t, &t, &t, &t, NULL, 1, 0.1f, err));
    SL_CHECK(scratch.used_bytes == 0 && scratch.peak_bytes == sum);
    sl_exec_destroy(exec);
}

SL_TEST_MAIN(SL_RUN(each_case_has_its_way), SL_RUN(in_place_works_in_passes),
             SL_RUN(counting_takes_what_the_plan_says))
