/* The service and its methods, with a made-up worker. */
#include "service/handlers_test.h"

SL_TEST(a_job_goes_its_way_and_leaves_a_file)
{
    static const Sluice__V1__JobState path[] = {
        SLUICE__V1__JOB_STATE__QUEUED,    SLUICE__V1__JOB_STATE__ADMITTED,
        SLUICE__V1__JOB_STATE__LOADING,   SLUICE__V1__JOB_STATE__ENCODING,
        SLUICE__V1__JOB_STATE__DENOISING, SLUICE__V1__JOB_STATE__DECODING,
        SLUICE__V1__JOB_STATE__DONE
    };
    Sluice__V1__WatchJobRequest watch = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    sl_service *s = start((size_t)256 << 20, err);
    const char *id = generate(s, "uid:1", "r1", err);
    sl_rpc_call call;
    size_t at = 0;

    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    watch.job_id = (char *)id;
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &watch.base);
    SL_CHECK_OK(sl_handle_watch_job(s, &call, err));
    const Sluice__V1__WatchJobReply *reply = (const void *)call.reply;
    for (size_t i = 0; i < reply->n_events; i++) {
        if (at < SL_COUNT(path) && reply->events[i]->state == path[at])
            at++;
        if (strcmp(reply->events[i]->text, "step 2 of 2") == 0)
            SL_CHECK(reply->events[i]->step == 2 && reply->events[i]->step_count == 2);
    }
    SL_CHECK(at == SL_COUNT(path));
    const Sluice__V1__Job *job = reply->job;
    SL_CHECK(job->planned_peak_bytes == job->measured_peak_bytes && job->planned_peak_bytes > 0);
    SL_CHECK(job->plan->peak_bytes == job->planned_peak_bytes && job->plan->n_phases == 3);
    SL_CHECK(job->output_size_bytes == OUTPUT_BYTES && job->attempt == 1 && job->code == 0);
    SL_CHECK(job->request->prompt[0] == '\0' && job->request->width == 64);
    SL_CHECK(job->started_ns >= job->submitted_ns && job->ended_ns >= job->started_ns);
    sl_arena_destroy(call.arena);
    SL_CHECK(count_files(".partial") == 1);
    check_ledger(s, err);
    stop(s);
}

SL_TEST(outputs_are_fetched_in_ranges)
{
    sl_service *s = start((size_t)256 << 20, err);
    const char *id = generate(s, "uid:1", "r1", err);
    Sluice__V1__FetchOutputRequest request = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    static const struct {
        uint64_t offset;
        uint32_t max;
        int code;
        size_t bytes;
    } cases[] = {
        { 0, 0, 0, OUTPUT_BYTES },         { 10, 7, 0, 7 },
        { OUTPUT_BYTES - 3, 100, 0, 3 },   { OUTPUT_BYTES, 100, 0, 0 },
        { OUTPUT_BYTES + 1, 100, 11, 0 },  { UINT64_MAX, 100, 11, 0 },
        { 0, UINT32_MAX, 0, OUTPUT_BYTES },
    };
    char path[200];

    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    request.job_id = (char *)id;
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_rpc_call call;
        request.offset = cases[i].offset;
        request.max_bytes = cases[i].max;
        begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
        const sl_status status = sl_handle_fetch_output(s, &call, err);
        SL_CHECK((status == SL_OK) == (cases[i].code == 0) && call.code == cases[i].code);
        const Sluice__V1__FetchOutputReply *reply = (const void *)call.reply;
        if (status == SL_OK) {
            SL_CHECK(reply->data.len == cases[i].bytes && reply->size_bytes == OUTPUT_BYTES);
            for (size_t k = 0; k < reply->data.len; k++)
                SL_CHECK(reply->data.data[k] == (uint8_t)((cases[i].offset + k) * 7 % 251));
        }
        sl_arena_destroy(call.arena);
    }
    /* Cut or gone behind the daemon's back. */
    sl_rpc_call call;
    request.offset = request.max_bytes = 0;
    snprintf(path, sizeof path, "%s/%s.mp4", outputs, id);
    SL_CHECK(truncate(path, 10) == 0);
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_fetch_output(s, &call, err), SL_ERR_DATA);
    sl_arena_destroy(call.arena);
    unlink(path);
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_fetch_output(s, &call, err), SL_ERR_NOT_FOUND);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(the_same_request_is_the_same_job)
{
    sl_service *s = start((size_t)256 << 20, err);
    const char *first = generate(s, "uid:1", "same", err);
    Sluice__V1__GenerateRequest request = a_request("same");
    static const char *const bad_ids[] = { "", "a b", "\xc3\xa9", "a/b" };
    sl_rpc_call call;

    SL_CHECK(strcmp(generate(s, "uid:1", "same", err), first) == 0);
    await_state(s, first, SLUICE__V1__JOB_STATE__DONE, err);
    SL_CHECK(strcmp(generate(s, "uid:1", "same", err), first) == 0);
    SL_CHECK(strcmp(generate(s, "uid:2", "same", err), first) != 0);

    request.prompt = (char *)"a blue circle";
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_EXISTS);
    sl_arena_destroy(call.arena);
    for (size_t i = 0; i < SL_COUNT(bad_ids); i++) {
        request.request_id = (char *)bad_ids[i];
        begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
        SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_INVALID);
        SL_CHECK(strcmp(call.field, "request_id") == 0);
        sl_arena_destroy(call.arena);
    }
    stop(s);
}

