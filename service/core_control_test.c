/* What the operator does: now, trim, drain, switch, tables, limits; and what a
 * worker's death does to several jobs. */
#include "service/core_test.h"

static sl_core_key key_of(const char *model, sl_component_kind kind)
{
    return need_of(model, kind, 1).key;
}

static sl_core_job with_images(const char *id, const char *model)
{
    return phased(id, model, 10, 20, 5, 2, 10, 10); /* 45 */
}

/* ---- pre-emption ---- */

SL_TEST(an_unload_now_stops_the_job_and_queues_it_again)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_key dit = key_of("m", SL_COMPONENT_DIT);
    sl_core_action run, a;
    uint64_t ticket;

    submit(core, with_images("a", "m"), err);
    submit(core, with_images("b", "n"), err);
    admit_and_run(core, "a", &run);
    SL_CHECK_OK(
        sl_core_unload_as(core, &dit, 1, SL_CORE_UNLOAD_FULL, SL_CORE_USED_NOW, &ticket, err));
    SL_CHECK(strcmp(expect(core, SL_CORE_PREEMPT).job_id, "a") == 0);
    expect(core, SL_CORE_NONE);
    done(core, &run, SL_ERR_CANCELLED);
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(a.attempt == 1 && strcmp(a.message, "pre-empted") == 0);
    SL_CHECK(sl_core_position(core, "a") == 1); /* before b */
    let(core, SL_CORE_UNLOAD, 1);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == ticket && a.receipt.residue_bytes == 0);
    admit_and_run(core, "a", &run);
    SL_CHECK(run.attempt == 1);
    end(core, &run, "a", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(a_preempted_job_resumes_where_it_can)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_key vae = key_of("m", SL_COMPONENT_VAE);
    sl_core_action run;
    uint64_t ticket;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    sl_core_phase(core, "a", 2); /* a resume point */
    SL_CHECK_OK(
        sl_core_unload_as(core, &vae, 1, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_NOW, &ticket, err));
    expect(core, SL_CORE_PREEMPT);
    done(core, &run, SL_ERR_CANCELLED);
    expect(core, SL_CORE_JOB_REQUEUED);
    let(core, SL_CORE_UNLOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).size_bytes == 15 * G); /* the VAE and its phase */
    SL_CHECK(expect(core, SL_CORE_LOAD).key.component == SL_COMPONENT_VAE);
    const sl_core_done ok = { .status = SL_OK };
    SL_CHECK(sl_core_command_done(core, 6, &ok, 0));
    run = expect(core, SL_CORE_RUN);
    SL_CHECK(run.phase == 2 && run.size_bytes == 10 * G);
    sl_core_destroy(core);
}

/* The first attempt gets behind a resume point; what it left cannot be used. */
SL_TEST(a_job_whose_state_is_lost_starts_over)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_done lost = { .status = SL_ERR_PRECONDITION, .message = "its state is lost" };
    sl_core_action run, a;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    sl_core_phase(core, "a", 2);
    sl_core_worker_down(core, "killed");
    SL_CHECK(expect(core, SL_CORE_JOB_REQUEUED).attempt == 2);
    sl_core_worker_up(core, 0);
    admit_and_run(core, "a", &run);
    SL_CHECK(run.phase == 2);
    sl_core_lose_state(core, "nobody");
    sl_core_lose_state(core, "a");
    SL_CHECK(sl_core_command_done(core, run.command_id, &lost, 0));
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(a.attempt == 2 && strcmp(a.message, "its state is lost") == 0);
    admit_and_run(core, "a", &run);
    SL_CHECK(run.phase == 0);
    /* Once is enough, and resume points are none for it. */
    sl_core_phase(core, "a", 2);
    sl_core_worker_down(core, "killed");
    expect(core, SL_CORE_JOB_REQUEUED);
    sl_core_worker_up(core, 0);
    admit_and_run(core, "a", &run);
    SL_CHECK(run.phase == 0);
    sl_core_lose_state(core, "a");
    SL_CHECK(sl_core_command_done(core, run.command_id, &lost, 0));
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).status == SL_ERR_PRECONDITION);
    sl_core_destroy(core);
}

