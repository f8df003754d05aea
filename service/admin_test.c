/* Running a daemon: explain, events, drain, reset, cleaning, quota, doctor, evidence. */
#include "service/handlers_test.h"

#include "service/evidence.h"
#include "service/outputs.h"

#include <fcntl.h>

#define LIMIT ((size_t)256 << 20)

/* Calls a handler as an admin; the reply lives until end_call. */
static sl_status ask(sl_service *s, sl_rpc_handler *handler, const void *request,
                     sl_rpc_call *call, sl_error *err)
{
    begin_call(call, SL_ROLE_ADMIN, "uid:0", request);
    return handler(s, call, err);
}

static void end_call(sl_rpc_call *call)
{
    sl_arena_destroy(call->arena);
}

#define REPLY(type, call) ((const Sluice__V1__##type *)(const void *)(call).reply)

static const char *run_one(sl_service *s, const char *name, sl_error *err)
{
    const char *id = generate(s, "uid:1", name, err);

    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    return id;
}

SL_TEST(a_job_is_explained_also_after_a_restart)
{
    static const char *const want[] = { "job_queued", "job_admitted", "component_load", "job_step",
                                        "job_done" };
    Sluice__V1__ExplainJobRequest request = SLUICE__V1__EXPLAIN_JOB_REQUEST__INIT;
    sl_service *s = start(LIMIT, err);
    sl_rpc_call call;
    const char *id = run_one(s, "a", err);
    size_t lines[2];

    request.job_id = (char *)id;
    for (int round = 0; round < 2; round++) {
        size_t at = 0;
        SL_CHECK_OK(ask(s, sl_handle_explain_job, &request.base, &call, err));
        lines[round] = REPLY(ExplainJobReply, call)->n_lines;
        for (size_t i = 0; i < lines[round]; i++) {
            const char *line = REPLY(ExplainJobReply, call)->lines[i];
            SL_CHECK(strstr(line, id) && !strstr(line, "circle"));
            at += at < SL_COUNT(want) && strstr(line, want[at]) != NULL;
            if (strstr(line, "job_done") || strstr(line, "component_load"))
                SL_CHECK(strstr(line, "device_before=") && strstr(line, "device_after=")
                         && strstr(line, "peak"));
        }
        SL_CHECK(at == SL_COUNT(want));
        end_call(&call);
        begin_call(&call, SL_ROLE_USER, "uid:2", &request.base);
        SL_CHECK_STATUS(sl_handle_explain_job(s, &call, err), SL_ERR_NOT_FOUND);
        sl_error_clear(err);
        end_call(&call);
        stop(s);
        s = start(LIMIT, err);
    }
    SL_CHECK(lines[0] == lines[1]);
    stop(s);
}

/* --- events --- */

typedef struct {
    sl_service *s;
    uint64_t after;
    sl_status status;
    char kind[40];
    int64_t took_ns;
} event_watcher;

static void *watch_events(void *arg)
{
    event_watcher *w = arg;
    Sluice__V1__WatchEventsRequest request = SLUICE__V1__WATCH_EVENTS_REQUEST__INIT;
    sl_error err = { .status = SL_OK };
    sl_rpc_call call;
    const int64_t begin_ns = sl_clock_now_ns();

    request.after_seq = w->after;
    request.wait_ns = 10 * SL_NS_PER_S;
    w->status = ask(w->s, sl_handle_watch_events, &request.base, &call, &err);
    if (w->status == SL_OK && REPLY(WatchEventsReply, call)->n_events > 0)
        snprintf(w->kind, sizeof w->kind, "%s", REPLY(WatchEventsReply, call)->events[0]->kind);
    w->took_ns = sl_clock_now_ns() - begin_ns;
    end_call(&call);
    return NULL;
}