SL_TEST(users_see_their_own_jobs)
{
    sl_service *s = start((size_t)256 << 20, err);
    const char *id = generate(s, "uid:1", "mine", err);
    Sluice__V1__GetJobRequest get = SLUICE__V1__GET_JOB_REQUEST__INIT;
    Sluice__V1__CancelJobRequest cancel = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    Sluice__V1__ListJobsRequest list = SLUICE__V1__LIST_JOBS_REQUEST__INIT;
    static const struct {
        sl_role role;
        const char *who;
        bool sees, by_request;
    } cases[] = { { SL_ROLE_USER, "uid:1", true, true },
                  { SL_ROLE_USER, "uid:2", false, false },
                  { SL_ROLE_ADMIN, "uid:0", true, false } };

    generate(s, "uid:3", "other", err);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_rpc_call call;
        get.job_id = (char *)id;
        begin_call(&call, cases[i].role, cases[i].who, &get.base);
        SL_CHECK(sl_handle_get_job(s, &call, err) == (cases[i].sees ? SL_OK : SL_ERR_NOT_FOUND));
        sl_arena_destroy(call.arena);
        get.job_id = (char *)"mine";
        begin_call(&call, cases[i].role, cases[i].who, &get.base);
        SL_CHECK(sl_handle_get_job(s, &call, err)
                 == (cases[i].by_request ? SL_OK : SL_ERR_NOT_FOUND));
        sl_arena_destroy(call.arena);
        begin_call(&call, cases[i].role, cases[i].who, &list.base);
        SL_CHECK_OK(sl_handle_list_jobs(s, &call, err));
        const size_t n = ((const Sluice__V1__ListJobsReply *)call.reply)->n_jobs;
        SL_CHECK(n == (cases[i].role == SL_ROLE_ADMIN ? 2 : cases[i].sees));
        sl_arena_destroy(call.arena);
    }
    sl_rpc_call call;
    cancel.job_id = (char *)id;
    begin_call(&call, SL_ROLE_USER, "uid:2", &cancel.base);
    SL_CHECK_STATUS(sl_handle_cancel_job(s, &call, err), SL_ERR_NOT_FOUND);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(wrong_requests_name_the_field_and_the_nearest_value)
{
    sl_service *s = start((size_t)256 << 20, err);
    static const struct {
        int width, height, frames, steps;
        double sigma;
        const char *model, *prompt, *field, *nearest;
        sl_status status;
    } cases[] = {
        { 65, 64, 5, 4, 0, "tiny", "x", "width", "64", SL_ERR_INVALID },
        { 64, -1, 5, 4, 0, "tiny", "x", "height", "16", SL_ERR_INVALID },
        { 64, 64, 6, 4, 0, "tiny", "x", "frames", "5", SL_ERR_INVALID },
        { 64, 64, 5, 9, 0, "tiny", "x", "steps", "4", SL_ERR_INVALID },
        { 64, 64, 5, 4, -3, "tiny", "x", "sigma_max", NULL, SL_ERR_INVALID },
        { 64, 64, 5, 4, 0, "tiny", " \n", "prompt", NULL, SL_ERR_INVALID },
        { 64, 64, 5, 4, 0, "", "x", "model", NULL, SL_ERR_INVALID },
        { 64, 64, 5, 4, 0, "../tiny", "x", "model", NULL, SL_ERR_INVALID },
        { 64, 64, 5, 4, 0, "absent", "x", NULL, NULL, SL_ERR_NOT_FOUND },
        { 64, 64, 5, 4, 0, "broken", "x", NULL, NULL, SL_ERR_PRECONDITION },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        Sluice__V1__GenerateRequest request = a_request("r");
        sl_rpc_call call;
        request.width = cases[i].width;
        request.height = cases[i].height;
        request.frames = cases[i].frames;
        request.steps = cases[i].steps;
        request.sigma_max = cases[i].sigma;
        request.model = (char *)cases[i].model;
        request.prompt = (char *)cases[i].prompt;
        begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
        SL_CHECK_STATUS(sl_handle_generate(s, &call, err), cases[i].status);
        if (!call.field != !cases[i].field
            || (call.field && strcmp(call.field, cases[i].field) != 0))
            fail_msg("case %zu: field \"%s\": %s", i, call.field ? call.field : "", err->message);
        SL_CHECK(!call.field_nearest == !cases[i].nearest);
        if (call.field_nearest)
            SL_CHECK(strcmp(call.field_nearest, cases[i].nearest) == 0);
        sl_arena_destroy(call.arena);
    }
    stop(s);
}

