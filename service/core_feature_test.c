/* The core beyond one job at a time: lanes, phases, variants, the host tier. */
#include "service/core_test.h"

/* ---- lanes ---- */

SL_TEST(jobs_of_two_models_run_side_by_side)
{
    sl_core *core = make(config_of(100, 2, 0), err);
    sl_core_action a, b;
    sl_core_active active;
    sl_core_answer answer;

    submit(core, job_of("a", "m", 10, 10, 10, 10), err); /* 40 */
    admit_and_run(core, "a", &a);
    SL_CHECK(a.lane == 0);
    submit(core, job_of("b", "n", 10, 10, 10, 20), err); /* 50 */
    submit(core, job_of("c", "n", 10, 10, 10, 10), err);
    admit_and_run(core, "b", &b); /* loads while a runs */
    SL_CHECK(b.lane == 1 && sl_core_active_count(core) == 2);
    sl_core_get_active_at(core, 1, &active);
    SL_CHECK(strcmp(active.job_id, "b") == 0 && active.running && active.lane == 1);
    expect(core, SL_CORE_NONE); /* there are two lanes */
    SL_CHECK_OK(sl_core_waiting_for(core, "c", &answer, err));
    SL_CHECK(answer.when == SL_CORE_AFTER && strstr(answer.after, "2 active jobs"));
    end(core, &a, "a", SL_OK);
    admit_and_run(core, "c", &a); /* shares b's components: 50 + 10 */
    SL_CHECK(a.lane == 0);
    end(core, &b, "b", SL_OK);
    end(core, &a, "c", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(what_does_not_fit_beside_waits_for_the_bytes)
{
    sl_core *core = make(config_of(100, 2, 0), err);
    sl_core_action a;
    sl_core_answer answer;
    sl_core_ledger ledger;

    submit(core, job_of("a", "m", 10, 10, 10, 30), err); /* 60 */
    submit(core, job_of("b", "n", 10, 20, 10, 1), err);  /* 41 */
    admit_and_run(core, "a", &a);
    expect(core, SL_CORE_NONE);
    SL_CHECK_OK(sl_core_waiting_for(core, "b", &answer, err));
    SL_CHECK(strcmp(answer.after, "job a ends") == 0);
    SL_CHECK(answer.need_bytes == 41 * G && answer.have_bytes == 40 * G);
    SL_CHECK(answer.held_count == 4);
    sl_core_get_ledger(core, 60 * G, &ledger);
    SL_CHECK(ledger.booked_bytes == 60 * G && ledger.free_bytes == 40 * G);
    end(core, &a, "a", SL_OK);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "b") == 0);
    sl_core_destroy(core);
}

SL_TEST(the_next_job_loads_while_one_runs)
{
    sl_core_config config = config_of(100, 1, 0);
    sl_core_action a, b;

    config.prepare_jobs = 1;
    sl_core *core = make(config, err);
    submit(core, job_of("a", "m", 10, 10, 10, 10), err);
    admit_and_run(core, "a", &a);
    submit(core, job_of("b", "n", 10, 10, 10, 10), err);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "b") == 0);
    let(core, SL_CORE_LOAD, 3);
    expect(core, SL_CORE_NONE); /* ready, and the lane is taken */
    end(core, &a, "a", SL_OK);
    b = expect(core, SL_CORE_RUN); /* at once */
    SL_CHECK(strcmp(b.job_id, "b") == 0);
    sl_core_destroy(core);
}

/* ---- phases ---- */

