/* Who is next: priorities, passing, users, deadlines, estimates. */
#include "service/core_test.h"

static void submit_as(sl_core *core, const char *id, const char *model, int priority,
                      const char *user, sl_error *err)
{
    sl_core_job job = job_of(id, model, 10, 30, 10, 30); /* 80: one model at a time */

    job.priority = priority;
    snprintf(job.user, sizeof job.user, "%s", user);
    submit(core, job, err);
}

/* Lets the job that is admitted next run and end; its id must be that. */
static void expect_turn(sl_core *core, const char *id)
{
    sl_core_action run;

    admit_and_run(core, id, &run);
    end(core, &run, id, SL_OK);
}

SL_TEST(the_highest_priority_goes_first_then_the_first)
{
    sl_core *core = make(config_of(100, 1, 0), err);

    sl_core_set_draining(core, true);
    submit_as(core, "a", "m", 1, "", err);
    submit_as(core, "b", "m", 9, "", err);
    submit_as(core, "c", "m", 9, "", err);
    submit_as(core, "d", "m", 4, "", err);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_position(core, "a") == 4 && sl_core_position(core, "b") == 1);
    sl_core_set_draining(core, false);
    expect_turn(core, "b");
    expect_turn(core, "c");
    expect_turn(core, "d");
    expect_turn(core, "a");
    sl_core_destroy(core);
}

SL_TEST(nobody_is_passed_more_often_than_the_limit)
{
    sl_core_config config = config_of(100, 1, 0);
    config.bypass_limit = 2;
    sl_core *core = make(config, err);
    char id[2] = "b";

    sl_core_set_draining(core, true);
    submit_as(core, "a", "m", 0, "", err);
    for (int i = 0; i < 5; i++, id[0]++)
        submit_as(core, id, "m", 9, "", err);
    sl_core_set_draining(core, false);
    expect_turn(core, "b");
    expect_turn(core, "c");
    expect_turn(core, "a"); /* two have passed it */
    expect_turn(core, "d");
    sl_core_destroy(core);
}

SL_TEST(who_has_been_passed_often_enough_is_waited_for)
{
    sl_core_config config = config_of(100, 2, 0);
    config.bypass_limit = 1;
    sl_core *core = make(config, err);
    sl_core_action run;

    submit(core, job_of("a", "m", 10, 10, 10, 30), err);
    admit_and_run(core, "a", &run);
    submit_as(core, "big", "n", 4, "", err);
    submit(core, job_of("b", "m", 10, 10, 10, 5), err); /* fits beside a: passes big */
    submit(core, job_of("c", "m", 10, 10, 10, 5), err);
    expect_turn(core, "b");
    expect(core, SL_CORE_NONE); /* c would be the second */
    end(core, &run, "a", SL_OK);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "big") == 0);
    sl_core_destroy(core);
}

SL_TEST(equals_whose_components_are_there_go_first)
{
    sl_core *core = make(config_of(100, 1, 0), err);

    sl_core_set_draining(core, true);
    submit_as(core, "a", "m", 4, "", err);
    submit_as(core, "b", "n", 4, "", err);
    submit_as(core, "c", "m", 4, "", err);
    submit_as(core, "d", "n", 5, "", err);
    submit_as(core, "e", "m", 3, "", err); /* no equal of b */
    sl_core_set_draining(core, false);
    expect_turn(core, "d");
    expect_turn(core, "b"); /* passes a, which would evict */
    expect_turn(core, "a");
    expect_turn(core, "c");
    expect_turn(core, "e");
    sl_core_destroy(core);
}

SL_TEST(a_user_has_a_share_of_the_queue_and_the_lanes)
{
    sl_core_config config = config_of(200, 2, 0);
    config.user_running_limit = 1;
    config.user_queued_limit = 2;
    config.bypass_limit = 1;
    sl_core *core = make(config, err);
    sl_core_job job = job_of("d", "m", 10, 30, 10, 30);
    sl_core_answer answer;
    sl_core_action run, other;

    submit_as(core, "a", "m", 4, "ann", err);
    admit_and_run(core, "a", &run);
    submit_as(core, "b", "m", 4, "ann", err);
    submit_as(core, "c", "m", 4, "ann", err);
    snprintf(job.user, sizeof job.user, "ann");
    SL_CHECK_STATUS(sl_core_submit(core, &job, NULL, err), SL_ERR_BUSY);
    SL_CHECK(strstr(err->message, "user \"ann\""));
    SL_CHECK_OK(sl_core_waiting_for(core, "b", &answer, err));
    SL_CHECK(strcmp(answer.after, "a job of user \"ann\" ends, who has 1") == 0);
    /* Her own limit holds b back: those who start meanwhile do not pass it. */
    for (int i = 0; i < 3; i++) {
        submit_as(core, "o", "m", 4, "bob", err);
        admit_and_run(core, "o", &other);
        end(core, &other, "o", SL_OK);
    }
    end(core, &run, "a", SL_OK);
    admit_and_run(core, "b", &run);
    sl_core_destroy(core);
}

/* ---- time ---- */