SL_TEST(what_never_fits_is_refused_with_what_would)
{
    sl_service *s = start((size_t)48 << 20, err);
    Sluice__V1__GenerateRequest request = a_request("big");
    Sluice__V1__PlanJobRequest plan = SLUICE__V1__PLAN_JOB_REQUEST__INIT;
    sl_rpc_call call;

    request.width = request.height = 512;
    request.frames = 81;
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_TOO_LARGE);
    SL_CHECK(call.refusal && call.refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER);
    SL_CHECK(call.refusal->need_bytes > call.refusal->have_bytes);
    const Sluice__V1__NearestRequest *nearest = call.refusal->nearest;
    SL_CHECK(nearest && nearest->exists && nearest->width % 16 == 0 && nearest->height % 16 == 0);
    SL_CHECK(nearest->frames == 81 && nearest->width < 512); /* smaller, but the whole video */
    request.width = nearest->width;
    request.height = nearest->height;
    request.frames = nearest->frames;
    request.precision = nearest->precision;
    sl_arena_destroy(call.arena);

    plan.request = &request;
    request.prompt = (char *)"";
    request.request_id = (char *)"";
    begin_call(&call, SL_ROLE_VIEWER, "uid:9", &plan.base);
    SL_CHECK_OK(sl_handle_plan_job(s, &call, err));
    const Sluice__V1__PlanJobReply *reply = (const void *)call.reply;
    SL_CHECK(reply->admitted_now || reply->refusal->when == SLUICE__V1__REFUSAL__WHEN__AFTER);
    SL_CHECK(reply->plan->peak_bytes <= (size_t)48 << 20);
    sl_arena_destroy(call.arena);

    /* A refused request leaves no job, and its id is free. */
    SL_CHECK(generate(s, "uid:1", "big", err)[0]);
    stop(s);
}

