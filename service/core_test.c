/* The core by hand, one job at a time: one situation a test.  core_feature_test.c has
 * what goes beyond, core_sim_test.c throws dice. */
#include "service/core_test.h"

SL_TEST(a_job_loads_what_it_lacks_and_runs)
{
    sl_core *core = make_core(100, 4, err);
    sl_core_ledger ledger;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    sl_core_action action = expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(action.attempt == 1 && action.size_bytes == 65 * G);
    action = expect(core, SL_CORE_LOAD);
    SL_CHECK(action.key.component == SL_COMPONENT_TEXT_ENCODER && action.size_bytes == 10 * G);
    SL_CHECK(strcmp(action.job_id, "j") == 0);
    expect(core, SL_CORE_NONE); /* one command at a time */
    sl_core_get_ledger(core, 4 * G, &ledger);
    SL_CHECK(ledger.workspace_bytes == 4 * G && ledger.weights_bytes == 0);
    SL_CHECK(ledger.reserved_bytes == 65 * G && ledger.free_bytes == 31 * G);
    done(core, &action, SL_OK);
    let(core, SL_CORE_LOAD, 2);
    action = expect(core, SL_CORE_RUN);
    SL_CHECK(action.size_bytes == 30 * G);
    sl_core_get_ledger(core, 39 * G, &ledger);
    SL_CHECK(ledger.weights_bytes == 35 * G && ledger.reserved_bytes == 30 * G);
    SL_CHECK(ledger.activations_bytes == 0 && ledger.unexplained_bytes == 0);
    sl_core_job_started(core, "j");
    sl_core_get_ledger(core, 69 * G, &ledger);
    SL_CHECK(ledger.activations_bytes == 30 * G && ledger.reserved_bytes == 0);
    SL_CHECK(ledger.unexplained_bytes == 0 && ledger.free_bytes == 31 * G);
    done(core, &action, SL_OK);
    action = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(action.status == SL_OK && action.attempt == 1);
    expect(core, SL_CORE_NONE);
    sl_core_get_ledger(core, 40 * G, &ledger); /* one granule nobody booked */
    SL_CHECK(ledger.unexplained_bytes == (int64_t)G && ledger.free_bytes == 60 * G);

    submit(core, job_of("k", "m", 10, 20, 5, 30), err); /* nothing to load now */
    let_run(core, "k");
    sl_core_destroy(core);
}

SL_TEST(what_never_fits_is_refused_with_numbers)
{
    sl_core *core = make_core(100, 4, err);
    sl_core_answer answer;
    sl_core_job job = job_of("j", "m", 10, 50, 5, 31), fits = job_of("j", "m", 10, 50, 5, 30 + 1);

    job.activation_bytes = 32 * G;
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TOO_LARGE);
    SL_CHECK(answer.when == SL_CORE_NEVER);
    SL_CHECK(answer.need_bytes == 97 * G && answer.have_bytes == 96 * G);
    SL_CHECK(answer.held_count == 1 && answer.held[0].size_bytes == 4 * G);
    SL_CHECK(answer.row[0] == '\0' && answer.rule[0] == '\0');
    SL_CHECK(sl_core_queued_count(core) == 0);
    expect(core, SL_CORE_NONE);
    submit(core, fits, err); /* to the granule */
    expect(core, SL_CORE_JOB_ADMITTED);
    sl_core_destroy(core);
}

SL_TEST(the_table_refuses)
{
    sl_budget_table *table = calloc(1, sizeof *table);
    sl_core_config config = sl_core_config_default(SL_DEVICE_CUDA, 48 * SL_GIB, 0);
    sl_core *core = NULL;
    sl_core_answer answer;
    sl_core_job job = job_of("j", "wan2.1-t2v-14b", 10, 50, 5, 30);

    SL_CHECK(table != NULL);
    sl_budget_table_default(table);
    config.table = table;
    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, 0);
    SL_CHECK_OK(sl_budget_facts_make(&job.facts, "wan2.1-t2v-14b", sl_arch_find("wan2.1-t2v-14b"),
                                     1u << SL_COMPONENT_DIT, SL_PRECISION_BF16, NULL, err));
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TOO_LARGE);
    SL_CHECK(answer.when == SL_CORE_NEVER && strcmp(answer.row, "40GiB to below 80GiB") == 0);
    SL_CHECK(strstr(answer.rule, "quantised") && strstr(answer.message, answer.rule));
    uint64_t ticket;
    SL_CHECK_STATUS(sl_core_load(core, job.needs, 3, &job.facts, &ticket, &answer, err),
                    SL_ERR_TOO_LARGE);
    sl_core_destroy(core);
    free(table);
}