SL_TEST(phases_give_back_what_they_do_not_need)
{
    sl_core *core = make(config_of(100, 2, 0), err);
    sl_core_action a, b;
    sl_core_ledger ledger;

    sl_core_job first = phased("a", "m", 30, 20, 5, 2, 40, 10); /* 95 */
    submit(core, first, err);
    submit(core, job_of("b", "n", 10, 10, 10, 15), err); /* 45 */
    admit_and_run(core, "a", &a);
    SL_CHECK(a.size_bytes == 40 * G && a.phase == 0);
    expect(core, SL_CORE_NONE);
    sl_core_phase(core, "a", 1);
    sl_core_get_ledger(core, 95 * G, &ledger);
    SL_CHECK(ledger.activations_bytes == 40 * G); /* the largest is still to come */
    expect(core, SL_CORE_NONE);                   /* 65 + 45: without the text encoder */
    SL_CHECK(component(core, "m", SL_COMPONENT_TEXT_ENCODER).users == 0);
    sl_core_phase(core, "a", 2);
    sl_core_get_ledger(core, 65 * G, &ledger);
    SL_CHECK(ledger.activations_bytes == 10 * G && ledger.unexplained_bytes == 0);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, "b") == 0); /* 15 + 45 */
    b = let_come(core);
    SL_CHECK(b.kind == SL_CORE_RUN);
    SL_CHECK(component(core, "m", SL_COMPONENT_VAE).state == SL_CORE_READY);
    sl_core_phase(core, "a", 1); /* not back */
    sl_core_get_ledger(core, 0, &ledger);
    SL_CHECK(ledger.activations_bytes == 10 * G);
    end(core, &a, "a", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(a_job_by_phase_needs_room_for_one_phase_only)
{
    sl_core *core = make(config_of(60, 1, 0), err);
    sl_core_job job = phased("a", "m", 50, 40, 5, 2, 15, 20);
    sl_core_action a;
    sl_core_answer answer;
    sl_core_ledger ledger;

    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TOO_LARGE);
    job.variants[0].by_phase = true;
    SL_CHECK_OK(sl_core_submit(core, &job, &answer, err));
    SL_CHECK(answer.when == SL_CORE_NOW && answer.need_bytes == 55 * G); /* of the second */
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(expect(core, SL_CORE_LOAD).size_bytes == 50 * G);
    sl_core_command_done(core, 1, &(sl_core_done){ .status = SL_OK }, 0);
    a = expect(core, SL_CORE_RUN);
    SL_CHECK(a.size_bytes == 2 * G);
    sl_core_job_started(core, "a");
    sl_core_get_ledger(core, 52 * G, &ledger);
    SL_CHECK(ledger.booked_bytes == 55 * G && ledger.reserved_bytes == 3 * G);
    sl_core_phase(core, "a", 1);
    SL_CHECK(expect(core, SL_CORE_UNLOAD).size_bytes == 50 * G);
    expect(core, SL_CORE_NONE); /* the worker waits */
    sl_core_command_done(core, 3, &(sl_core_done){ .status = SL_OK }, 0);
    let(core, SL_CORE_LOAD, 1);
    const sl_core_action go = expect(core, SL_CORE_PHASE_GO);
    SL_CHECK(go.phase == 1 && go.size_bytes == 15 * G && strcmp(go.job_id, "a") == 0);
    sl_core_job_started(core, "a");
    /* 55 of 60 are mapped: the VAE (5) fits beside, and comes early. */
    SL_CHECK(expect(core, SL_CORE_LOAD).key.component == SL_COMPONENT_VAE);
    sl_core_command_done(core, 5, &(sl_core_done){ .status = SL_OK }, 0);
    sl_core_phase(core, "a", 2);
    sl_core_get_ledger(core, 60 * G, &ledger);
    SL_CHECK(ledger.unexplained_bytes == 0 && ledger.activations_bytes == 15 * G);
    SL_CHECK(expect(core, SL_CORE_UNLOAD).size_bytes == 40 * G); /* 40 + 5 + 20 is too much */
    sl_core_command_done(core, 6, &(sl_core_done){ .status = SL_OK }, 0);
    SL_CHECK(expect(core, SL_CORE_PHASE_GO).size_bytes == 20 * G);
    end(core, &a, "a", SL_OK);
    sl_core_destroy(core);
}

