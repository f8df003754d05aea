/* cli_planner_test.c - what the default budget table means for the real models. */
#include "base/size.h"
#include "base/test.h"
#include "clients/c/cli_planner.h"

#include <string.h>

static sl_variants_ask ask_for(const char *model, sl_precision precision, int width, int height,
                               sl_streaming streaming)
{
    sl_variants_ask asked = {
        .model = model, .arch = sl_arch_find(model), .streaming = streaming, .kind = SL_DEVICE_CUDA
    };

    asked.request = sl_t2v_request_default(asked.arch);
    asked.request.width = width;
    asked.request.height = height;
    asked.request.frames = 81;
    asked.request.precision = precision;
    asked.request.vae_precision = sl_t2v_vae_precision_default(asked.kind, precision);
    return asked;
}

static sl_variants_ask on_cpu(sl_variants_ask asked)
{
    asked.kind = SL_DEVICE_CPU;
    asked.request.vae_precision = sl_t2v_vae_precision_default(asked.kind, asked.request.precision);
    return asked;
}

static const cli_machine machine = { .threads = 2 };

static void plan_on(sl_device_kind kind, size_t limit_bytes, sl_variants_ask *asked,
                    cli_verdict *out, sl_error *err)
{
    static sl_budget_table table;
    const sl_device_spec device = { .kind = kind, .limit_bytes = limit_bytes };
    cli_planner planner;

    sl_budget_table_default(&table);
    SL_CHECK_OK(cli_planner_init(&planner, &device, &machine, &table, err));
    SL_CHECK_OK(cli_planner_judge(&planner, asked, out, err));
    cli_planner_fini(&planner);
}

#define AUTO SL_STREAMING_AUTO
#define OFF  SL_STREAMING_OFF
#define ON   SL_STREAMING_ON

typedef enum { FITS, STREAMS, NEVER_BY_RULE, NEVER_BY_BYTES } outcome;

SL_TEST(the_default_table_for_the_real_models)
{
    static const char small[] = "wan2.1-t2v-1.3b", big[] = "wan2.1-t2v-14b";
    static const char two[] = "wan2.2-i2v-a14b";
    static const struct {
        const char *model;
        sl_precision precision;
        int width, height;
        size_t gib;
        sl_streaming streaming;
        outcome want;
    } cases[] = {
        { small, SL_PRECISION_INT8, 832, 480, 16, OFF, FITS },
        { big, SL_PRECISION_INT8, 832, 480, 16, OFF, NEVER_BY_RULE },
        { big, SL_PRECISION_INT8, 832, 480, 16, AUTO, STREAMS },
        { big, SL_PRECISION_INT8, 832, 480, 24, OFF, FITS },
        { big, SL_PRECISION_INT8, 1280, 720, 40, OFF, FITS },
        { two, SL_PRECISION_INT8, 1280, 720, 40, OFF, FITS },
        { big, SL_PRECISION_BF16, 1280, 720, 48, AUTO, NEVER_BY_RULE },
        { big, SL_PRECISION_BF16, 1280, 720, 48, OFF, NEVER_BY_RULE },
        { big, SL_PRECISION_BF16, 1280, 720, 140, OFF, FITS },
        { small, SL_PRECISION_BF16, 832, 480, 8, AUTO, STREAMS },
        { small, SL_PRECISION_BF16, 832, 480, 8, OFF, NEVER_BY_BYTES },
        { big, SL_PRECISION_BF16, 832, 480, 12, AUTO, STREAMS },
        { big, SL_PRECISION_INT8, 1280, 720, 12, AUTO, STREAMS },
        { big, SL_PRECISION_BF16, 832, 480, 140, ON, STREAMS },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_variants_ask asked = ask_for(cases[i].model, cases[i].precision, cases[i].width,
                                        cases[i].height, cases[i].streaming);
        cli_verdict v;

        plan_on(SL_DEVICE_CUDA, cases[i].gib * SL_GIB, &asked, &v, err);
        const outcome got = v.answer.when == SL_CORE_NEVER
                                ? (v.answer.rule[0] ? NEVER_BY_RULE : NEVER_BY_BYTES)
                            : v.way.streamed ? STREAMS
                                             : FITS;
        if (got != cases[i].want)
            fail_msg("case %zu: outcome %d, expected %d, peak %zu: %s", i, (int)got,
                     (int)cases[i].want, v.peak_bytes, v.answer.message);
        if (got == FITS || got == STREAMS)
            SL_CHECK(v.peak_bytes <= cases[i].gib * SL_GIB);
        SL_CHECK((v.way.host_bytes > 0) == (v.way.streamed != 0));
        SL_CHECK(v.way.streamed ? v.way.slowdown > 1.0 && v.way.slowdown < 100.0
                                : v.way.slowdown == 1.0);
    }
}