/* Two experts, a table that does not want both: the idle one goes although
 * there is room, a pinned one is waited for. */
SL_TEST(experts_are_kept_apart_by_rule)
{
    sl_budget_table *table = calloc(1, sizeof *table);
    sl_core_config config = sl_core_config_default(SL_DEVICE_CUDA, 24 * SL_GIB, 0);
    sl_core *core = NULL;
    const sl_core_need high = need_of("a", SL_COMPONENT_DIT_HIGH, 10);
    const sl_core_need low = need_of("a", SL_COMPONENT_DIT_LOW, 10);
    sl_budget_facts facts = { .model = "a", .dit_params = SL_BUDGET_14B_CLASS, .dit_whole = true };
    uint64_t ticket;

    SL_CHECK(table != NULL);
    sl_budget_table_default(table);
    config.table = table;
    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, 0);
    SL_CHECK_OK(sl_core_load(core, &high, 1, &facts, &ticket, NULL, err));
    let(core, SL_CORE_LOAD, 1);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_OK);

    SL_CHECK_OK(sl_core_load(core, &low, 1, &facts, &ticket, NULL, err));
    const sl_core_action refused = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(refused.status == SL_ERR_BUSY && refused.answer.when == SL_CORE_AFTER);
    SL_CHECK(strcmp(refused.answer.after, "a/dit_high (bf16) is unloaded") == 0);
    SL_CHECK(refused.answer.rule[0]);

    sl_core_job job = { .job_id = "j", .need_count = 1, .needs = { low }, .facts = facts };
    SL_CHECK_OK(sl_core_unload(core, &high.key, 1, &ticket, err));
    let(core, SL_CORE_UNLOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    job.needs[0] = high;
    submit(core, job, err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 1);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    job.needs[0] = low; /* high is idle now */
    submit(core, job, err);
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(expect(core, SL_CORE_UNLOAD).key.component == SL_COMPONENT_DIT_HIGH);
    sl_core_destroy(core);
    free(table);
}

SL_TEST(only_what_is_necessary_is_evicted)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_answer answer;
    sl_core_job job = job_of("j", "n", 10, 20, 2, 40); /* 72 */

    submit(core, job_of("i", "m", 8, 30, 2, 10), err); /* leaves 40: 28 + 72 fit */
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);

    /* 12 too much: the smallest (2, 8) do not suffice, 30 alone does. */
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(answer.when == SL_CORE_NOW && answer.evict_count == 1);
    SL_CHECK(answer.evict[0].component == SL_COMPONENT_DIT);
    /* 10 too much: 2 and 8 are smaller together. */
    job.activation_bytes = 38 * G;
    SL_CHECK_OK(sl_core_plan(core, &job, &answer, err));
    SL_CHECK(answer.evict_count == 2);
    submit(core, job, err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_UNLOAD, 2);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    SL_CHECK(resident(core, "m", SL_COMPONENT_DIT));
    SL_CHECK(!resident(core, "m", SL_COMPONENT_VAE));
    sl_core_destroy(core);
}