SL_TEST(a_preemption_that_is_not_obeyed_becomes_a_cancel_then_a_restart)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_key dit = key_of("m", SL_COMPONENT_DIT);
    sl_core_action run, a;
    uint64_t ticket;
    int64_t now_ns = 120 * SL_NS_PER_S;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    SL_CHECK_OK(
        sl_core_unload_as(core, &dit, 1, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_NOW, &ticket, err));
    expect(core, SL_CORE_PREEMPT);
    SL_CHECK(sl_core_wake_ns(core) == now_ns);
    SL_CHECK(sl_core_next(core, now_ns, &a) && a.kind == SL_CORE_CANCEL);
    now_ns += 5 * SL_NS_PER_S;
    SL_CHECK(sl_core_wake_ns(core) == now_ns);
    SL_CHECK(sl_core_next(core, now_ns, &a) && a.kind == SL_CORE_RESTART);
    sl_core_worker_down(core, "killed");
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(a.attempt == 1);
    a = expect(core, SL_CORE_TICKET_ENDED); /* nothing is left to unload */
    SL_CHECK(a.status == SL_OK && a.receipt.command_count == 0);
    sl_core_destroy(core);
}

SL_TEST(an_unload_can_wait_for_the_job)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_key dit = key_of("m", SL_COMPONENT_DIT);
    sl_core_action run;
    uint64_t ticket;

    submit(core, with_images("a", "m"), err);
    submit(core, with_images("b", "n"), err);
    admit_and_run(core, "a", &run);
    SL_CHECK_STATUS(
        sl_core_unload_as(core, &dit, 1, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_REFUSE, &ticket, err),
        SL_ERR_PRECONDITION);
    SL_CHECK_OK(
        sl_core_unload_as(core, &dit, 1, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_WAIT, &ticket, err));
    expect(core, SL_CORE_NONE);
    sl_core_phase(core, "a", 2); /* the job goes on without it */
    let(core, SL_CORE_UNLOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    end(core, &run, "a", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(a_hard_unload_replaces_the_worker)
{
    sl_core *core = make(config_of(100, 1, 100), err);
    const sl_core_key vae = key_of("m", SL_COMPONENT_VAE);
    sl_core_action run, a;
    uint64_t ticket;

    submit(core, with_images("a", "m"), err);
    submit(core, with_images("b", "m"), err);
    admit_and_run(core, "a", &run);
    SL_CHECK_STATUS(
        sl_core_unload_as(core, &vae, 1, SL_CORE_UNLOAD_HARD, SL_CORE_USED_REFUSE, &ticket, err),
        SL_ERR_PRECONDITION);
    SL_CHECK_OK(
        sl_core_unload_as(core, &vae, 1, SL_CORE_UNLOAD_HARD, SL_CORE_USED_NOW, &ticket, err));
    expect(core, SL_CORE_PREEMPT);
    done(core, &run, SL_ERR_CANCELLED);
    expect(core, SL_CORE_JOB_REQUEUED);
    let(core, SL_CORE_UNLOAD, 1);
    let(core, SL_CORE_HOST_DROP, 1);
    SL_CHECK(strstr(expect(core, SL_CORE_RESTART).message, "hard unload"));
    expect(core, SL_CORE_NONE);
    sl_core_worker_down(core, "killed");
    expect(core, SL_CORE_NONE);
    sl_core_worker_up(core, 0);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == ticket && a.status == SL_OK && a.receipt.host_after_bytes == 30 * G);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).attempt == 1);
    for (int i = 0; i < 2; i++) { /* their images have survived */
        a = expect(core, SL_CORE_LOAD);
        SL_CHECK(a.from_host);
        done(core, &a, SL_OK);
    }
    SL_CHECK(expect(core, SL_CORE_HOST_FILL).key.component == SL_COMPONENT_VAE);
    sl_core_destroy(core);
}