SL_TEST(events_are_numbered_and_waited_for)
{
    sl_service *s = start(LIMIT, err);
    Sluice__V1__WatchEventsRequest request = SLUICE__V1__WATCH_EVENTS_REQUEST__INIT;
    Sluice__V1__DrainRequest drain = SLUICE__V1__DRAIN_REQUEST__INIT;
    const struct timespec moment = { .tv_nsec = 100000000 };
    event_watcher w = { .s = s };
    pthread_t thread;
    sl_rpc_call call;
    bool loaded = false;

    run_one(s, "a", err);
    SL_CHECK_OK(ask(s, sl_handle_watch_events, &request.base, &call, err));
    const Sluice__V1__WatchEventsReply *reply = REPLY(WatchEventsReply, call);
    for (size_t i = 0; i < reply->n_events; i++) {
        SL_CHECK(reply->events[i]->seq == i + 1 && reply->events[i]->time_ns > 0);
        loaded |= strcmp(reply->events[i]->kind, "load_done") == 0;
    }
    SL_CHECK(loaded && strcmp(reply->events[0]->kind, "worker_up") == 0);
    w.after = reply->n_events;
    end_call(&call);
    SL_CHECK(pthread_create(&thread, NULL, watch_events, &w) == 0);
    nanosleep(&moment, NULL);
    SL_CHECK_OK(ask(s, sl_handle_drain, &drain.base, &call, err));
    end_call(&call);
    pthread_join(thread, NULL);
    SL_CHECK(w.status == SL_OK && strcmp(w.kind, "drain") == 0 && w.took_ns < 5 * SL_NS_PER_S);
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < SL_SERVER_EVENTS + 10; i++)
        sl_event_add(s, "test", "i=%d", i);
    SL_CHECK(!sl_event_find(s, 1) && !sl_event_find(s, 0) && !sl_event_find(s, s->last_event + 1));
    SL_CHECK(sl_event_find(s, s->last_event - SL_SERVER_EVENTS + 1));
    const uint64_t last = s->last_event;
    pthread_mutex_unlock(&s->lock);
    SL_CHECK_OK(ask(s, sl_handle_watch_events, &request.base, &call, err)); /* the oldest are gone */
    SL_CHECK(REPLY(WatchEventsReply, call)->events[0]->seq == last - SL_SERVER_EVENTS + 1);
    end_call(&call);
    stop(s);
}

/* --- drain, reset --- */

SL_TEST(draining_keeps_jobs_in_the_queue)
{
    sl_service *s = start(LIMIT, err);
    Sluice__V1__DrainRequest request = SLUICE__V1__DRAIN_REQUEST__INIT;
    sl_rpc_call call;
    const struct timespec moment = { .tv_nsec = 100000000 };

    set_fake(true, 0, SL_OK);
    const char *first = generate(s, "uid:1", "a", err);
    await_state(s, first, SLUICE__V1__JOB_STATE__DENOISING, err);
    const char *second = generate(s, "uid:1", "b", err);
    SL_CHECK_OK(ask(s, sl_handle_drain, &request.base, &call, err));
    SL_CHECK(REPLY(DrainReply, call)->running_jobs == 1 && REPLY(DrainReply, call)->queued_jobs == 1);
    end_call(&call);
    set_fake(false, 0, SL_OK);
    await_state(s, first, SLUICE__V1__JOB_STATE__DONE, err);
    nanosleep(&moment, NULL);
    get_job(s, &call, second, err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__QUEUED);
    end_call(&call);
    request.off = true;
    SL_CHECK_OK(ask(s, sl_handle_drain, &request.base, &call, err));
    end_call(&call);
    await_state(s, second, SLUICE__V1__JOB_STATE__DONE, err);
    check_ledger(s, err);
    stop(s);
}

static int count_evidence(void)
{
    char path[200];
    struct dirent *entry;
    int n = 0;

    snprintf(path, sizeof path, "%s/evidence", outputs);
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir)) != NULL)
        n += entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

SL_TEST(a_reset_brings_a_new_worker_and_the_job_again)
{
    sl_service *s = start(LIMIT, err);
    const Sluice__V1__ResetDeviceRequest request = SLUICE__V1__RESET_DEVICE_REQUEST__INIT;
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    const uint64_t before = s->generation;
    SL_CHECK_OK(ask(s, sl_handle_reset_device, &request.base, &call, err));
    SL_CHECK(s->generation == before + 1 && REPLY(ResetDeviceReply, call)->new_pid == 4711
             && REPLY(ResetDeviceReply, call)->duration_ns > 0);
    end_call(&call);
    set_fake(false, 0, SL_OK);
    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    get_job(s, &call, id, err);
    SL_CHECK(JOB_OF(call)->attempt == 1); /* it was asked for */
    end_call(&call);
    SL_CHECK(count_evidence() == 0);
    check_ledger(s, err);
    stop(s);
}