SL_TEST(a_component_that_fails_at_an_edge_stops_the_run)
{
    sl_core *core = make(config_of(60, 1, 0), err);
    sl_core_job job = phased("a", "m", 50, 40, 5, 2, 15, 20);
    sl_core_action run, load;

    job.variants[0].by_phase = true;
    submit(core, job, err);
    admit_and_run(core, "a", &run);
    sl_core_phase(core, "a", 1);
    let(core, SL_CORE_UNLOAD, 1);
    load = expect(core, SL_CORE_LOAD);
    done(core, &load, SL_ERR_DATA);
    SL_CHECK(strcmp(expect(core, SL_CORE_CANCEL).job_id, "a") == 0);
    done(core, &run, SL_ERR_CANCELLED);
    const sl_core_action a = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(a.status == SL_ERR_DATA && strcmp(a.message, "as the test wants it") == 0);
    sl_core_destroy(core);
}

/* ---- variants ---- */

SL_TEST(streaming_is_for_what_can_never_fit)
{
    sl_core *core = make(config_of(100, 1, 200), err);
    sl_core_job job = phased("a", "m", 10, 90, 5, 2, 10, 10); /* 115 */
    sl_core_job fits = phased("b", "n", 10, 60, 5, 2, 10, 10);
    sl_core_answer answer;
    sl_core_action run;

    job.variants[1] = streamed_of(&job.variants[0], 20);
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TOO_LARGE);
    job.variant_count = 2;
    SL_CHECK_OK(sl_core_submit(core, &job, &answer, err));
    SL_CHECK(answer.variant == 1 && answer.need_bytes == 45 * G);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).variant == 1);
    run = let_come(core);
    SL_CHECK(run.kind == SL_CORE_RUN && run.variant == 1);
    SL_CHECK(component(core, "m", SL_COMPONENT_DIT).host_state == SL_CORE_HOST_READY);
    SL_CHECK(component(core, "m", SL_COMPONENT_DIT).size_bytes == 20 * G);
    end(core, &run, "a", SL_OK);

    /* One that could be resident later waits for that. */
    load(core, need_of("p", SL_COMPONENT_DIT, 40), err);
    run = let_come(core);
    SL_CHECK(run.kind == SL_CORE_TICKET_ENDED);
    fits.variants[1] = streamed_of(&fits.variants[0], 10);
    fits.variant_count = 2;
    SL_CHECK_OK(sl_core_submit(core, &fits, &answer, err));
    SL_CHECK(answer.when == SL_CORE_AFTER && answer.pinned && answer.variant == 0);
    expect(core, SL_CORE_NONE);
    sl_core_destroy(core);
}

SL_TEST(a_variant_that_does_not_stream_serves_when_it_fits_at_once)
{
    sl_core *core = make(config_of(100, 2, 0), err);
    sl_core_job job = phased("b", "n", 30, 30, 5, 2, 10, 10); /* 75, by phase 40 */
    sl_core_action a;

    job.variants[1] = job.variants[0];
    job.variants[1].by_phase = true;
    job.variant_count = 2;
    submit(core, job_of("a", "m", 10, 20, 10, 10), err);
    admit_and_run(core, "a", &a);
    submit(core, job, err);
    SL_CHECK(expect(core, SL_CORE_JOB_ADMITTED).variant == 1);
    sl_core_destroy(core);
}

SL_TEST(a_streamed_component_needs_a_host_tier)
{
    sl_core *core = make(config_of(100, 1, 89), err);
    sl_core_job job = phased("a", "m", 10, 90, 5, 2, 10, 10);
    sl_core_answer answer;

    job.variants[1] = streamed_of(&job.variants[0], 20);
    job.variant_count = 2;
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_TOO_LARGE);
    SL_CHECK(answer.when == SL_CORE_NEVER && answer.variant == -1);
    SL_CHECK(answer.host && answer.need_bytes == 90 * G && answer.have_bytes == 89 * G);
    job.variants[1].needs[1].host_bytes = 0;
    SL_CHECK_STATUS(sl_core_submit(core, &job, &answer, err), SL_ERR_INVALID);
    sl_core_destroy(core);
}