SL_TEST(a_hard_unload_of_nothing_replaces_the_worker)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    uint64_t ticket;

    SL_CHECK_STATUS(
        sl_core_unload_as(core, NULL, 0, SL_CORE_UNLOAD_FULL, SL_CORE_USED_REFUSE, &ticket, err),
        SL_ERR_INVALID);
    SL_CHECK_OK(
        sl_core_unload_as(core, NULL, 0, SL_CORE_UNLOAD_HARD, SL_CORE_USED_REFUSE, &ticket, err));
    expect(core, SL_CORE_RESTART);
    sl_core_worker_down(core, "killed");
    expect(core, SL_CORE_NONE);
    sl_core_worker_up(core, 0);
    const sl_core_action a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == ticket && a.status == SL_OK && a.receipt.command_count == 0);
    sl_core_destroy(core);
}

SL_TEST(a_worker_that_is_replaced_costs_no_attempt)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    sl_core_action run;

    submit(core, with_images("a", "m"), err);
    for (int i = 0; i < 5; i++) { /* more than there are attempts */
        admit_and_run(core, "a", &run);
        SL_CHECK(run.attempt == 1);
        sl_core_worker_replaced(core, "reset");
        SL_CHECK(expect(core, SL_CORE_JOB_REQUEUED).attempt == 1);
        sl_core_worker_up(core, 0);
    }
    admit_and_run(core, "a", &run);
    end(core, &run, "a", SL_OK);
    sl_core_destroy(core);
}

/* ---- trim, drain, switch ---- */

SL_TEST(a_trim_takes_what_is_idle_while_jobs_run)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    sl_core_action run, a;
    uint64_t ticket;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    end(core, &run, "a", SL_OK);
    submit(core, with_images("b", "n"), err);
    admit_and_run(core, "b", &run);
    SL_CHECK_OK(sl_core_trim(core, &ticket, err));
    for (int i = 0; i < 3; i++) {
        a = expect(core, SL_CORE_UNLOAD);
        SL_CHECK(strcmp(a.key.model, "m") == 0 && a.ticket == ticket);
        done(core, &a, SL_OK);
    }
    a = expect(core, SL_CORE_TRIM);
    SL_CHECK(a.ticket == ticket);
    done(core, &a, SL_OK);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.receipt.line_count == 3 && a.receipt.command_count == 4);
    SL_CHECK(a.receipt.lines[1].measured_bytes == 20 * G);
    SL_CHECK(resident(core, "n", SL_COMPONENT_DIT));
    end(core, &run, "b", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(draining_lets_end_what_has_begun)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    sl_core_answer answer;
    sl_core_action run;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    sl_core_set_draining(core, true);
    submit(core, with_images("b", "m"), err);
    end(core, &run, "a", SL_OK);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_active_count(core) == 0);
    SL_CHECK_OK(sl_core_waiting_for(core, "b", &answer, err));
    SL_CHECK(strcmp(answer.after, "the server admits jobs again") == 0);
    sl_core_set_draining(core, false);
    expect(core, SL_CORE_JOB_ADMITTED);
    sl_core_destroy(core);
}