/* --- evidence --- */

SL_TEST(a_dead_worker_leaves_evidence)
{
    sl_service *s = start(LIMIT, err);
    char command[300];

    set_fake(false, 1, SL_OK);
    const char *id = run_one(s, "a", err);
    SL_CHECK(count_evidence() == 1);
    /* Its job, the reason and the books are told; the prompt is not. */
    snprintf(command, sizeof command,
             "cd '%s/evidence'/*-killed-by-signal-9 && grep -q '%s' jobs.json && grep -q "
             "'signal 9' exit.json && grep -q 'activations_bytes' ledger.json && grep -q "
             "worker_exit events.json && ! grep -q circle *",
             outputs, id);
    SL_CHECK(system(command) == 0);
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < SL_EVIDENCE_KEPT + 5; i++) {
        char reason[40];
        snprintf(reason, sizeof reason, "../%d", i); /* no way out of the folder */
        sl_evidence *evidence = sl_evidence_take(s, reason);
        pthread_mutex_unlock(&s->lock);
        sl_evidence_write(s, evidence);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    SL_CHECK(count_evidence() == SL_EVIDENCE_KEPT);
    sl_evidence_write(s, NULL);
    stop(s);
}

/* --- outputs --- */

SL_TEST(old_outputs_are_cleaned_with_their_jobs)
{
    Sluice__V1__CleanOutputsRequest request = SLUICE__V1__CLEAN_OUTPUTS_REQUEST__INIT;
    sl_service *s = start(LIMIT, err);
    char ids[2][SL_CORE_ID_BYTES];
    sl_rpc_call call;

    snprintf(ids[0], sizeof ids[0], "%s", run_one(s, "a", err));
    snprintf(ids[1], sizeof ids[1], "%s", run_one(s, "b", err));
    pthread_mutex_lock(&s->lock);
    sl_jobs_find(s->jobs, ids[0])->ended_ns -= 3600 * SL_NS_PER_S;
    pthread_mutex_unlock(&s->lock);
    set_fake(true, 0, SL_OK);
    const char *open = generate(s, "uid:1", "c", err);
    request.older_than_ns = 1800 * SL_NS_PER_S;
    for (int dry = 1; dry >= 0; dry--) {
        request.dry_run = dry;
        SL_CHECK_OK(ask(s, sl_handle_clean_outputs, &request.base, &call, err));
        const Sluice__V1__CleanOutputsReply *reply = REPLY(CleanOutputsReply, call);
        SL_CHECK(reply->files == 1 && reply->bytes == OUTPUT_BYTES && reply->n_names == 1
                 && strncmp(reply->names[0], ids[0], strlen(ids[0])) == 0);
        end_call(&call);
        SL_CHECK((sl_jobs_find(s->jobs, ids[0]) != NULL) == dry && sl_jobs_find(s->jobs, ids[1]));
        SL_CHECK(count_files("-") == 1 + dry);
    }
    request.older_than_ns = 0; /* all that have ended, and none other */
    SL_CHECK_OK(ask(s, sl_handle_clean_outputs, &request.base, &call, err));
    end_call(&call);
    SL_CHECK(sl_jobs_count(s->jobs) == 1 && sl_jobs_find(s->jobs, open));
    request.older_than_ns = -1;
    SL_CHECK_STATUS(ask(s, sl_handle_clean_outputs, &request.base, &call, err), SL_ERR_INVALID);
    end_call(&call);
    sl_error_clear(err);
    stop(s);
    s = start(LIMIT, err);
    SL_CHECK(sl_jobs_count(s->jobs) == 1);
    stop(s);
}

