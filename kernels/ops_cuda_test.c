/* ops_cuda_test.c - the table of cuda, as far as it can be looked at without a
 * card: linking it takes every op. */
#include "kernels/ops.h"

#include "base/test.h"

#include <string.h>

SL_TEST(no_row_is_missing)
{
    const void *cuda[sizeof(sl_ops) / sizeof(void *)], *counting[SL_COUNT(cuda)];

    memcpy(cuda, &sl_ops_cuda, sizeof cuda);
    memcpy(counting, &sl_ops_counting_cuda, sizeof counting);
    for (size_t i = 0; i < SL_COUNT(cuda); i++)
        SL_CHECK(cuda[i] != NULL && counting[i] != NULL && cuda[i] != counting[i]);
    SL_CHECK(strcmp(sl_ops_cuda.name, "cuda") == 0);
    SL_CHECK(strcmp(sl_ops_counting_cuda.name, "counting cuda") == 0);
}

SL_TEST_MAIN(SL_RUN(no_row_is_missing))
