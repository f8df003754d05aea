#include "engine/pipeline/schedule.h"

#include "base/test.h"

/* wan.md 7.1, to all digits given there. */
SL_TEST(times_of_the_reference)
{
    static const struct {
        double sigma_max, t0, timestep0;
    } rows[] = {
        { 80, 0.98765432098765427, 988 },
        { 200, 0.99502487562189057, 996 },
        { 1600, 0.99937539038101197, 1000 },
    };
    static const double later[] = { 0.93378106141685802, 0.85289539482377497, 0.608979049230431 };
    static const double later_timesteps[] = { 932, 852, 608 };

    for (size_t i = 0; i < SL_COUNT(rows); i++)
        for (int steps = 1; steps <= SL_RCM_MAX_STEPS; steps++) {
            sl_rcm_schedule s;

            SL_CHECK_OK(sl_rcm_schedule_make(&s, steps, rows[i].sigma_max, err));
            SL_CHECK(s.step_count == steps && s.t[steps] == 0.0);
            SL_CHECK(fabs(s.t[0] - rows[i].t0) <= 1e-15);
            SL_CHECK(s.timestep[0] == rows[i].timestep0);
            for (int k = 1; k < steps; k++) {
                SL_CHECK(fabs(s.t[k] - later[k - 1]) <= 1e-15);
                SL_CHECK(s.timestep[k] == later_timesteps[k - 1]);
            }
        }
}

SL_TEST(refuses_what_is_no_schedule)
{
    static const struct {
        int steps;
        double sigma_max;
    } rows[] = {
        { 0, 80 }, { 5, 80 }, { -1, 80 }, { 4, 0 }, { 4, -1 }, { 4, NAN }, { 4, INFINITY }
    };

    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        sl_rcm_schedule s = { .step_count = 77 };

        SL_CHECK_STATUS(sl_rcm_schedule_make(&s, rows[i].steps, rows[i].sigma_max, err),
                        SL_ERR_INVALID);
        SL_CHECK(s.step_count == 77);
    }
}

/* wan.md 7.2 */
SL_TEST(low_noise_steps_begin_below_the_boundary)
{
    static const struct {
        int steps;
        double sigma_max, boundary;
        int low_from;
    } rows[] = {
        { 4, 200, 0.9, 2 }, /* 0.995 and 0.934 are the high-noise expert's */
        { 3, 200, 0.9, 2 },  { 2, 200, 0.9, 2 }, { 1, 200, 0.9, 1 },   { 4, 200, 0.875, 2 },
        { 4, 200, 0.85, 3 }, { 4, 200, 0.6, 4 }, { 4, 200, 0.99, 1 },  { 4, 200, 1.0, 0 },
        { 4, 9.5, 0.9, 2 },  { 4, 8.9, 0.9, 0 }, { 4, 8.9, 0.001, 0 }, /* all low, whatever the
                                                                          boundary */
        { 4, 9.5, 0.93, 0 }, /* 0.905 is below: the 0.934 behind it stays low */
    };

    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        sl_rcm_schedule s;

        SL_CHECK_OK(sl_rcm_schedule_make(&s, rows[i].steps, rows[i].sigma_max, err));
        const int got = sl_rcm_low_from(&s, rows[i].sigma_max, rows[i].boundary);
        if (got != rows[i].low_from)
            fail_msg("row %zu: from step %d, expected %d", i, got, rows[i].low_from);
    }
    /* strictly below */
    sl_rcm_schedule s;
    SL_CHECK_OK(sl_rcm_schedule_make(&s, 4, 200, err));
    SL_CHECK(sl_rcm_low_from(&s, 200, s.t[1]) == 2);
    SL_CHECK(sl_rcm_low_from(&s, 200, nextafter(s.t[1], 1.0)) == 1);
}

SL_TEST_MAIN(SL_RUN(times_of_the_reference), SL_RUN(refuses_what_is_no_schedule),
             SL_RUN(low_noise_steps_begin_below_the_boundary))