SL_TEST(pinned_components_make_a_job_wait)
{
    sl_core *core = make_core(100, 4, err);
    sl_core_answer answer;
    uint64_t ticket;
    const sl_core_need pinned = need_of("p", SL_COMPONENT_DIT, 40);

    load(core, pinned, err);
    let(core, SL_CORE_LOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    submit(core, job_of("j", "m", 10, 20, 5, 30), err); /* 65 of 56 */
    submit(core, job_of("k", "m", 1, 1, 1, 1), err);    /* would fit, but is not first */
    expect(core, SL_CORE_NONE);
    SL_CHECK_OK(sl_core_waiting_for(core, "j", &answer, err));
    SL_CHECK(answer.when == SL_CORE_AFTER);
    SL_CHECK(strcmp(answer.after, "p/dit (bf16) is unloaded") == 0);
    SL_CHECK(answer.need_bytes == 65 * G && answer.have_bytes == 56 * G);
    SL_CHECK(answer.held_count == 2 && answer.held[1].size_bytes == 40 * G);
    SL_CHECK_OK(sl_core_waiting_for(core, "k", &answer, err));
    SL_CHECK(strcmp(answer.after, "1 queued job before it ends") == 0);
    SL_CHECK(sl_core_position(core, "j") == 1 && sl_core_position(core, "k") == 2);

    SL_CHECK_OK(sl_core_unload(core, &pinned.key, 1, &ticket, err));
    let(core, SL_CORE_UNLOAD, 1);
    const sl_core_action ended = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(ended.ticket == ticket && ended.status == SL_OK);
    SL_CHECK(ended.receipt.command_count == 1 && ended.receipt.residue_bytes == 0);
    SL_CHECK(ended.receipt.lines[0].planned_bytes == 40 * G);
    SL_CHECK(ended.receipt.lines[0].measured_bytes == 40 * G);
    SL_CHECK(ended.receipt.before_bytes - ended.receipt.after_bytes == 40 * G);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "j") == 0);
    SL_CHECK(sl_core_position(core, "j") == 0 && sl_core_position(core, "k") == 1);
    sl_core_destroy(core);
}

SL_TEST(loads_of_one_component_join)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_need need = need_of("m", SL_COMPONENT_VAE, 10);
    const uint64_t first = load(core, need, err), second = load(core, need, err);

    let(core, SL_CORE_LOAD, 1);
    sl_core_action a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == first && a.receipt.lines[0].measured_bytes == 10 * G);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).ticket == second);
    const uint64_t third = load(core, need, err); /* resident: at once, no command */
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.ticket == third && a.status == SL_OK && a.receipt.command_count == 0);
    expect(core, SL_CORE_NONE);
    sl_core_destroy(core);
}

/* A load that joins a job's keeps its room when the job is cancelled. */
SL_TEST(a_joined_load_survives_the_job)
{
    sl_core *core = make_core(100, 0, err);

    submit(core, job_of("i", "m", 30, 30, 10, 10), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    submit(core, job_of("j", "n", 10, 75, 5, 5), err);
    expect(core, SL_CORE_JOB_ADMITTED); /* all three have to go */
    load(core, need_of("n", SL_COMPONENT_DIT, 75), err);
    const sl_core_action unload = expect(core, SL_CORE_UNLOAD);
    SL_CHECK_OK(sl_core_cancel(core, "j", 0, err));
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).status == SL_ERR_CANCELLED);
    done(core, &unload, SL_OK);
    let(core, SL_CORE_UNLOAD, 1); /* with 30 still there, 75 would not fit; with 10 it does */
    let(core, SL_CORE_LOAD, 1);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_OK);
    expect(core, SL_CORE_NONE);
    SL_CHECK(resident(core, "n", SL_COMPONENT_DIT) && resident(core, "m", SL_COMPONENT_VAE));
    SL_CHECK(sl_core_component_count(core) == 2);
    sl_core_destroy(core);
}

SL_TEST(a_cancelled_job_leaves_what_it_has_not_evicted)
{
    sl_core *core = make_core(100, 0, err);

    submit(core, job_of("i", "m", 30, 30, 10, 10), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    submit(core, job_of("j", "n", 10, 75, 5, 5), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_UNLOAD, 1);
    SL_CHECK_OK(sl_core_cancel(core, "j", 0, err));
    expect(core, SL_CORE_JOB_ENDED);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_component_count(core) == 2);
    sl_core_destroy(core);
}

