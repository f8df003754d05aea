#include "engine/pipeline/unipc.h"

#include "base/size.h"
#include "base/test.h"
#include "kernels/scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    sl_device *device;
    sl_exec *exec;
    void *memory;
    sl_scratch scratch;
} bench;

enum { MEMORY_BYTES = 1 << 16 };

static void bench_open(bench *b)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };

    SL_CHECK_OK(sl_device_create(&b->device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&b->exec, b->device, 1, NULL, err));
    b->memory = aligned_alloc(SL_SCRATCH_ALIGN, MEMORY_BYTES);
    SL_CHECK(b->memory != NULL);
    sl_scratch_init(&b->scratch, b->memory, MEMORY_BYTES);
}

static void bench_close(bench *b)
{
    free(b->memory);
    sl_exec_destroy(b->exec);
    sl_device_destroy(b->device);
}

SL_TEST(schedule_of_the_reference)
{
    sl_unipc_schedule s;

    SL_CHECK_OK(sl_unipc_schedule_make(&s, 50, 5.0, err));
    SL_CHECK(s.step_count == 50 && s.sigma[50] == 0.0 && s.timestep[0] == 999.0);
    for (int i = 0; i < 50; i++) {
        SL_CHECK(s.sigma[i] > s.sigma[i + 1] && s.sigma[i] < 1.0);
        SL_CHECK(s.sigma[i] == (double)(float)s.sigma[i]);
        SL_CHECK(s.timestep[i] == floor(s.timestep[i]) &&
                 fabs(s.timestep[i] - 1000.0 * s.sigma[i]) <= 1.0);
    }
    /* Half-way without shift: sigma_hi / 2; shifted by 5: 5 s / (1 + 4 s). */
    SL_CHECK_OK(sl_unipc_schedule_make(&s, 2, 1.0, err));
    SL_CHECK(fabs(s.sigma[1] - 0.4995) < 1e-7);
    SL_CHECK_OK(sl_unipc_schedule_make(&s, 2, 5.0, err));
    SL_CHECK(fabs(s.sigma[1] - 2.4975 / 2.998) < 1e-7);
}

SL_TEST(refuses_what_is_no_schedule)
{
    static const struct {
        int steps;
        double shift;
    } rows[] = { { 0, 5 },       { SL_UNIPC_MAX_STEPS + 1, 5 },
                 { -1, 5 },      { 4, 0 },
                 { 4, -1 },      { 4, NAN },
                 { 4, INFINITY } };

    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        sl_unipc_schedule s = { .step_count = 77 };

        SL_CHECK_STATUS(sl_unipc_schedule_make(&s, rows[i].steps, rows[i].shift, err),
                        SL_ERR_INVALID);
        SL_CHECK(s.step_count == 77);
    }
}

/* How far the ends of two runs are from the exact solution of dx/ds = c x + d:
 * UniPC's, and Euler's steps over the same sigmas. */
static void final_errors(bench *b, int steps, double *unipc_error, double *euler_error)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const size_t mark = sl_scratch_mark(&b->scratch);
    static const double c = 0.7, d = -0.4, start = 1.3;
    sl_unipc_schedule schedule;
    sl_tensor x, v;
    sl_unipc u;

    SL_CHECK_OK(sl_unipc_schedule_make(&schedule, steps, 3.0, err));
    SL_CHECK_OK(sl_scratch_tensor(&b->scratch, &x, err, SL_F64, 1, SL_UNIPC_STATES));
    SL_CHECK_OK(sl_scratch_tensor(&b->scratch, &v, err, SL_F64, 1, 1));
    double *state = x.data, *velocity = v.data, euler = start;
    state[0] = start;
    sl_unipc_begin(&u, b->exec, &schedule, &x, 0);
    for (int i = 0; i < steps; i++) {
        velocity[0] = c * state[0] + d;
        euler += (schedule.sigma[i + 1] - schedule.sigma[i]) * (c * euler + d);
        SL_CHECK_OK(sl_unipc_step(&u, &v, err));
    }
    const double want = (start + d / c) * exp(-c * schedule.sigma[0]) - d / c;
    *unipc_error = fabs(state[0] - want);
    *euler_error = fabs(euler - want);
    sl_scratch_release(&b->scratch, mark);
}