SL_TEST(cancelling_ends_queued_and_running_jobs)
{
    sl_service *s = start((size_t)256 << 20, err);
    Sluice__V1__CancelJobRequest request = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *running = generate(s, "uid:1", "a", err);
    const char *queued = generate(s, "uid:1", "b", err);
    await_state(s, running, SLUICE__V1__JOB_STATE__DENOISING, err);
    get_job(s, &call, queued, err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__QUEUED && JOB_OF(call)->position == 1);
    SL_CHECK(JOB_OF(call)->waiting_for && JOB_OF(call)->waiting_for->after[0]);
    sl_arena_destroy(call.arena);
    check_ledger(s, err);
    const char *ids[] = { queued, running, running };
    for (size_t i = 0; i < SL_COUNT(ids); i++) {
        const int64_t begin = sl_clock_now_ns();
        request.job_id = (char *)ids[i];
        begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
        SL_CHECK_OK(sl_handle_cancel_job(s, &call, err));
        SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__CANCELLED_STATE);
        SL_CHECK(JOB_OF(call)->code == 1);
        SL_CHECK(sl_clock_now_ns() - begin < SL_NS_PER_S);
        sl_arena_destroy(call.arena);
    }
    set_fake(false, 0, SL_OK);
    const char *done = generate(s, "uid:1", "c", err);
    await_state(s, done, SLUICE__V1__JOB_STATE__DONE, err);
    request.job_id = (char *)done;
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_OK(sl_handle_cancel_job(s, &call, err));
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__DONE); /* unchanged */
    sl_arena_destroy(call.arena);
    check_ledger(s, err);
    stop(s);
}

SL_TEST(a_job_survives_its_worker_twice_but_not_for_ever)
{
    sl_service *s = start((size_t)256 << 20, err);
    sl_rpc_call call;

    set_fake(false, 2, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    get_job(s, &call, id, err);
    SL_CHECK(JOB_OF(call)->attempt == 3);
    sl_arena_destroy(call.arena);
    const int before = count_files(".partial");

    set_fake(false, 3, SL_OK);
    id = generate(s, "uid:1", "b", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__FAILED, err);
    get_job(s, &call, id, err);
    SL_CHECK(strstr(JOB_OF(call)->message, "killed by signal 9"));
    sl_arena_destroy(call.arena);
    SL_CHECK(count_files(".partial") == before); /* nothing partial is left */
    check_ledger(s, err);
    stop(s);
}

SL_TEST(a_file_that_cannot_be_published_fails_the_job)
{
    sl_service *s = start((size_t)256 << 20, err);
    sl_rpc_call call;
    char path[200];

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    snprintf(path, sizeof path, "%s/%s.mp4", outputs, id);
    SL_CHECK(mkdir(path, 0700) == 0); /* in the way */
    set_fake(false, 0, SL_OK);
    await_state(s, id, SLUICE__V1__JOB_STATE__FAILED, err);
    get_job(s, &call, id, err);
    SL_CHECK(strstr(JOB_OF(call)->message, "rename") && JOB_OF(call)->output_size_bytes == 0);
    sl_arena_destroy(call.arena);
    rmdir(path);
    stop(s);
}

SL_TEST(loading_pins_and_unloading_gives_back)
{
    sl_service *s = start((size_t)256 << 20, err);
    Sluice__V1__LoadModelRequest load = SLUICE__V1__LOAD_MODEL_REQUEST__INIT;
    Sluice__V1__UnloadModelRequest unload = SLUICE__V1__UNLOAD_MODEL_REQUEST__INIT;
    sl_rpc_call call;

    load.model = (char *)"tiny";
    for (int i = 0; i < 2; i++) {
        begin_call(&call, SL_ROLE_ADMIN, "uid:0", &load.base);
        SL_CHECK_OK(sl_handle_load_model(s, &call, err));
        const Sluice__V1__Receipt *r = ((const Sluice__V1__LoadModelReply *)call.reply)->receipt;
        SL_CHECK(r->n_components == 3 && r->residue_bytes == 0);
        for (size_t k = 0; k < 3; k++)
            SL_CHECK(r->components[k]->planned_bytes == r->components[k]->measured_bytes
                     && r->components[k]->planned_bytes > 0);
        SL_CHECK(r->device_after_bytes > FAKE_WORKSPACE);
        SL_CHECK((r->device_before_bytes == r->device_after_bytes) == (i == 1));
        sl_arena_destroy(call.arena);
        check_ledger(s, err);
    }
    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &unload.base);
    SL_CHECK_STATUS(sl_handle_unload_model(s, &call, err), SL_ERR_PRECONDITION);
    SL_CHECK(strstr(err->message, id));
    sl_arena_destroy(call.arena);
    set_fake(false, 0, SL_OK);
    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    unload.model = (char *)"absent";
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &unload.base);
    SL_CHECK_STATUS(sl_handle_unload_model(s, &call, err), SL_ERR_NOT_FOUND);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(loads_that_fail_or_never_fit_say_so)
{
    sl_service *s = start((size_t)24 << 20, err);
    Sluice__V1__LoadModelRequest load = SLUICE__V1__LOAD_MODEL_REQUEST__INIT;
    Sluice__V1__Component vae = SLUICE__V1__COMPONENT__VAE,
                          low = SLUICE__V1__COMPONENT__DIT_LOW;
    sl_rpc_call call;

    load.model = (char *)"tiny";
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &load.base);
    SL_CHECK_STATUS(sl_handle_load_model(s, &call, err), SL_ERR_TOO_LARGE);
    SL_CHECK(call.refusal && call.refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER);
    sl_arena_destroy(call.arena);
    load.components = &low;
    load.n_components = 1;
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &load.base);
    SL_CHECK_STATUS(sl_handle_load_model(s, &call, err), SL_ERR_INVALID);
    SL_CHECK(strcmp(call.field, "components") == 0);
    sl_arena_destroy(call.arena);
    set_fake(false, 0, SL_ERR_DATA);
    load.components = &vae;
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &load.base);
    SL_CHECK_STATUS(sl_handle_load_model(s, &call, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "as the test wants it"));
    sl_arena_destroy(call.arena);
    check_ledger(s, err);
    stop(s);
}

