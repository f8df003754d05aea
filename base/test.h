/* test.h - what every unit test needs on top of cmocka.
 *
 *     SL_TEST(parses_sizes) { SL_CHECK_OK(f(x, err)); SL_CHECK(y == 3); }
 *     SL_TEST_MAIN(SL_RUN(parses_sizes))
 *
 * Inside a test, `err` is an sl_error *.  A test that needs data which is not
 * there calls SL_SKIP("why"): it is counted as skipped and said aloud.
 * Comparisons are written so that NaN fails.
 */
#ifndef SL_BASE_TEST_H
#define SL_BASE_TEST_H

#include "base/status.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SL_TEST(name)                                                                              \
    static void name##_body(sl_error *err);                                                        \
    static void name(void **state)                                                                 \
    {                                                                                              \
        sl_error error_ = { .status = SL_OK };                                                     \
        (void)state;                                                                               \
        name##_body(&error_);                                                                      \
    }                                                                                              \
    static void name##_body(__attribute__((unused)) sl_error *err)

#define SL_RUN(name) cmocka_unit_test(name)

#define SL_TEST_MAIN(...)                                                                          \
    int main(void)                                                                                 \
    {                                                                                              \
        const struct CMUnitTest tests[] = { __VA_ARGS__ };                                         \
        return cmocka_run_group_tests(tests, NULL, NULL);                                          \
    }

/* fail_msg jumps out of the test; abort() tells compilers and the analyser. */
#define SL_FAIL(...)                                                                               \
    do {                                                                                           \
        fail_msg(__VA_ARGS__);                                                                     \
        abort();                                                                                   \
    } while (0)

#define SL_CHECK(expr)                                                                             \
    do {                                                                                           \
        if (!(expr))                                                                               \
            SL_FAIL("%s:%d: %s", __FILE__, __LINE__, #expr);                                       \
    } while (0)

#define SL_CHECK_OK(expr)                                                                          \
    do {                                                                                           \
        const sl_status status_ = (expr);                                                          \
        if (status_ != SL_OK)                                                                      \
            SL_FAIL("%s:%d: %s: %s: %s", __FILE__, __LINE__, #expr, sl_status_text(status_),       \
                    err->message);                                                                 \
    } while (0)

#define SL_CHECK_STATUS(expr, want)                                                                \
    do {                                                                                           \
        const sl_status status_ = (expr);                                                          \
        if (status_ != (want))                                                                     \
            SL_FAIL("%s:%d: %s: got \"%s\", want \"%s\" (%s)", __FILE__, __LINE__, #expr,          \
                    sl_status_text(status_), sl_status_text(want), err->message);                  \
    } while (0)

#define SL_SKIP(why)                                                                               \
    do {                                                                                           \
        print_message("SKIPPED: %s\n", why);                                                       \
        skip();                                                                                    \
    } while (0)

/* ../shared beside the project's root, or $SLUICE_SHARED; NULL when absent.
 * SL_SOURCE_DIR is defined by the build. */
static inline const char *sl_test_shared_dir(void)
{
    static char path[1024];
    const char *given = getenv("SLUICE_SHARED");

    if (given)
        snprintf(path, sizeof path, "%s", given);
    else
        snprintf(path, sizeof path, "%s/../shared", SL_SOURCE_DIR);
    FILE *f = NULL;
    char probe[1100];
    snprintf(probe, sizeof probe, "%s/golden/README.md", path);
    f = fopen(probe, "r");
    if (!f)
        return NULL;
    fclose(f);
    return path;
}

#endif