/* The peak of what was found is enough; a granule less, and another way is
 * taken or none. */
SL_TEST(the_peak_is_exact_in_every_way)
{
    const sl_streaming streaming[] = { OFF, AUTO, ON };
    size_t limit = 140 * SL_GIB;
    int ways = 0;

    for (size_t i = 0; i < SL_COUNT(streaming); i++, limit = 140 * SL_GIB)
        for (;;) {
            sl_variants_ask asked =
                on_cpu(ask_for("wan2.2-i2v-a14b", SL_PRECISION_INT8, 832, 480, streaming[i]));
            cli_verdict v, exact;

            plan_on(SL_DEVICE_CPU, limit, &asked, &v, err);
            if (v.answer.when == SL_CORE_NEVER)
                break;
            SL_CHECK(v.peak_bytes <= limit);
            plan_on(SL_DEVICE_CPU, v.peak_bytes, &asked, &exact, err);
            SL_CHECK(exact.answer.when == SL_CORE_NOW && exact.peak_bytes == v.peak_bytes);
            SL_CHECK(exact.way.by_phase == v.way.by_phase && exact.way.streamed == v.way.streamed);
            limit = v.peak_bytes - SL_GRANULE_BYTES;
            ways++;
        }
    SL_CHECK(ways >= 2 + 4 + 2);
}

SL_TEST(the_nearest_fits_and_the_next_larger_does_not)
{
    static sl_budget_table table;
    const sl_device_spec device = { .kind = SL_DEVICE_CPU, .limit_bytes = 6 * SL_GIB };
    sl_variants_ask asked = on_cpu(ask_for("wan2.1-t2v-1.3b", SL_PRECISION_BF16, 1280, 720, AUTO));
    sl_t2v_request nearest;
    cli_planner planner;
    cli_verdict v;
    size_t need_bytes = 0;
    bool found = false;

    sl_budget_table_default(&table);
    SL_CHECK_OK(cli_planner_init(&planner, &device, &machine, &table, err));
    SL_CHECK_OK(cli_planner_judge(&planner, &asked, &v, err));
    SL_CHECK(v.answer.when == SL_CORE_NEVER);
    SL_CHECK_OK(cli_planner_nearest(&planner, &asked, &found, &nearest, &need_bytes, err));
    SL_CHECK(found && need_bytes > 0 && need_bytes <= device.limit_bytes);
    SL_CHECK(nearest.width < 1280 && nearest.frames >= 1);

    asked =
        on_cpu(ask_for("wan2.1-t2v-1.3b", nearest.precision, nearest.width, nearest.height, AUTO));
    asked.request.frames = nearest.frames;
    SL_CHECK_OK(cli_planner_judge(&planner, &asked, &v, err));
    SL_CHECK(v.answer.when == SL_CORE_NOW && v.answer.need_bytes == need_bytes);

    /* The next of the search's steps: a sixteenth of the sides more. */
    asked = on_cpu(ask_for("wan2.1-t2v-1.3b", nearest.precision, nearest.width + 1280 / 16,
                           nearest.height + 720 / 16 / 16 * 16 + 16, AUTO));
    asked.request.frames = nearest.frames;
    SL_CHECK_OK(cli_planner_judge(&planner, &asked, &v, err));
    SL_CHECK(v.answer.when == SL_CORE_NEVER);
    cli_planner_fini(&planner);
}

SL_TEST(requests_that_make_no_sense)
{
    sl_variants_ask asked = ask_for("tiny-t2v", SL_PRECISION_BF16, 65, 64, AUTO);
    const sl_device_spec device = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };
    cli_planner planner;
    cli_verdict v;

    SL_CHECK_OK(cli_planner_init(&planner, &device, &(cli_machine){ .threads = 0 }, NULL, err));
    SL_CHECK_STATUS(cli_planner_judge(&planner, &asked, &v, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "65"));
    cli_planner_fini(&planner);
}

SL_TEST_MAIN(SL_RUN(the_default_table_for_the_real_models), SL_RUN(the_peak_is_exact_in_every_way),
             SL_RUN(the_nearest_fits_and_the_next_larger_does_not),
             SL_RUN(requests_that_make_no_sense))