/* --- waiting --- */

typedef struct {
    sl_service *s;
    const char *id;
    int64_t took_ns;
    sl_status status;
} watcher;

static void *run_watcher(void *arg)
{
    watcher *w = arg;
    sl_error err;
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    sl_rpc_call call;
    const int64_t begin = sl_clock_now_ns();

    request.job_id = (char *)w->id;
    request.after_seq = 1000;
    request.wait_ns = 10 * SL_NS_PER_S;
    begin_call(&call, SL_ROLE_ADMIN, "uid:0", &request.base);
    w->status = sl_handle_watch_job(w->s, &call, &err);
    sl_arena_destroy(call.arena);
    w->took_ns = sl_clock_now_ns() - begin;
    return NULL;
}

SL_TEST(watchers_wait_up_to_the_cap_and_stopping_wakes_them)
{
    sl_service *s = start((size_t)256 << 20, err);
    Sluice__V1__GenerateRequest request = a_request("late");
    const struct timespec moment = { .tv_nsec = 200000000 };
    watcher w[3];
    pthread_t threads[2];
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    for (int i = 0; i < 3; i++)
        w[i] = (watcher){ .s = s, .id = id };
    for (int i = 0; i < 2; i++)
        SL_CHECK(pthread_create(&threads[i], NULL, run_watcher, &w[i]) == 0);
    nanosleep(&moment, NULL);
    run_watcher(&w[2]); /* above the cap of two: at once */
    SL_CHECK(w[2].status == SL_OK && w[2].took_ns < SL_NS_PER_S / 2);
    sl_service_begin_stop(s);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        SL_CHECK(w[i].status == SL_OK && w[i].took_ns > SL_NS_PER_S / 10
                 && w[i].took_ns < 5 * SL_NS_PER_S);
    }
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_UNAVAILABLE);
    sl_arena_destroy(call.arena);
    sl_service_stop(s, 0);
    get_job(s, &call, id, err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__DENOISING); /* goes on another time */
    sl_arena_destroy(call.arena);
    sl_service_destroy(s);
}