/* ---- the host tier ---- */

SL_TEST(loads_go_through_the_host_tier_and_come_back_from_it)
{
    sl_core *core = make(config_of(100, 1, 45), err);
    const sl_core_job job = phased("a", "m", 20, 20, 10, 2, 10, 10); /* images: 50 */
    sl_core_action a;
    sl_core_ledger ledger;
    uint64_t ticket;

    submit(core, job, err);
    expect(core, SL_CORE_JOB_ADMITTED);
    for (int i = 0; i < 2; i++) {
        a = expect(core, SL_CORE_HOST_FILL);
        SL_CHECK(a.size_bytes == 20 * G && strcmp(a.job_id, "a") == 0);
        done(core, &a, SL_OK);
        a = expect(core, SL_CORE_LOAD);
        SL_CHECK(a.from_host);
        done(core, &a, SL_OK);
    }
    a = expect(core, SL_CORE_LOAD); /* no room for a third image */
    SL_CHECK(!a.from_host && a.key.component == SL_COMPONENT_VAE);
    done(core, &a, SL_OK);
    sl_core_get_ledger(core, 0, &ledger);
    SL_CHECK(ledger.host_limit_bytes == 45 * G && ledger.host_used_bytes == 40 * G);
    a = expect(core, SL_CORE_RUN);
    end(core, &a, "a", SL_OK);

    const sl_core_key *text = &job.variants[0].needs[0].key, *dit = &job.variants[0].needs[1].key;
    SL_CHECK_OK(
        sl_core_unload_as(core, text, 1, SL_CORE_UNLOAD_SOFT, SL_CORE_USED_REFUSE, &ticket, err));
    let(core, SL_CORE_UNLOAD, 1);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.receipt.host_before_bytes == 40 * G && a.receipt.host_after_bytes == 40 * G);
    SL_CHECK(component(core, "m", SL_COMPONENT_TEXT_ENCODER).state == SL_CORE_ABSENT);
    SL_CHECK(component(core, "m", SL_COMPONENT_TEXT_ENCODER).host_state == SL_CORE_HOST_READY);
    SL_CHECK_OK(sl_core_unload(core, dit, 1, &ticket, err)); /* full */
    let(core, SL_CORE_UNLOAD, 1);
    let(core, SL_CORE_HOST_DROP, 1);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.receipt.host_before_bytes == 40 * G && a.receipt.host_after_bytes == 20 * G);
    SL_CHECK(a.receipt.command_count == 2 && a.receipt.residue_bytes == 0);

    submit(core, phased("b", "m", 20, 20, 10, 2, 10, 10), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    a = expect(core, SL_CORE_LOAD);
    SL_CHECK(a.from_host && a.key.component == SL_COMPONENT_TEXT_ENCODER);
    sl_core_destroy(core);
}

SL_TEST(the_next_jobs_components_are_fetched_into_the_host_tier)
{
    sl_core *core = make(config_of(100, 1, 200), err);
    sl_core_action a, fill;

    submit(core, phased("a", "m", 20, 30, 10, 2, 30, 10), err); /* 90 */
    submit(core, phased("b", "n", 20, 30, 10, 2, 30, 10), err);
    submit(core, phased("c", "o", 20, 30, 10, 2, 30, 10), err);
    admit_and_run(core, "a", &a);
    for (int i = 0; i < 3; i++) {
        fill = expect(core, SL_CORE_HOST_FILL);
        SL_CHECK(strcmp(fill.key.model, "n") == 0);
        done(core, &fill, SL_OK);
    }
    expect(core, SL_CORE_NONE); /* b is next, c is not */
    end(core, &a, "a", SL_OK);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_UNLOAD, 2); /* 50 are enough: the VAE stays */
    for (int i = 0; i < 3; i++) {
        a = expect(core, SL_CORE_LOAD);
        SL_CHECK(a.from_host);
        done(core, &a, SL_OK);
    }
    sl_core_destroy(core);
}