/* From m, pinned, to n; the text encoder is shared. */
static void check_switch(sl_core_unload_mode mode, size_t host_after, sl_error *err)
{
    sl_core *core = make(config_of(60, 1, 200), err);
    sl_core_need old[] = { need_of("shared", SL_COMPONENT_TEXT_ENCODER, 10),
                           need_of("m", SL_COMPONENT_DIT, 30) };
    sl_core_need new[] = { old[0], need_of("n", SL_COMPONENT_DIT, 40) };
    const sl_budget_facts facts = { .model = "n" };
    uint64_t ticket, steps[SL_CORE_SWITCH_STEPS];
    sl_core_action a;

    for (int i = 0; i < 2; i++) {
        old[i].host_bytes = old[i].size_bytes;
        new[i].host_bytes = new[i].size_bytes;
    }
    SL_CHECK_OK(sl_core_load(core, old, 2, &facts, &ticket, NULL, err));
    SL_CHECK(let_come(core).kind == SL_CORE_TICKET_ENDED);
    submit(core, with_images("a", "o"), err); /* 45: waits, and does not get between */
    expect(core, SL_CORE_NONE);
    SL_CHECK_OK(sl_core_switch(core, new, 2, &facts, mode, SL_CORE_USED_WAIT, steps, NULL, err));
    let(core, SL_CORE_UNLOAD, 1);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == steps[0] && a.status == SL_OK && a.receipt.command_count == 1);
    SL_CHECK(a.receipt.before_bytes - a.receipt.after_bytes == 30 * G);
    SL_CHECK(a.receipt.line_count == 1 && a.receipt.lines[0].measured_bytes == 30 * G);
    if (mode != SL_CORE_UNLOAD_SOFT)
        let(core, SL_CORE_HOST_DROP, 1);
    if (mode == SL_CORE_UNLOAD_HARD) {
        expect(core, SL_CORE_RESTART);
        sl_core_worker_down(core, "killed");
        sl_core_worker_up(core, 0);
    }
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == steps[1] && a.status == SL_OK);
    SL_CHECK(a.receipt.host_after_bytes == host_after);
    a = let_come(core);
    SL_CHECK(a.kind == SL_CORE_TICKET_ENDED && a.ticket == steps[2] && a.status == SL_OK);
    SL_CHECK(a.receipt.residue_bytes == 0);
    SL_CHECK(resident(core, "n", SL_COMPONENT_DIT) && !resident(core, "m", SL_COMPONENT_DIT));
    expect(core, SL_CORE_NONE);
    sl_core_destroy(core);
}

SL_TEST(a_switch_has_three_steps)
{
    check_switch(SL_CORE_UNLOAD_SOFT, 40 * G, err);
    check_switch(SL_CORE_UNLOAD_FULL, 10 * G, err);
    check_switch(SL_CORE_UNLOAD_HARD, 10 * G, err);
}

SL_TEST(a_switch_that_fails_ends_all_its_tickets)
{
    sl_core *core = make(config_of(60, 1, 0), err);
    const sl_core_need need = need_of("n", SL_COMPONENT_DIT, 40);
    const sl_budget_facts facts = { .model = "n" };
    uint64_t steps[SL_CORE_SWITCH_STEPS];
    sl_core_need large = need;
    sl_core_action load;

    large.size_bytes = 61 * G;
    SL_CHECK_STATUS(sl_core_switch(core, &large, 1, &facts, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_WAIT,
                                   steps, NULL, err),
                    SL_ERR_TOO_LARGE);
    SL_CHECK_STATUS(sl_core_switch(core, &need, 1, &facts, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_REFUSE,
                                   steps, NULL, err),
                    SL_ERR_INVALID);
    SL_CHECK_OK(sl_core_switch(core, &need, 1, &facts, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_WAIT,
                               steps, NULL, err));
    for (int i = 0; i < 2; i++)
        SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_OK);
    load = expect(core, SL_CORE_LOAD);
    done(core, &load, SL_ERR_DATA);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_ERR_DATA);
    expect(core, SL_CORE_NONE);
    sl_core_destroy(core);
}

/* ---- pins ---- */

static sl_core_action expect_failures(sl_core *core, const sl_core_action *load, int count)
{
    sl_core_action a = { 0 };

    done(core, load, SL_ERR_DATA);
    for (int i = 0; i < count; i++) {
        a = expect(core, SL_CORE_TICKET_ENDED);
        SL_CHECK(a.status == SL_ERR_DATA);
    }
    return a;
}

SL_TEST(a_pin_goes_with_the_last_load_that_wanted_it)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_need needs[] = { need_of("m", SL_COMPONENT_DIT, 20),
                                   need_of("m", SL_COMPONENT_VAE, 5) };
    const sl_budget_facts facts = { .model = "m" };
    sl_core_action load;
    uint64_t ticket;

    for (int i = 0; i < 2; i++)
        SL_CHECK_OK(sl_core_load(core, needs, 2, &facts, &ticket, NULL, err));
    let(core, SL_CORE_LOAD, 1);
    load = expect(core, SL_CORE_LOAD);
    expect_failures(core, &load, 2);
    SL_CHECK(resident(core, "m", SL_COMPONENT_DIT));
    SL_CHECK(!component(core, "m", SL_COMPONENT_DIT).pinned);

    /* One that has succeeded keeps its pins when another fails. */
    SL_CHECK_OK(sl_core_load(core, needs, 2, &facts, &ticket, NULL, err));
    load = expect(core, SL_CORE_LOAD);
    SL_CHECK_OK(sl_core_load(core, needs, 1, &facts, &ticket, NULL, err));
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_OK);
    expect_failures(core, &load, 1);
    SL_CHECK(component(core, "m", SL_COMPONENT_DIT).pinned);
    expect(core, SL_CORE_NONE);
    sl_core_destroy(core);
}