SL_TEST(health_and_models_are_told)
{
    sl_service *s = start((size_t)256 << 20, err);
    const Sluice__V1__HealthRequest health = SLUICE__V1__HEALTH_REQUEST__INIT;
    const Sluice__V1__ListModelsRequest list = SLUICE__V1__LIST_MODELS_REQUEST__INIT;
    sl_rpc_call call;

    generate(s, "uid:1", "a", err); /* the worker is up once this is done */
    await_state(s, "a", 0, err);
    begin_call(&call, SL_ROLE_NONE, "uid:9", &health.base);
    SL_CHECK_OK(sl_handle_health(s, &call, err));
    const Sluice__V1__HealthReply *h = (const void *)call.reply;
    SL_CHECK(h->n_devices == 1 && h->api_version == 1 && h->uptime_ns > 0 && h->version[0]);
    sl_arena_destroy(call.arena);
    begin_call(&call, SL_ROLE_VIEWER, "uid:9", &list.base);
    SL_CHECK_OK(sl_handle_list_models(s, &call, err));
    const Sluice__V1__ListModelsReply *m = (const void *)call.reply;
    SL_CHECK(m->n_models == 2);
    SL_CHECK(strcmp(m->models[0]->name, "broken") == 0 && m->models[0]->problem[0]);
    SL_CHECK(strcmp(m->models[1]->name, "tiny") == 0 && !m->models[1]->problem[0]);
    SL_CHECK(m->models[1]->n_components == 3 && strcmp(m->models[1]->task, "t2v") == 0);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(the_server_says_what_it_is_to_whom)
{
    static const struct {
        sl_role role;
        const char *name, *may, *may_not;
    } cases[] = {
        { SL_ROLE_VIEWER, "viewer", "PlanJob", "Generate" },
        { SL_ROLE_USER, "user", "Generate", "LoadModel" },
        { SL_ROLE_ADMIN, "admin", "LoadModel", NULL },
    };
    const Sluice__V1__GetServerInfoRequest request = SLUICE__V1__GET_SERVER_INFO_REQUEST__INIT;
    sl_service *s = start((size_t)256 << 20, err);

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        bool may = false, may_not = false;
        sl_rpc_call call;
        begin_call(&call, cases[i].role, "uid:7", &request.base);
        SL_CHECK_OK(sl_handle_get_server_info(s, &call, err));
        const Sluice__V1__GetServerInfoReply *reply = (const void *)call.reply;
        for (size_t k = 0; k < reply->n_methods; k++) {
            may |= strcmp(reply->methods[k], cases[i].may) == 0;
            may_not |= cases[i].may_not && strcmp(reply->methods[k], cases[i].may_not) == 0;
        }
        SL_CHECK(may && !may_not);
        SL_CHECK(strcmp(reply->role, cases[i].name) == 0 && strcmp(reply->identity, "uid:7") == 0);
        SL_CHECK(reply->api_version == 1 && reply->api_version_least == 1);
        SL_CHECK(strcmp(reply->version, SL_VERSION) == 0 && reply->n_features >= 3);
        SL_CHECK(reply->n_devices == 1 && strcmp(reply->devices[0]->kind, "cpu") == 0
                 && reply->devices[0]->limit_bytes == (size_t)256 << 20
                 && reply->devices[0]->lanes == 1);
        SL_CHECK(protobuf_c_message_check(call.reply));
        sl_arena_destroy(call.arena);
    }
    stop(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN(a_job_goes_its_way_and_leaves_a_file),
        RUN(outputs_are_fetched_in_ranges),
        RUN(the_same_request_is_the_same_job),
        RUN(users_see_their_own_jobs),
        RUN(wrong_requests_name_the_field_and_the_nearest_value),
        RUN(what_never_fits_is_refused_with_what_would),
        RUN(cancelling_ends_queued_and_running_jobs),
        RUN(a_job_survives_its_worker_twice_but_not_for_ever),
        RUN(a_file_that_cannot_be_published_fails_the_job),
        RUN(loading_pins_and_unloading_gives_back),
        RUN(loads_that_fail_or_never_fit_say_so),
        RUN(watchers_wait_up_to_the_cap_and_stopping_wakes_them),
        RUN(health_and_models_are_told),
        RUN(the_server_says_what_it_is_to_whom),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