/* 10 s to load, cost / 10 s to run. */
static sl_core_config timed_config(void)
{
    sl_core_config config = config_of(100, 1, 0);

    config.file_bytes_per_s = (double)(5 * G);
    config.cost_per_s = 10;
    return config;
}

static sl_core_job timed(const char *id, const char *model, double cost, int64_t deadline_s)
{
    sl_core_job job = job_of(id, model, 10, 30, 10, 30);

    job.cost = cost;
    job.deadline_ns = deadline_s * SL_NS_PER_S;
    return job;
}

SL_TEST(a_deadline_that_cannot_be_met_is_refused_with_the_estimate)
{
    sl_core *core = make(timed_config(), err);
    sl_core_answer answer;
    sl_core_estimate e;
    sl_core_job job = timed("b", "n", 200, 49); /* one second short */

    submit(core, timed("a", "m", 100, 0), err); /* 10 + 10 s */
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TIMEOUT);
    SL_CHECK(answer.when == SL_CORE_LATE);
    SL_CHECK(answer.estimate.queue_ns == 20 * SL_NS_PER_S);
    SL_CHECK(answer.estimate.load_ns == 10 * SL_NS_PER_S);
    SL_CHECK(answer.estimate.run_ns == 20 * SL_NS_PER_S);
    SL_CHECK(strstr(answer.message, "20.0 s in the queue, 10.0 s to load, 20.0 s to run"));
    SL_CHECK(sl_core_position(core, "b") == -1);
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(answer.when == SL_CORE_LATE);
    job.deadline_ns = 50 * SL_NS_PER_S;
    SL_CHECK_OK(sl_core_submit(core, &job, &answer, err));
    SL_CHECK_OK(sl_core_get_estimate(core, "b", 0, &e, err));
    SL_CHECK(e.queue_ns + e.load_ns + e.run_ns == 50 * SL_NS_PER_S);
    sl_core_destroy(core);
}

SL_TEST(estimates_follow_what_was_observed)
{
    sl_core *core = make(timed_config(), err);
    sl_core_answer answer;
    const sl_core_job job = timed("b", "n", 200, 0);

    sl_core_observe_run(core, "n", 200, 5 * SL_NS_PER_S);
    sl_core_observe_run(core, "m", 200, 50 * SL_NS_PER_S);
    sl_core_observe_file(core, 50 * G, 2 * SL_NS_PER_S);
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(answer.estimate.run_ns == 5 * SL_NS_PER_S);
    SL_CHECK(answer.estimate.load_ns == 2 * SL_NS_PER_S);
    sl_core_observe_run(core, "n", 200, 10 * SL_NS_PER_S); /* 40 a second, then 20: 35 */
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(llabs(answer.estimate.run_ns - 200 * SL_NS_PER_S / 35) < 2);
    sl_core_observe_run(core, "n", 0, 10);
    sl_core_observe_run(core, "n", 10, 0); /* nothing can be learnt from that */
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(llabs(answer.estimate.run_ns - 200 * SL_NS_PER_S / 35) < 2);
    for (int i = 0; i < 100; i++) { /* more models than it keeps */
        char model[16];
        snprintf(model, sizeof model, "other%d", i);
        sl_core_observe_run(core, model, 1, 1);
    }
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(answer.estimate.run_ns == 20 * SL_NS_PER_S); /* the default again */
    sl_core_destroy(core);
}

SL_TEST(a_job_whose_deadline_passes_in_the_queue_ends)
{
    sl_core *core = make(timed_config(), err);
    sl_core_action a;

    submit(core, timed("a", "m", 100, 0), err);
    admit_and_run(core, "a", &a);
    submit(core, timed("b", "m", 100, 40), err);
    SL_CHECK(sl_core_wake_ns(core) == 40 * SL_NS_PER_S);
    SL_CHECK(!sl_core_next(core, 40 * SL_NS_PER_S - 1, &a));
    SL_CHECK(sl_core_next(core, 40 * SL_NS_PER_S, &a));
    SL_CHECK(a.kind == SL_CORE_JOB_ENDED && a.status == SL_ERR_TIMEOUT);
    SL_CHECK(strcmp(a.job_id, "b") == 0 && sl_core_wake_ns(core) == INT64_MAX);
    sl_core_destroy(core);
}

SL_TEST(nobody_is_passed_at_the_cost_of_a_deadline)
{
    sl_core *core = make(timed_config(), err);

    submit(core, timed("a", "m", 100, 0), err);
    expect_turn(core, "a"); /* loads have taken no time, so that only the runs count */
    sl_core_set_draining(core, true);
    submit(core, timed("b", "n", 100, 25), err);
    submit(core, timed("c", "m", 200, 0), err); /* there already, but b would end at 30 s */
    submit(core, timed("d", "m", 100, 0), err); /* at 20 s */
    sl_core_set_draining(core, false);
    expect_turn(core, "d");
    expect_turn(core, "b");
    expect_turn(core, "c");
    sl_core_destroy(core);
}

/* ---- a mixed queue ---- */

/* Twenty jobs of three models, of which one fits at a time, submitted at once in
 * this order; seconds from then.  First come, first served meets every deadline. */