SL_TEST(retention_cleans_by_itself)
{
    sl_service *s = start(LIMIT, err);
    const char *id = run_one(s, "a", err);
    const struct timespec moment = { .tv_nsec = 20000000 };

    pthread_mutex_lock(&s->lock);
    sl_jobs_find(s->jobs, id)->ended_ns -= 3600 * SL_NS_PER_S;
    s->limits.outputs_retention_ns = 60 * SL_NS_PER_S;
    s->house_ns = s->retention_ns = 0;
    pthread_cond_broadcast(&s->changed);
    int count = 1;
    for (int i = 0; i < 250 && count > 0; i++) {
        pthread_mutex_unlock(&s->lock);
        nanosleep(&moment, NULL);
        pthread_mutex_lock(&s->lock);
        count = sl_jobs_count(s->jobs);
    }
    pthread_mutex_unlock(&s->lock);
    SL_CHECK(count == 0);
    stop(s);
}

SL_TEST(a_quota_counts_what_jobs_may_still_write)
{
    sl_service *s = start(LIMIT, err);
    Sluice__V1__GenerateRequest request = a_request("c");
    sl_outputs_room room;
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    do { /* until the made-up worker has written all that it will */
        SL_CHECK_OK(sl_outputs_look(s, &room, err));
    } while (room.used_bytes < OUTPUT_BYTES);
    pthread_mutex_lock(&s->lock);
    const uint64_t bound = sl_jobs_find(s->jobs, id)->reserved_output_bytes;
    SL_CHECK(bound > 64 * 64 * 5 * 3 / 2 && room.free_bytes > bound);
    s->limits.outputs_quota_bytes = room.used_bytes + 3 * bound - 1; /* not for a third */
    pthread_mutex_unlock(&s->lock);
    const char *second = generate(s, "uid:1", "b", err);
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_BUSY);
    SL_CHECK(strstr(err->message, "quota"));
    sl_error_clear(err);
    end_call(&call);
    set_fake(false, 0, SL_OK);
    await_state(s, second, SLUICE__V1__JOB_STATE__DONE, err);
    check_ledger(s, err);
    stop(s);
}

SL_TEST(an_output_is_never_larger_than_its_bound)
{
    static const sl_media_format formats[] = { SL_MEDIA_MP4, SL_MEDIA_Y4M, SL_MEDIA_PNG };
    enum { W = 64, H = 48, FRAMES = 9 };
    static uint8_t rgb[W * H * 3];
    char path[200];
    struct stat st;
    uint32_t noise = 1;

    for (size_t i = 0; i < SL_COUNT(formats); i++) {
        const sl_job_spec spec = { .format = formats[i],
                                   .request = { .width = W, .height = H, .frames = FRAMES } };
        sl_media_writer *writer = NULL;
        snprintf(path, sizeof path, "%s/noise", outputs);
        SL_CHECK_OK(sl_media_open(&writer, path, formats[i], W, H, 16, 1, err));
        for (int f = 0; f < FRAMES; f++) {
            for (size_t k = 0; k < sizeof rgb; k++)
                rgb[k] = (uint8_t)((noise = noise * 1664525 + 1013904223) >> 24);
            SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
        }
        SL_CHECK_OK(sl_media_finish(writer, err));
        sl_media_close(writer);
        SL_CHECK(stat(path, &st) == 0 && (uint64_t)st.st_size <= sl_outputs_bound(&spec));
        /* And not absurdly so: beyond the header, at most twice. */
        SL_CHECK(formats[i] == SL_MEDIA_MP4
                 || sl_outputs_bound(&spec) < (uint64_t)st.st_size * 2 + (64 << 10));
        unlink(path);
    }
}

/* --- table, settings, doctor, history --- */

static sl_status next_settings(void *arg, sl_service_settings *out, sl_error *err)
{
    const char *problem = arg;

    if (problem[0])
        return sl_fail(err, SL_ERR_DATA, "%s", problem);
    out->limits = (sl_service_limits){
        .running = 2, .queue = 3, .host_bytes = (size_t)64 << 20, .outputs_quota_bytes = 77
    };
    out->table.row_count = 1;
    snprintf(out->table.rows[0].name, sizeof out->table.rows[0].name, "all");
    out->table.rows[0].to_bytes = SIZE_MAX;
    out->table.rows[0].rule_count = 1;
    snprintf(out->table.rows[0].rules[0].text, sizeof out->table.rows[0].rules[0].text, "nothing");
    return SL_OK;
}