SL_TEST(an_unload_outlives_the_job_that_evicts_the_same)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_key key = need_of("m", SL_COMPONENT_DIT, 30).key;
    uint64_t ticket;

    submit(core, job_of("i", "m", 30, 30, 10, 10), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    submit(core, job_of("j", "n", 10, 75, 5, 5), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    const sl_core_action unload = expect(core, SL_CORE_UNLOAD); /* the first of three */
    SL_CHECK_OK(sl_core_unload(core, &key, 1, &ticket, err));
    expect(core, SL_CORE_NONE);
    SL_CHECK_OK(sl_core_cancel(core, "j", 0, err));
    expect(core, SL_CORE_JOB_ENDED);
    done(core, &unload, SL_OK);
    SL_CHECK(expect(core, SL_CORE_UNLOAD).key.component == SL_COMPONENT_DIT);
    sl_core_destroy(core);
}

/* All or nothing: what a failed load had pinned is idle again. */
SL_TEST(a_failed_load_leaves_no_pin)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_need needs[] = { need_of("m", SL_COMPONENT_TEXT_ENCODER, 10),
                                   need_of("m", SL_COMPONENT_DIT, 20),
                                   need_of("m", SL_COMPONENT_VAE, 5) };
    const sl_budget_facts facts = { .model = "m" };
    uint64_t ticket;

    SL_CHECK_OK(sl_core_load(core, needs, 3, &facts, &ticket, NULL, err));
    let(core, SL_CORE_LOAD, 1);
    const sl_core_action second = expect(core, SL_CORE_LOAD);
    done(core, &second, SL_ERR_DATA);
    const sl_core_action ended = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(ended.ticket == ticket && ended.status == SL_ERR_DATA);
    SL_CHECK(ended.receipt.lines[0].measured_bytes == 10 * G);
    SL_CHECK(ended.receipt.lines[1].measured_bytes == 0);
    expect(core, SL_CORE_NONE); /* the third is not wanted any more */
    SL_CHECK(sl_core_component_count(core) == 1);
    submit(core, job_of("j", "n", 10, 60, 10, 15), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_UNLOAD, 1);
    sl_core_destroy(core);
}

SL_TEST(a_load_replaces_files_that_have_changed)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_need need = need_of("m", SL_COMPONENT_DIT, 20);
    uint64_t ticket;

    load(core, need, err);
    let(core, SL_CORE_LOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    load(core, need_of("m", SL_COMPONENT_DIT, 22), err); /* pinned as it was */
    const sl_core_action refused = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(refused.status == SL_ERR_BUSY);
    SL_CHECK(strcmp(refused.answer.after, "m/dit (bf16) is unloaded") == 0);
    SL_CHECK_OK(sl_core_unload(core, &need.key, 1, &ticket, err));
    load(core, need_of("m", SL_COMPONENT_DIT, 22), err);
    let(core, SL_CORE_UNLOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(expect(core, SL_CORE_LOAD).size_bytes == 22 * G);
    sl_core_destroy(core);
}

SL_TEST(a_component_in_use_is_not_unloaded)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_need used = need_of("m", SL_COMPONENT_DIT, 20);
    uint64_t ticket;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK_STATUS(sl_core_unload(core, &used.key, 1, &ticket, err), SL_ERR_PRECONDITION);
    SL_CHECK(strstr(err->message, "job \"j\""));
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK_OK(sl_core_unload(core, &used.key, 1, &ticket, err));
    let(core, SL_CORE_UNLOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK_OK(sl_core_unload(core, &used.key, 1, &ticket, err)); /* gone already: fine */
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).status == SL_OK);
    sl_core_destroy(core);
}