/* ---- deaths ---- */

SL_TEST(a_death_queues_all_its_jobs_again_in_order)
{
    sl_core *core = make(config_of(100, 2, 200), err);
    sl_core_action run, a;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    submit(core, with_images("b", "n"), err);
    admit_and_run(core, "b", &run);
    submit(core, with_images("c", "o"), err);
    a = expect(core, SL_CORE_HOST_FILL); /* for c */
    sl_core_worker_down(core, "killed by signal 11");
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(strcmp(a.job_id, "a") == 0 && a.attempt == 2);
    SL_CHECK(strstr(a.message, "signal 11; 2 jobs were running side by side"));
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(strcmp(a.job_id, "b") == 0 && a.attempt == 2);
    SL_CHECK(sl_core_position(core, "a") == 1 && sl_core_position(core, "c") == 3);
    a = expect(core, SL_CORE_HOST_DROP); /* half filled; the others stay */
    SL_CHECK(strcmp(a.key.model, "o") == 0);
    done(core, &a, SL_OK);
    SL_CHECK(component(core, "m", SL_COMPONENT_DIT).host_state == SL_CORE_HOST_READY);
    sl_core_worker_up(core, 0);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "a") == 0);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "b") == 0);
    SL_CHECK(expect(core, SL_CORE_LOAD).from_host);
    sl_core_destroy(core);
}

SL_TEST(a_job_that_only_waited_is_not_counted)
{
    sl_core_config config = config_of(100, 1, 0);
    config.prepare_jobs = 1;
    sl_core *core = make(config, err);
    sl_core_action run, a;

    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    submit(core, with_images("b", "n"), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    expect(core, SL_CORE_NONE);
    sl_core_worker_down(core, "killed");
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(strcmp(a.job_id, "a") == 0 && a.attempt == 2);
    a = expect(core, SL_CORE_JOB_REQUEUED);
    SL_CHECK(strcmp(a.job_id, "b") == 0 && a.attempt == 1);
    sl_core_destroy(core);
}

/* ---- tables and limits ---- */

SL_TEST(a_new_table_refuses_queued_jobs_and_lets_running_ones_end)
{
    sl_budget_table *table = calloc(1, sizeof *table);
    sl_core *core = make(config_of(100, 1, 0), err);
    sl_core_action run, a;

    SL_CHECK(table != NULL);
    table->row_count = 1;
    table->rows[0] = (sl_budget_row){ .name = "all", .to_bytes = SIZE_MAX, .rule_count = 1 };
    table->rows[0].rules[0] = (sl_budget_rule){ .text = "no m", .model = "m" };
    submit(core, with_images("a", "m"), err);
    submit(core, with_images("b", "m"), err);
    submit(core, with_images("c", "n"), err);
    admit_and_run(core, "a", &run);
    sl_core_set_table(core, table);
    a = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(strcmp(a.job_id, "b") == 0 && a.status == SL_ERR_TOO_LARGE);
    SL_CHECK(a.answer.when == SL_CORE_NEVER && strcmp(a.answer.rule, "no m") == 0);
    SL_CHECK(strcmp(a.answer.row, "all") == 0 && strstr(a.message, "no m"));
    end(core, &run, "a", SL_OK);
    admit_and_run(core, "c", &run);
    sl_core_set_table(core, NULL);
    submit(core, with_images("d", "m"), err);
    sl_core_destroy(core);
    free(table);
}

SL_TEST(limits_change_at_run_time)
{
    sl_core *core = make(config_of(100, 1, 100), err);
    sl_core_limits limits = sl_core_get_limits(core), bad;
    sl_core_need pinned = need_of("p", SL_COMPONENT_DIT, 30);
    sl_core_action run, a;
    sl_core_ledger ledger;
    uint64_t ticket;

    pinned.host_bytes = 30 * G;
    SL_CHECK_OK(sl_core_load_host(core, &pinned, 1, &ticket, NULL, err));
    SL_CHECK(let_come(core).kind == SL_CORE_TICKET_ENDED);
    submit(core, with_images("a", "m"), err);
    admit_and_run(core, "a", &run);
    bad = limits, bad.max_running_jobs = 0;
    SL_CHECK_STATUS(sl_core_set_limits(core, &bad, err), SL_ERR_INVALID);
    bad = limits, bad.bypass_limit = -1;
    SL_CHECK_STATUS(sl_core_set_limits(core, &bad, err), SL_ERR_INVALID);
    bad = limits, bad.host_limit_bytes = 29 * G;
    SL_CHECK_STATUS(sl_core_set_limits(core, &bad, err), SL_ERR_PRECONDITION);
    limits.host_limit_bytes = 40 * G; /* of 65 used */
    limits.max_running_jobs = 2;
    SL_CHECK_OK(sl_core_set_limits(core, &limits, err));
    sl_core_get_ledger(core, 0, &ledger);
    SL_CHECK(ledger.host_limit_bytes == 65 * G && ledger.host_used_bytes == 65 * G);
    while ((a = next(core)).kind == SL_CORE_HOST_DROP) {
        SL_CHECK(strcmp(a.key.model, "m") == 0);
        done(core, &a, SL_OK);
    }
    sl_core_get_ledger(core, 0, &ledger);
    SL_CHECK(ledger.host_limit_bytes == 40 * G && ledger.host_used_bytes <= 40 * G);
    SL_CHECK(ledger.host_booked_bytes == ledger.host_used_bytes);
    submit(core, with_images("b", "m"), err);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "b") == 0);
    SL_CHECK(expect(core, SL_CORE_RUN).lane == 1);
    sl_core_destroy(core);
}