static void await_lanes(sl_service *s, int lanes)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(10 * SL_NS_PER_S);

    pthread_mutex_lock(&s->lock);
    while (s->lanes != lanes || !s->worker_up)
        SL_CHECK(sl_service_wait(s, deadline_ns));
    pthread_mutex_unlock(&s->lock);
}

SL_TEST(settings_are_read_again)
{
    static sl_budget_table empty;
    sl_service *s = start(LIMIT, err);
    const Sluice__V1__ReloadConfigRequest reload = SLUICE__V1__RELOAD_CONFIG_REQUEST__INIT;
    const Sluice__V1__GetBudgetTableRequest table = SLUICE__V1__GET_BUDGET_TABLE_REQUEST__INIT;
    Sluice__V1__GenerateRequest request = a_request("b");
    char problem[40] = "";
    sl_rpc_call call;

    SL_CHECK_STATUS(ask(s, sl_handle_reload_config, &reload.base, &call, err),
                    SL_ERR_PRECONDITION); /* this one has none */
    sl_error_clear(err);
    end_call(&call);
    pthread_mutex_lock(&s->lock);
    s->table = malloc(sizeof *s->table);
    memcpy(s->table, &empty, sizeof empty);
    s->config.read_settings = next_settings;
    s->config.read_arg = problem;
    pthread_mutex_unlock(&s->lock);
    snprintf(problem, sizeof problem, "line 3 is wrong");
    SL_CHECK_STATUS(ask(s, sl_handle_reload_config, &reload.base, &call, err), SL_ERR_PRECONDITION);
    SL_CHECK(strstr(err->message, "line 3") && s->limits.outputs_quota_bytes == 0);
    sl_error_clear(err);
    end_call(&call);
    problem[0] = '\0';
    SL_CHECK_OK(ask(s, sl_handle_reload_config, &reload.base, &call, err));
    SL_CHECK(REPLY(ReloadConfigReply, call)->n_changed == 5);
    end_call(&call);
    await_lanes(s, 2); /* another worker */
    pthread_mutex_lock(&s->lock);
    const sl_core_limits limits = sl_core_get_limits(s->core);
    SL_CHECK(limits.max_running_jobs == 2 && limits.queue_limit == 3);
    SL_CHECK(limits.host_limit_bytes == (size_t)64 << 20);
    SL_CHECK(sl_hosttier_limit_bytes(s->host) == (size_t)64 << 20);
    SL_CHECK(fake->host_bytes == (size_t)64 << 20); /* for the reserve of the next worker */
    pthread_mutex_unlock(&s->lock);
    SL_CHECK(count_evidence() == 0);
    SL_CHECK_OK(ask(s, sl_handle_reload_config, &reload.base, &call, err));
    SL_CHECK(REPLY(ReloadConfigReply, call)->n_changed == 0); /* the same again */
    end_call(&call);
    SL_CHECK_OK(ask(s, sl_handle_get_budget_table, &table.base, &call, err));
    const Sluice__V1__GetBudgetTableReply *reply = REPLY(GetBudgetTableReply, call);
    SL_CHECK(reply->n_rows == 1 && reply->rows[0]->n_rules == 1
             && strcmp(reply->active_row, "all") == 0);
    end_call(&call);
    s->limits.outputs_quota_bytes = 0;
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base); /* the new rule forbids everything */
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_TOO_LARGE);
    end_call(&call);
    stop(s);
}

/* The line of that name; NULL: none. */
static const Sluice__V1__DoctorLine *find_line(const sl_rpc_call *call, const char *name)
{
    const Sluice__V1__DoctorReply *reply = REPLY(DoctorReply, *call);

    for (size_t i = 0; i < reply->n_lines; i++) {
        if (strcmp(reply->lines[i]->check, name) == 0)
            return reply->lines[i];
    }
    return NULL;
}