SL_TEST(a_prefetch_that_fails_is_not_tried_again)
{
    sl_core *core = make(config_of(100, 1, 200), err);
    sl_core_action a, fill;

    submit(core, phased("a", "m", 20, 30, 10, 2, 30, 10), err);
    submit(core, phased("b", "n", 20, 30, 10, 2, 30, 10), err);
    admit_and_run(core, "a", &a);
    fill = expect(core, SL_CORE_HOST_FILL);
    done(core, &fill, SL_ERR_DATA);
    expect(core, SL_CORE_NONE);
    SL_CHECK(sl_core_position(core, "b") == 1);
    sl_core_destroy(core);
}

SL_TEST(pinned_images_stay)
{
    sl_core *core = make(config_of(100, 1, 60), err);
    sl_core_need image = need_of("p", SL_COMPONENT_DIT, 40);
    sl_core_answer answer;
    sl_core_action a;
    uint64_t ticket;

    image.host_bytes = 40 * G;
    SL_CHECK_OK(sl_core_load_host(core, &image, 1, &ticket, NULL, err));
    let(core, SL_CORE_HOST_FILL, 1);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.status == SL_OK && a.receipt.host_after_bytes == 40 * G);
    SL_CHECK(component(core, "p", SL_COMPONENT_DIT).host_pinned);
    image.key.component = SL_COMPONENT_VAE;
    SL_CHECK_OK(sl_core_load_host(core, &image, 1, &ticket, &answer, err));
    SL_CHECK(answer.when == SL_CORE_AFTER && answer.pinned && answer.host);
    a = expect(core, SL_CORE_TICKET_ENDED);
    SL_CHECK(a.status == SL_ERR_BUSY && a.answer.held_count == 1);
    image.host_bytes = 61 * G;
    SL_CHECK_STATUS(sl_core_load_host(core, &image, 1, &ticket, &answer, err), SL_ERR_TOO_LARGE);
    image.host_bytes = 0;
    SL_CHECK_STATUS(sl_core_load_host(core, &image, 1, &ticket, NULL, err), SL_ERR_INVALID);
    /* A job finds room beside it, and loads the rest straight. */
    submit(core, phased("a", "m", 20, 30, 10, 2, 30, 10), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    let(core, SL_CORE_HOST_FILL, 1);
    let(core, SL_CORE_LOAD, 3);
    expect(core, SL_CORE_RUN);
    sl_core_destroy(core);
}

SL_TEST(the_image_unused_for_longest_goes_first)
{
    sl_core *core = make(config_of(100, 1, 60), err);
    const char *const models[] = { "m", "n", "o" };
    sl_core_action a;
    char id[2] = "a";

    for (int i = 0; i < 3; i++, id[0]++) {
        sl_core_job job = phased(id, models[i], 1, 60, 1, 2, 30, 10);
        job.variants[0].needs[0].host_bytes = job.variants[0].needs[2].host_bytes = 0;
        job.variants[0].needs[1].host_bytes = 30 * G;
        submit(core, job, err);
        admit_and_run(core, id, &a);
        end(core, &a, id, SL_OK);
    }
    SL_CHECK(component(core, "m", SL_COMPONENT_DIT).host_state == SL_CORE_HOST_ABSENT);
    SL_CHECK(component(core, "n", SL_COMPONENT_DIT).host_state == SL_CORE_HOST_READY);
    SL_CHECK(component(core, "o", SL_COMPONENT_DIT).host_state == SL_CORE_HOST_READY);
    sl_core_destroy(core);
}

/* ---- evictions ---- */

