#include "kernels/scratch.h"

#include "base/test.h"

#include <stdalign.h>
#include <string.h>

/* The kind of function that a plan runs twice. */
static sl_status pipeline(sl_scratch *s, int64_t S, sl_error *err)
{
    const size_t mark = sl_scratch_mark(s);
    sl_tensor a, b;
    sl_status status = sl_scratch_tensor(s, &a, err, SL_F32, 2, S, 100);

    if (status == SL_OK) {
        const size_t inner = sl_scratch_mark(s);
        status = sl_scratch_tensor(s, &b, err, SL_BF16, 1, 3 * S);
        sl_scratch_release(s, inner);
    }
    if (status == SL_OK)
        status = sl_scratch_tensor(s, &b, err, SL_F64, 0);
    sl_scratch_release(s, mark);
    return status;
}

SL_TEST(counts_exactly_what_it_takes)
{
    static alignas(256) unsigned char memory[1 << 16];
    sl_scratch counting, real;

    sl_scratch_init_counting(&counting);
    SL_CHECK_OK(pipeline(&counting, 100, err));
    SL_CHECK(counting.used_bytes == 0);
    SL_CHECK(counting.peak_bytes == 40192 + 768); /* each rounded up to 256 */

    sl_scratch_init(&real, memory, counting.peak_bytes);
    SL_CHECK_OK(pipeline(&real, 100, err));
    SL_CHECK(real.peak_bytes == counting.peak_bytes && real.used_bytes == 0);

    sl_scratch_init(&real, memory, counting.peak_bytes - 1);
    SL_CHECK_STATUS(pipeline(&real, 100, err), SL_ERR_NO_MEMORY);
    SL_CHECK(strstr(err->message, "bug") != NULL);
    SL_CHECK(real.used_bytes == 0);
}

SL_TEST(addresses_are_aligned_and_apart)
{
    static alignas(256) unsigned char memory[2048];
    sl_scratch s;
    void *a, *b, *c, *d;

    sl_scratch_init(&s, memory, sizeof memory);
    SL_CHECK_OK(sl_scratch_alloc(&s, &a, 1, err));
    SL_CHECK_OK(sl_scratch_alloc(&s, &b, 257, err));
    SL_CHECK_OK(sl_scratch_alloc(&s, &c, 0, err));
    SL_CHECK_OK(sl_scratch_alloc(&s, &d, 1280, err));
    SL_CHECK(a == memory && b == memory + 256 && c == memory + 768 && d == c);
    SL_CHECK_STATUS(sl_scratch_alloc(&s, &a, 1, err), SL_ERR_NO_MEMORY);
    SL_CHECK(a == memory);
}

SL_TEST(sizes_that_overflow_are_refused)
{
    sl_scratch s;
    sl_tensor t;
    void *p;

    sl_scratch_init_counting(&s);
    SL_CHECK_STATUS(sl_scratch_alloc(&s, &p, SIZE_MAX, err), SL_ERR_NO_MEMORY);
    SL_CHECK_STATUS(sl_scratch_tensor(&s, &t, err, SL_F32, 2, INT64_MAX, INT64_MAX),
                    SL_ERR_NO_MEMORY);
    SL_CHECK_OK(sl_scratch_alloc(&s, &p, (size_t)1 << 45, err)); /* far more than any machine */
    SL_CHECK(p != NULL && s.peak_bytes == (size_t)1 << 45);
}

SL_TEST_MAIN(SL_RUN(counts_exactly_what_it_takes), SL_RUN(addresses_are_aligned_and_apart),
             SL_RUN(sizes_that_overflow_are_refused))