SL_TEST(tickets_are_served_in_order_before_the_next_job)
{
    sl_core *core = make_core(100, 0, err);
    const sl_core_need need = need_of("p", SL_COMPONENT_DIT, 40);
    uint64_t ticket;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    submit(core, job_of("k", "m", 10, 20, 5, 30), err);
    const uint64_t in = load(core, need, err);
    SL_CHECK_OK(sl_core_unload(core, &need.key, 1, &ticket, err));
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(strcmp(expect(core, SL_CORE_LOAD).key.model, "p") == 0);
    const sl_core_done ok = { .status = SL_OK };
    SL_CHECK(sl_core_command_done(core, 5, &ok, 0));
    SL_CHECK(!sl_core_command_done(core, 5, &ok, 0)); /* a second done of one command */
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).ticket == in);
    let(core, SL_CORE_UNLOAD, 1);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).ticket == ticket);
    let_run(core, "k");
    sl_core_destroy(core);
}

SL_TEST(cancel_takes_effect_in_every_state)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_action action;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    submit(core, job_of("k", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK_OK(sl_core_cancel(core, "k", 0, err)); /* queued */
    action = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(strcmp(action.job_id, "k") == 0 && action.status == SL_ERR_CANCELLED);
    action = expect(core, SL_CORE_LOAD);
    SL_CHECK_OK(sl_core_cancel(core, "j", 0, err)); /* loading */
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).status == SL_ERR_CANCELLED);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_component_count(core) == 1); /* the load is not called back */
    done(core, &action, SL_OK);
    expect(core, SL_CORE_NONE);

    submit(core, job_of("l", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 2);
    action = expect(core, SL_CORE_RUN);
    SL_CHECK_OK(sl_core_cancel(core, "l", 0, err)); /* running */
    SL_CHECK_OK(sl_core_cancel(core, "l", 0, err)); /* again: the same */
    SL_CHECK(strcmp(expect(core, SL_CORE_CANCEL).job_id, "l") == 0);
    expect(core, SL_CORE_NONE);
    done(core, &action, SL_ERR_CANCELLED);
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).status == SL_ERR_CANCELLED);
    SL_CHECK_STATUS(sl_core_cancel(core, "l", 0, err), SL_ERR_NOT_FOUND);
    sl_core_destroy(core);
}

SL_TEST(a_cancel_that_is_not_obeyed_restarts_the_worker)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_action action;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    expect(core, SL_CORE_RUN);
    SL_CHECK_OK(sl_core_cancel(core, "j", 7, err));
    expect(core, SL_CORE_CANCEL);
    SL_CHECK(sl_core_wake_ns(core) == 7 + 5 * SL_NS_PER_S);
    SL_CHECK(!sl_core_next(core, 6 + 5 * SL_NS_PER_S, &action));
    SL_CHECK(sl_core_next(core, 7 + 5 * SL_NS_PER_S, &action));
    SL_CHECK(action.kind == SL_CORE_RESTART);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_wake_ns(core) == INT64_MAX);
    sl_core_worker_down(core, "killed");
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).status == SL_ERR_CANCELLED);
    sl_core_destroy(core);
}

SL_TEST(a_death_puts_the_job_first_and_reloads_pins)
{
    sl_core *core = make_core(100, 4, err);
    sl_core_action action;
    sl_core_ledger ledger;

    load(core, need_of("p", SL_COMPONENT_VAE, 10), err);
    let(core, SL_CORE_LOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    submit(core, job_of("k", "m", 10, 20, 5, 30), err);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).attempt == 1);
    for (int attempt = 1; attempt <= 3; attempt++) {
        let(core, SL_CORE_LOAD, 3);
        action = expect(core, SL_CORE_RUN);
        SL_CHECK(action.attempt == attempt);
        sl_core_job_started(core, "j");
        sl_core_worker_down(core, "killed by signal 9");
        sl_core_get_ledger(core, 12345, &ledger);
        SL_CHECK(ledger.weights_bytes == 0 && ledger.activations_bytes == 0);
        SL_CHECK(ledger.workspace_bytes == 0 && ledger.unexplained_bytes == 0);
        SL_CHECK(ledger.reserved_bytes == 14 * G); /* the pin and the workspace */
        action = next(core);
        if (attempt < 3) {
            SL_CHECK(action.kind == SL_CORE_JOB_REQUEUED && action.attempt == attempt + 1);
            SL_CHECK(sl_core_position(core, "j") == 1);
        } else {
            SL_CHECK(action.kind == SL_CORE_JOB_ENDED && action.status == SL_ERR_UNAVAILABLE);
            SL_CHECK(strstr(action.message, "killed by signal 9"));
        }
        expect(core, SL_CORE_NONE); /* no worker, nothing to do */
        sl_core_worker_up(core, 4 * G);
        action = expect(core, SL_CORE_JOB_ADMITTED);
        SL_CHECK(strcmp(action.job_id, attempt < 3 ? "j" : "k") == 0);
        SL_CHECK(action.attempt == attempt % 3 + 1);
        action = expect(core, SL_CORE_LOAD);
        SL_CHECK(strcmp(action.key.model, "p") == 0);
        done(core, &action, SL_OK);
    }
    sl_core_destroy(core);
}