/* m and n are idle; o's job needs one of them gone. */
static sl_core *two_idle(size_t host, bool image_of_n, sl_error *err)
{
    sl_core *core = make(config_of(100, 1, host), err);
    const char *const models[] = { "m", "n" };
    sl_core_action a;

    for (int i = 0; i < 2; i++) {
        sl_core_job job = phased(models[i], models[i], 1, 40, 1, 1, 1, 1);
        for (int k = 0; k < 3; k++)
            job.variants[0].needs[k].host_bytes = 0;
        if (image_of_n && i == 1)
            job.variants[0].needs[1].host_bytes = 40 * G;
        submit(core, job, err);
        admit_and_run(core, models[i], &a);
        end(core, &a, models[i], SL_OK);
    }
    return core;
}

SL_TEST(what_was_used_last_is_evicted_last)
{
    sl_core *core = two_idle(0, false, err);

    submit(core, job_of("o", "o", 1, 20, 1, 1), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(strcmp(expect(core, SL_CORE_UNLOAD).key.model, "m") == 0);
    sl_core_destroy(core);
}

SL_TEST(what_has_an_image_is_evicted_first)
{
    sl_core *core = two_idle(40, true, err);

    sl_core_observe_copy(core, 1000 * G, 1); /* a hundred times the file's */
    submit(core, job_of("o", "o", 1, 20, 1, 1), err);
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(strcmp(expect(core, SL_CORE_UNLOAD).key.model, "n") == 0);
    sl_core_destroy(core);
}

SL_TEST(what_queued_jobs_need_is_evicted_last)
{
    sl_core *core = two_idle(0, false, err);

    submit(core, job_of("o", "o", 1, 20, 1, 1), err);
    submit(core, job_of("k", "m", 1, 40, 1, 57), err); /* would evict, too */
    expect(core, SL_CORE_JOB_ADMITTED);
    SL_CHECK(strcmp(expect(core, SL_CORE_UNLOAD).key.model, "n") == 0);
    sl_core_destroy(core);
}

SL_TEST(nothing_is_evicted_when_that_does_not_help)
{
    sl_core *core = make(config_of(100, 2, 0), err);
    sl_core_action a;

    submit(core, job_of("i", "n", 5, 10, 5, 10), err);
    admit_and_run(core, "i", &a);
    end(core, &a, "i", SL_OK);
    submit(core, job_of("a", "m", 10, 10, 10, 40), err); /* 70, n's 20 stay */
    admit_and_run(core, "a", &a);
    submit(core, job_of("b", "o", 10, 10, 10, 10), err); /* 40: even without n not enough */
    expect(core, SL_CORE_NONE);
    SL_CHECK(resident(core, "n", SL_COMPONENT_DIT));
    end(core, &a, "a", SL_OK);
    sl_core_destroy(core);
}

SL_TEST_MAIN(SL_RUN(jobs_of_two_models_run_side_by_side),
             SL_RUN(what_does_not_fit_beside_waits_for_the_bytes),
             SL_RUN(the_next_job_loads_while_one_runs),
             SL_RUN(phases_give_back_what_they_do_not_need),
             SL_RUN(a_job_by_phase_needs_room_for_one_phase_only),
             SL_RUN(a_component_that_fails_at_an_edge_stops_the_run),
             SL_RUN(streaming_is_for_what_can_never_fit),
             SL_RUN(a_variant_that_does_not_stream_serves_when_it_fits_at_once),
             SL_RUN(a_streamed_component_needs_a_host_tier),
             SL_RUN(loads_go_through_the_host_tier_and_come_back_from_it),
             SL_RUN(the_next_jobs_components_are_fetched_into_the_host_tier),
             SL_RUN(a_prefetch_that_fails_is_not_tried_again), SL_RUN(pinned_images_stay),
             SL_RUN(the_image_unused_for_longest_goes_first),
             SL_RUN(what_was_used_last_is_evicted_last), SL_RUN(what_has_an_image_is_evicted_first),
             SL_RUN(what_queued_jobs_need_is_evicted_last),
             SL_RUN(nothing_is_evicted_when_that_does_not_help))