SL_TEST(doctor_finds_a_planted_leak_and_other_ills)
{
    sl_service *s = start(LIMIT, err);
    const Sluice__V1__DoctorRequest request = SLUICE__V1__DOCTOR_REQUEST__INIT;
    char path[200];
    sl_rpc_call call;

    run_one(s, "a", err);
    SL_CHECK_OK(ask(s, sl_handle_doctor, &request.base, &call, err));
    for (size_t i = 0; i < REPLY(DoctorReply, call)->n_lines; i++)
        SL_CHECK(!REPLY(DoctorReply, call)->lines[i]->advice[0]);
    SL_CHECK(REPLY(DoctorReply, call)->ok && REPLY(DoctorReply, call)->n_lines >= 10);
    end_call(&call);
    pthread_mutex_lock(&fake->lock);
    fake->mapped += (size_t)32 << 20; /* nobody booked it */
    pthread_mutex_unlock(&fake->lock);
    run_one(s, "b", err);
    snprintf(path, sizeof path, "%s/.partial-0123456789abcdef-1.mp4", outputs);
    const int fd = creat(path, 0600);
    SL_CHECK(fd >= 0);
    close(fd);
    SL_CHECK_OK(ask(s, sl_handle_doctor, &request.base, &call, err));
    SL_CHECK(!REPLY(DoctorReply, call)->ok);
    const Sluice__V1__DoctorLine *line = find_line(&call, "unexplained");
    SL_CHECK(line && !line->ok && line->advice[0] && strncmp(line->text, "33554432 ", 9) == 0);
    line = find_line(&call, "strays");
    SL_CHECK(line && !line->ok && line->text[0] == '1');
    line = find_line(&call, "ledger"); /* the books themselves are right */
    SL_CHECK(line && line->ok);
    end_call(&call);
    int told = 0;
    pthread_mutex_lock(&s->lock);
    for (uint64_t seq = 1; seq <= s->last_event; seq++)
        told += strcmp(sl_event_find(s, seq)->kind, "unexplained") == 0;
    pthread_mutex_unlock(&s->lock);
    SL_CHECK(told == 1); /* once, not with every event */
    stop(s);
}

SL_TEST(peaks_are_kept_by_the_hour)
{
    const Sluice__V1__GetMemoryStatsRequest request = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    sl_service *s = start(LIMIT, err);
    sl_rpc_call call;
    uint64_t peak = 0;

    run_one(s, "a", err);
    for (int round = 0; round < 2; round++) {
        SL_CHECK_OK(ask(s, sl_handle_get_memory_stats, &request.base, &call, err));
        const Sluice__V1__DeviceMemory *m = REPLY(GetMemoryStatsReply, call)->devices[0];
        SL_CHECK(m->n_history >= 1 && m->history[0]->hour_ns % (3600 * SL_NS_PER_S) == 0);
        uint32_t jobs = 0;
        for (size_t i = 0; i < m->n_history; i++) { /* the hour may turn meanwhile */
            jobs += m->history[i]->jobs;
            if (round == 0 && m->history[i]->peak_bytes > peak)
                peak = m->history[i]->peak_bytes;
        }
        SL_CHECK(jobs == 1 && peak > FAKE_WORKSPACE);
        SL_CHECK(m->history[m->n_history - 1]->peak_bytes == peak);
        end_call(&call);
        stop(s);
        s = start(LIMIT, err);
    }
    stop(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN(a_job_is_explained_also_after_a_restart),
        RUN(events_are_numbered_and_waited_for),
        RUN(draining_keeps_jobs_in_the_queue),
        RUN(a_reset_brings_a_new_worker_and_the_job_again),
        RUN(a_dead_worker_leaves_evidence),
        RUN(old_outputs_are_cleaned_with_their_jobs),
        RUN(retention_cleans_by_itself),
        RUN(a_quota_counts_what_jobs_may_still_write),
        RUN(an_output_is_never_larger_than_its_bound),
        RUN(settings_are_read_again),
        RUN(doctor_finds_a_planted_leak_and_other_ills),
        RUN(peaks_are_kept_by_the_hour),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