SL_TEST(a_pin_that_kills_workers_is_given_up)
{
    sl_core *core = make_core(100, 4, err);

    load(core, need_of("p", SL_COMPONENT_VAE, 10), err);
    let(core, SL_CORE_LOAD, 1);
    expect(core, SL_CORE_TICKET_ENDED);
    sl_core_worker_down(core, "killed");
    for (int i = 0; i < 3; i++) {
        sl_core_worker_up(core, 4 * G);
        expect(core, SL_CORE_LOAD);
        sl_core_worker_down(core, "bus error");
    }
    const sl_core_action lost = expect(core, SL_CORE_PIN_LOST);
    SL_CHECK(strcmp(lost.key.model, "p") == 0 && strstr(lost.message, "bus error"));
    sl_core_worker_up(core, 4 * G);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_component_count(core) == 0);
    sl_core_destroy(core);
}

SL_TEST(a_failed_load_ends_whoever_asked)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_action action;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    const uint64_t ticket = load(core, need_of("m", SL_COMPONENT_TEXT_ENCODER, 10), err);
    action = expect(core, SL_CORE_LOAD);
    done(core, &action, SL_ERR_DATA);
    action = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(action.status == SL_ERR_DATA && strcmp(action.message, "as the test wants it") == 0);
    action = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(action.ticket == ticket && action.status == SL_ERR_DATA);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_component_count(core) == 0);
    sl_core_destroy(core);
}

SL_TEST(memory_that_the_driver_refuses_is_asked_for_again_later)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_action action;
    int64_t now_ns = 0;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    for (int i = 0; i < 9; i++) {
        SL_CHECK(sl_core_next(core, now_ns, &action) && action.kind == SL_CORE_RUN);
        done_at(core, &action, SL_ERR_NO_MEMORY, now_ns);
        SL_CHECK(sl_core_next(core, now_ns, &action));
        if (i == 8)
            break;
        SL_CHECK(action.kind == SL_CORE_JOB_REQUEUED && action.attempt == 1);
        SL_CHECK(action.status == SL_ERR_NO_MEMORY);
        SL_CHECK(!sl_core_next(core, now_ns, &action));
        SL_CHECK(sl_core_wake_ns(core) == now_ns + SL_NS_PER_S);
        now_ns = sl_core_wake_ns(core);
        SL_CHECK(sl_core_next(core, now_ns, &action) && action.kind == SL_CORE_JOB_ADMITTED);
        SL_CHECK(sl_core_wake_ns(core) == INT64_MAX);
    }
    SL_CHECK(action.kind == SL_CORE_JOB_ENDED && action.status == SL_ERR_NO_MEMORY);
    sl_core_destroy(core);
}

SL_TEST(a_device_fault_costs_the_worker)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_action action;

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    action = expect(core, SL_CORE_RUN);
    done(core, &action, SL_ERR_DEVICE);
    expect(core, SL_CORE_RESTART);
    expect(core, SL_CORE_NONE);
    sl_core_worker_down(core, "killed");
    SL_CHECK(expect(core, SL_CORE_JOB_REQUEUED).attempt == 2);
    sl_core_worker_up(core, 0);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).attempt == 2);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    SL_CHECK(expect(core, SL_CORE_JOB_ENDED).attempt == 2);
    sl_core_destroy(core);
}