SL_TEST(comes_closer_than_first_order)
{
    bench b;

    bench_open(&b);
    for (int steps = 24; steps <= 192; steps *= 2) {
        double unipc_error, euler_error;

        final_errors(&b, steps, &unipc_error, &euler_error);
        SL_CHECK(unipc_error < euler_error / 10.0);
    }
    bench_close(&b);
}

/* A constant x0 is where any order arrives exactly. */
SL_TEST(straight_lines_are_exact)
{
    bench b;

    bench_open(&b);
    for (int steps = 1; steps <= 9; steps++) {
        const size_t mark = sl_scratch_mark(&b.scratch);
        sl_unipc_schedule schedule;
        sl_tensor x, v;
        sl_unipc u;

        SL_CHECK_OK(sl_unipc_schedule_make(&schedule, steps, 5.0, err));
        SL_CHECK_OK(sl_scratch_tensor(&b.scratch, &x, err, SL_F64, 1, 2 * SL_UNIPC_STATES));
        SL_CHECK_OK(sl_scratch_tensor(&b.scratch, &v, err, SL_F32, 1, 2));
        double *state = x.data;
        state[0] = 2.0;
        state[1] = -1.0;
        ((float *)v.data)[0] = 1.5f;
        ((float *)v.data)[1] = 0.25f;
        const double end[2] = { state[0] - schedule.sigma[0] * 1.5,
                                state[1] - schedule.sigma[0] * 0.25 };
        sl_unipc_begin(&u, b.exec, &schedule, &x, 0);
        for (int i = 0; i < steps; i++)
            SL_CHECK_OK(sl_unipc_step(&u, &v, err));
        SL_CHECK(fabs(state[0] - end[0]) < 1e-12 && fabs(state[1] - end[1]) < 1e-12);
        sl_scratch_release(&b.scratch, mark);
    }
    bench_close(&b);
}

/* Stopped behind any step and begun anew from the state: the same bytes. */
SL_TEST(the_state_is_all_there_is)
{
    enum { STEPS = 7 };
    sl_unipc_schedule schedule;
    sl_tensor state, v;
    double want[2] = { 0 };
    bench b;

    bench_open(&b);
    SL_CHECK_OK(sl_unipc_schedule_make(&schedule, STEPS, 5.0, err));
    SL_CHECK_OK(sl_scratch_tensor(&b.scratch, &state, err, SL_F64, 1, 2 * SL_UNIPC_STATES));
    SL_CHECK_OK(sl_scratch_tensor(&b.scratch, &v, err, SL_F64, 1, 2));
    for (int stop = 0; stop < STEPS; stop++) { /* 0: not stopped */
        double *x = state.data, *velocity = v.data;
        sl_unipc u;

        memset(state.data, 0xff, sl_tensor_bytes(&state)); /* nothing else is read */
        x[0] = 0.7;
        x[1] = -1.1;
        sl_unipc_begin(&u, b.exec, &schedule, &state, 0);
        for (int i = 0; i < STEPS; i++) {
            if (stop && i == stop) {
                memset(&u, 0xa5, sizeof u);
                sl_unipc_begin(&u, b.exec, &schedule, &state, i);
            }
            for (int k = 0; k < 2; k++)
                velocity[k] = sin(x[k]) + 0.1 * i;
            SL_CHECK_OK(sl_unipc_step(&u, &v, err));
        }
        if (stop == 0)
            memcpy(want, x, sizeof want);
        SL_CHECK(x[0] == want[0] && x[1] == want[1]); /* not of NaN */
    }
    bench_close(&b);
}

SL_TEST_MAIN(SL_RUN(the_state_is_all_there_is), SL_RUN(schedule_of_the_reference),
             SL_RUN(refuses_what_is_no_schedule), SL_RUN(comes_closer_than_first_order),
             SL_RUN(straight_lines_are_exact))