SL_TEST(nonsense_in_variants_is_refused)
{
    sl_core *core = make(config_of(100, 1, 0), err);
    const sl_core_job job = with_images("a", "m");
    sl_core_job bad;

    bad = job, bad.priority = 10;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variant_count = SL_CORE_MAX_VARIANTS + 1;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.first_phase = 3;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variants[0].phase_count = SL_CORE_MAX_PHASES + 1;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variants[0].phases[1].needs = 1u << 3;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variants[0].phases[1].activation_bytes = 11 * G;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variants[1] = job.variants[0], bad.variant_count = 2;
    bad.variants[1].phase_count = 0;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.variants[0].phase_count = 0, bad.variants[0].by_phase = true;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.cost = NAN;
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    submit(core, job, err);
    sl_core_destroy(core);
}

SL_TEST_MAIN(SL_RUN(an_unload_now_stops_the_job_and_queues_it_again),
             SL_RUN(a_preempted_job_resumes_where_it_can),
             SL_RUN(a_job_whose_state_is_lost_starts_over),
             SL_RUN(a_preemption_that_is_not_obeyed_becomes_a_cancel_then_a_restart),
             SL_RUN(an_unload_can_wait_for_the_job), SL_RUN(a_hard_unload_replaces_the_worker),
             SL_RUN(a_hard_unload_of_nothing_replaces_the_worker),
             SL_RUN(a_worker_that_is_replaced_costs_no_attempt),
             SL_RUN(a_trim_takes_what_is_idle_while_jobs_run),
             SL_RUN(draining_lets_end_what_has_begun), SL_RUN(a_switch_has_three_steps),
             SL_RUN(a_switch_that_fails_ends_all_its_tickets),
             SL_RUN(a_pin_goes_with_the_last_load_that_wanted_it),
             SL_RUN(a_death_queues_all_its_jobs_again_in_order),
             SL_RUN(a_job_that_only_waited_is_not_counted),
             SL_RUN(a_new_table_refuses_queued_jobs_and_lets_running_ones_end),
             SL_RUN(limits_change_at_run_time), SL_RUN(nonsense_in_variants_is_refused))