SL_TEST(changed_files_replace_what_is_resident)
{
    sl_core *core = make_core(100, 0, err);

    submit(core, job_of("j", "m", 10, 20, 5, 30), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_LOAD, 3);
    let(core, SL_CORE_RUN, 1);
    expect(core, SL_CORE_JOB_ENDED);
    submit(core, job_of("k", "m", 10, 22, 5, 30), err); /* another DiT under the name */
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(expect(core, SL_CORE_UNLOAD).size_bytes == 20 * G);
    const sl_core_done ok = { .status = SL_OK };
    SL_CHECK(sl_core_command_done(core, 5, &ok, 0));
    SL_CHECK(expect(core, SL_CORE_LOAD).size_bytes == 22 * G);
    sl_core_destroy(core);
}

SL_TEST(nonsense_is_refused)
{
    sl_core *core = make_core(100, 0, err);
    sl_core_job job = job_of("j", "m", 10, 20, 5, 30), bad;
    sl_core_answer answer;

    bad = job, bad.job_id[0] = '\0';
    SL_CHECK_STATUS(sl_core_submit(core, &bad, NULL, err), SL_ERR_INVALID);
    bad = job, bad.need_count = SL_CORE_MAX_NEEDS + 1;
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    bad = job, bad.needs[1].size_bytes = 0;
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    bad = job, bad.needs[1].size_bytes = SIZE_MAX - 10 * G;
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    bad = job, bad.activation_bytes = SIZE_MAX;
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    bad = job, bad.needs[1].key = bad.needs[0].key;
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    bad = job, memset(bad.needs[0].key.model, 'x', sizeof bad.needs[0].key.model);
    SL_CHECK_STATUS(sl_core_plan(core, &bad, &answer, err), SL_ERR_INVALID);
    submit(core, job, err);
    SL_CHECK_STATUS(sl_core_submit(core, &job, NULL, err), SL_ERR_EXISTS);
    uint64_t ticket;
    SL_CHECK_STATUS(sl_core_unload(core, &job.needs[0].key, 0, &ticket, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_core_unload(core, &job.needs[0].key, SL_CORE_MAX_KEYS + 1, &ticket, err),
                    SL_ERR_INVALID);
    sl_core_destroy(core);
}

SL_TEST(a_full_queue_says_so)
{
    sl_core_config config = sl_core_config_default(SL_DEVICE_CPU, 100 * G, 0);
    sl_core *core = NULL;
    sl_core_job job = job_of("c", "m", 10, 20, 5, 30);

    config.queue_limit = 2;
    SL_CHECK_OK(sl_core_create(&core, &config, err)); /* no worker yet */
    submit(core, job_of("a", "m", 10, 20, 5, 30), err);
    submit(core, job_of("b", "m", 10, 20, 5, 30), err);
    SL_CHECK_STATUS(sl_core_submit(core, &job, NULL, err), SL_ERR_BUSY);
    sl_core_answer answer;
    SL_CHECK_OK(sl_core_waiting_for(core, "a", &answer, err));
    SL_CHECK(strcmp(answer.after, "the device's worker is up") == 0);
    sl_core_destroy(core);
}

/* The arena gave back what was planned, the driver did not. */
SL_TEST(what_the_driver_keeps_is_residue)
{
    sl_core *core = make_core(100, 4, err);
    const sl_core_need pinned = need_of("p", SL_COMPONENT_DIT, 40);
    uint64_t ticket;

    sl_core_worker_down(core, "test");
    sl_core_set_limit(core, 90 * G); /* receipts tell what is free of what is there */
    sl_core_worker_up(core, 4 * G);
    load(core, pinned, err);
    let(core, SL_CORE_LOAD, 1);
    SL_CHECK(expect(core, SL_CORE_TICKET_ENDED).receipt.limit_bytes == 90 * G);
    SL_CHECK_OK(sl_core_unload(core, &pinned.key, 1, &ticket, err));
    const sl_core_action action = expect(core, SL_CORE_UNLOAD);
    const sl_core_done end = { .message = "",
                               .before_bytes = 44 * G,
                               .after_bytes = 4 * G,
                               .kept_bytes = 3 * G };
    SL_CHECK(sl_core_command_done(core, action.command_id, &end, 0));
    const sl_core_action ended = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(ended.status == SL_OK && ended.receipt.residue_bytes == 3 * (int64_t)G);
    SL_CHECK(ended.receipt.lines[0].measured_bytes == 40 * G);
    sl_core_destroy(core);
}

/* A card tells what its arena really has only when its worker has measured itself:
 * what waits is judged anew, both ways. */
SL_TEST(the_worker_says_what_the_arena_has)
{
    sl_core *core = make_core(100, 4, err);
    sl_core_answer answer;
    sl_core_ledger ledger;

    sl_core_worker_down(core, "test");
    submit(core, job_of("j", "m", 10, 20, 5, 30), err); /* 65 of 96 */
    sl_core_set_limit(core, 0);
    sl_core_set_limit(core, SIZE_MAX);
    sl_core_worker_up(core, 4 * G);
    sl_core_get_ledger(core, 4 * G, &ledger);
    SL_CHECK(ledger.limit_bytes == 100 * G); /* neither was taken */
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "j") == 0);
    sl_core_worker_down(core, "test");
    expect(core, SL_CORE_JOB_REQUEUED);
    expect(core, SL_CORE_NONE);
    submit(core, job_of("k", "m", 10, 20, 5, 31), err); /* 66 of 96 */
    sl_core_set_limit(core, 69 * G);
    sl_core_worker_up(core, 4 * G);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ENDED).job_id, "k") == 0);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "j") == 0);
    sl_core_get_ledger(core, 4 * G, &ledger);
    SL_CHECK(ledger.limit_bytes == 69 * G && ledger.free_bytes == 0);
    sl_core_job big = job_of("l", "m", 10, 20, 5, 31);
    SL_CHECK_STATUS(sl_core_submit(core, &big, &answer, err), SL_ERR_TOO_LARGE);
    SL_CHECK(answer.have_bytes == 65 * G);
    sl_core_destroy(core);
}