static const struct {
    const char *model;
    int run_s, deadline_s;
} mixed[] = {
    { "1.3b", 5, 0 },   { "14b", 40, 100 },  { "a14b", 60, 220 }, { "1.3b", 5, 0 },
    { "14b", 40, 0 },   { "1.3b", 5, 0 },    { "a14b", 60, 0 },   { "14b", 40, 480 },
    { "1.3b", 5, 0 },   { "1.3b", 5, 0 },    { "a14b", 60, 0 },   { "14b", 40, 0 },
    { "1.3b", 5, 700 }, { "a14b", 60, 800 }, { "14b", 40, 0 },    { "1.3b", 5, 0 },
    { "a14b", 60, 0 },  { "14b", 40, 0 },    { "1.3b", 5, 0 },    { "a14b", 60, 1200 },
};

typedef struct {
    int switches;
    int64_t end_s[SL_COUNT(mixed)];
} outcome;

static sl_core_job mixed_job(int i)
{
    const size_t dit = strcmp(mixed[i].model, "1.3b") == 0  ? 15
                       : strcmp(mixed[i].model, "14b") == 0 ? 60
                                                            : 75;
    char id[8];

    snprintf(id, sizeof id, "%d", i);
    sl_core_job job = job_of(id, mixed[i].model, 5, dit, 1, 15);
    job.cost = mixed[i].run_s;
    return job;
}

/* Plays the queue through with one lane; a load of x granules takes x / 2 seconds. */
static outcome play(int bypass_limit, bool with_deadlines, sl_error *err)
{
    sl_core_config config = config_of(100, 1, 0);
    outcome out = { 0 };
    int64_t now_ns = 0;
    const char *model = NULL;
    sl_core_action a;

    config.bypass_limit = bypass_limit;
    config.file_bytes_per_s = (double)(2 * G);
    config.cost_per_s = 1;
    sl_core *core = make(config, err);
    for (int i = 0; i < (int)SL_COUNT(mixed); i++) {
        sl_core_job job = mixed_job(i);
        if (with_deadlines)
            job.deadline_ns = mixed[i].deadline_s * SL_NS_PER_S;
        submit(core, job, err);
    }
    while (sl_core_next(core, now_ns, &a)) {
        sl_core_done done = { .status = SL_OK };
        if (a.kind == SL_CORE_JOB_ENDED) {
            SL_CHECK(a.status == SL_OK);
            out.end_s[atoi(a.job_id)] = now_ns / SL_NS_PER_S;
        }
        if (a.kind == SL_CORE_LOAD)
            done.duration_ns = (int64_t)(a.size_bytes / G) * SL_NS_PER_S / 2;
        if (a.kind == SL_CORE_RUN) {
            const int i = atoi(a.job_id);
            done.duration_ns = mixed[i].run_s * SL_NS_PER_S;
            out.switches += model && strcmp(model, mixed[i].model) != 0;
            model = mixed[i].model;
        }
        now_ns += done.duration_ns;
        if (a.command_id)
            SL_CHECK(sl_core_command_done(core, a.command_id, &done, now_ns));
    }
    for (size_t i = 0; i < SL_COUNT(mixed); i++)
        SL_CHECK(out.end_s[i] > 0);
    sl_core_destroy(core);
    return out;
}

/* First come, first served takes 18 switches and 1,136 s, with at most 8 passing
 * anybody it is 5 switches and 804 s.  Without the deadlines it would be 4. */
SL_TEST(a_mixed_queue_takes_at_most_half_the_switches)
{
    const outcome fifo = play(0, false, err), affine = play(8, true, err);
    int64_t fifo_end = 0, affine_end = 0;

    for (size_t i = 0; i < SL_COUNT(mixed); i++) {
        const int64_t deadline_s = mixed[i].deadline_s;
        if (deadline_s)
            SL_CHECK(fifo.end_s[i] <= deadline_s && affine.end_s[i] <= deadline_s);
        fifo_end = fifo.end_s[i] > fifo_end ? fifo.end_s[i] : fifo_end;
        affine_end = affine.end_s[i] > affine_end ? affine.end_s[i] : affine_end;
    }
    SL_CHECK(affine.switches * 2 <= fifo.switches);
    SL_CHECK(fifo.switches == 18 && fifo_end == 1136);
    SL_CHECK(affine.switches == 5 && affine_end == 804);
    SL_CHECK(play(8, false, err).switches == 4);
}

SL_TEST_MAIN(SL_RUN(the_highest_priority_goes_first_then_the_first),
             SL_RUN(nobody_is_passed_more_often_than_the_limit),
             SL_RUN(who_has_been_passed_often_enough_is_waited_for),
             SL_RUN(equals_whose_components_are_there_go_first),
             SL_RUN(a_user_has_a_share_of_the_queue_and_the_lanes),
             SL_RUN(a_deadline_that_cannot_be_met_is_refused_with_the_estimate),
             SL_RUN(estimates_follow_what_was_observed),
             SL_RUN(a_job_whose_deadline_passes_in_the_queue_ends),
             SL_RUN(nobody_is_passed_at_the_cost_of_a_deadline),
             SL_RUN(a_mixed_queue_takes_at_most_half_the_switches))
