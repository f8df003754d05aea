#include "kernels/ops.h"

#include "kernels/op_test.h"

/* Every row after the name is a function: none may be missing. */
static void check_complete(const sl_ops *ops)
{
    const void *rows[sizeof *ops / sizeof(void *)];

    memcpy(rows, ops, sizeof *ops);
    for (size_t i = 0; i < SL_COUNT(rows); i++)
        SL_CHECK(rows[i] != NULL);
}

SL_TEST(tables_are_complete)
{
    check_complete(&sl_ops_cpu);
    check_complete(&sl_ops_counting);
    check_complete(&sl_ops_counting_cuda);
    SL_CHECK(sl_ops_cpu.linear != sl_ops_counting.linear);
}

SL_TEST(an_exec_knows_its_table)
{
    sl_exec *counting;
    op_test run;

    op_test_open(&run, 1);
    SL_CHECK_OK(sl_exec_create_counting(&counting, NULL, err));
    SL_CHECK(sl_exec_ops(run.exec) == &sl_ops_cpu);
    SL_CHECK(sl_exec_ops(counting) == &sl_ops_counting);
    SL_CHECK(strcmp(sl_exec_ops(run.exec)->name, "cpu") == 0);
    SL_CHECK(strcmp(sl_exec_ops(counting)->name, "counting") == 0);
    sl_exec_destroy(counting);
    op_test_close(&run);
}

SL_TEST_MAIN(SL_RUN(tables_are_complete), SL_RUN(an_exec_knows_its_table))