SL_TEST_MAIN(SL_RUN(a_job_loads_what_it_lacks_and_runs),
             SL_RUN(what_never_fits_is_refused_with_numbers),
             SL_RUN(the_worker_says_what_the_arena_has), SL_RUN(what_the_driver_keeps_is_residue),
             SL_RUN(the_table_refuses),
             SL_RUN(experts_are_kept_apart_by_rule), SL_RUN(only_what_is_necessary_is_evicted),
             SL_RUN(pinned_components_make_a_job_wait), SL_RUN(loads_of_one_component_join),
             SL_RUN(a_joined_load_survives_the_job),
             SL_RUN(a_cancelled_job_leaves_what_it_has_not_evicted),
             SL_RUN(an_unload_outlives_the_job_that_evicts_the_same),
             SL_RUN(a_failed_load_leaves_no_pin), SL_RUN(a_load_replaces_files_that_have_changed),
             SL_RUN(a_component_in_use_is_not_unloaded),
             SL_RUN(tickets_are_served_in_order_before_the_next_job),
             SL_RUN(cancel_takes_effect_in_every_state),
             SL_RUN(a_cancel_that_is_not_obeyed_restarts_the_worker),
             SL_RUN(a_death_puts_the_job_first_and_reloads_pins),
             SL_RUN(a_pin_that_kills_workers_is_given_up), SL_RUN(a_failed_load_ends_whoever_asked),
             SL_RUN(memory_that_the_driver_refuses_is_asked_for_again_later),
             SL_RUN(a_device_fault_costs_the_worker),
             SL_RUN(changed_files_replace_what_is_resident), SL_RUN(nonsense_is_refused),
             SL_RUN(a_full_queue_says_so))
