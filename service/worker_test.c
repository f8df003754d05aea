/* The real sluice-worker: components, jobs, and what ends it. */
#include "service/worker_test.h"

SL_TEST(components_map_what_was_planned_and_give_it_back)
{
    worker w = start_worker(err);
    size_t mapped = w.workspace_bytes;

    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        const size_t bytes = planned_bytes(kinds[i]);
        const Sluice__Worker__Done *done = load(&w, kinds[i], bytes, err);
        SL_CHECK(done->status == SL_OK && done->component_bytes == bytes);
        SL_CHECK(done->before_bytes == mapped && done->after_bytes == mapped + bytes);
        SL_CHECK(done->peak_bytes == mapped + bytes && done->unexpected_tensors == 0);
        mapped += bytes;
    }
    SL_CHECK(load(&w, SL_COMPONENT_VAE, planned_bytes(SL_COMPONENT_VAE), err)->status ==
             SL_ERR_EXISTS);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        const Sluice__Worker__Done *done = unload(&w, kinds[i], err);
        mapped -= planned_bytes(kinds[i]);
        SL_CHECK(done->status == SL_OK && done->after_bytes == mapped);
    }
    SL_CHECK(mapped == w.workspace_bytes);
    SL_CHECK(unload(&w, SL_COMPONENT_VAE, err)->status == SL_ERR_NOT_FOUND);
    stop_worker(&w, err);
}

SL_TEST(a_job_uses_what_was_planned_and_repeats_to_the_byte)
{
    worker w = start_worker(err);
    char first[65], second[65], other[65];
    job j;

    load_all(&w, err);
    make_job(&j, "once", 64, 5, 2, err);
    run_and_check(&w, &j, first, err);
    SL_CHECK(unlink(j.output) == 0);
    make_job(&j, "twice", 64, 5, 2, err);
    run_and_check(&w, &j, second, err);
    SL_CHECK(strcmp(first, second) == 0 && unlink(j.output) == 0);
    j.run.seed = 43;
    run_and_check(&w, &j, other, err);
    SL_CHECK(strcmp(first, other) != 0 && unlink(j.output) == 0);
    stop_worker(&w, err);

    w = start_worker(err); /* and in another process */
    load_all(&w, err);
    j.run.seed = 42;
    run_and_check(&w, &j, second, err);
    SL_CHECK(strcmp(first, second) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(the_hash_is_of_the_file)
{
    worker w = start_worker(err);
    char sha256[65], command[2 * PATH_MAX], line[128] = "";
    job j;

    load_all(&w, err);
    make_job(&j, "hash", 32, 5, 1, err);
    run_and_check(&w, &j, sha256, err);
    snprintf(command, sizeof command, "sha256sum '%s'", j.output);
    FILE *f = popen(command, "r");
    SL_CHECK(f && fgets(line, sizeof line, f));
    pclose(f);
    SL_CHECK(strncmp(line, sha256, 64) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(a_cancel_stops_a_step_within_a_second)
{
    worker w = start_worker(err);
    char sha256[65];
    job j;

    start_long_job(&w, &j, "long", err);
    usleep(50000); /* into the step */
    cancel(&w, "somebody-else", err);
    const int64_t start_ns = sl_clock_now_ns();
    cancel(&w, "long", err);
    const Sluice__Worker__Done *done = wait_done(&w, w.last_id, err);
    SL_CHECK(sl_clock_now_ns() - start_ns < PATIENCE * SL_NS_PER_S);
    SL_CHECK(done->status == SL_ERR_CANCELLED && done->after_bytes == done->before_bytes);
    SL_CHECK(!exists(j.output));
    make_job(&j, "next", 32, 5, 1, err); /* the word is clear again */
    run_and_check(&w, &j, sha256, err);
    SL_CHECK(unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(a_waiting_run_is_cancelled_too)
{
    worker w = start_worker(err);
    job j, waiting;

    start_long_job(&w, &j, "first", err);
    make_job(&waiting, "second", 32, 5, 1, err);
    const uint64_t first = w.last_id, second = send_run(&w, &waiting, err);
    cancel(&w, "second", err);
    cancel(&w, "first", err);
    SL_CHECK(wait_done(&w, first, err)->status == SL_ERR_CANCELLED);
    SL_CHECK(wait_done(&w, second, err)->status == SL_ERR_CANCELLED);
    SL_CHECK(!exists(j.output) && !exists(waiting.output));
    stop_worker(&w, err);
}

SL_TEST(a_job_shrinks_at_its_phase_edges)
{
    worker w = start_worker(err);
    char whole[65], shrinking[65];
    job j;

    load_all(&w, err);
    make_job(&j, "edges", 64, 5, 1, err);
    run_and_check(&w, &j, whole, err);
    /* This model needs most for its last phase: as if it needed more before. */
    j.plan.total_bytes += 16 * SL_MIB;
    j.run.activation_bytes = j.plan.activation_bytes += 16 * SL_MIB;
    j.phase_bytes[SL_PHASE_ENCODE_TEXT] += 16 * SL_MIB;
    j.phase_bytes[SL_PHASE_DENOISE] += 6 * SL_MIB;
    j.run.n_phase_bytes = SL_PHASE_COUNT;
    j.run.phase_bytes = j.phase_bytes;
    run_and_check(&w, &j, shrinking, err);
    SL_CHECK(strcmp(whole, shrinking) == 0 && unlink(j.output) == 0);

    /* A plan that lies about a phase is found out before it does harm. */
    j.phase_bytes[SL_PHASE_DENOISE] = 0;
    const Sluice__Worker__Done *done = wait_done(&w, send_run(&w, &j, err), err);
    SL_CHECK(done->status == SL_ERR_INTERNAL && done->after_bytes == done->before_bytes);
    j.run.n_phase_bytes = 2;
    done = wait_done(&w, send_run(&w, &j, err), err);
    SL_CHECK(done->status == SL_ERR_INVALID && strstr(done->message, "phases"));
    stop_worker(&w, err);
}

/* Runs until so many steps are done, then pre-empts; the steps that were. */
static int interrupt_at_step(worker *w, job *j, int step, sl_error *err)
{
    const uint64_t id = send_run(w, j, err);
    int last = 0;

    for (;;) {
        const Sluice__Worker__Event *event = next_event(w, err);
        SL_CHECK(event != NULL);
        if (event->kind_case == SLUICE__WORKER__EVENT__KIND_STEP) {
            last = event->step->step;
            if (last == step)
                preempt(w, j->run.job_id, err);
        } else if (event->kind_case == SLUICE__WORKER__EVENT__KIND_DONE) {
            SL_CHECK(event->id == id && event->done->status == SL_ERR_CANCELLED);
            SL_CHECK(event->done->preempted);
            SL_CHECK(event->done->after_bytes == event->done->before_bytes);
            SL_CHECK(exists(j->latent) && !exists(j->output));
            return last;
        }
    }
}

SL_TEST(a_preempted_job_continues_to_the_same_bytes)
{
    worker w = start_worker(err);
    char undisturbed[65], continued[65];
    job j;

    load_all(&w, err);
    make_short_job(&j, "preempted", err);
    run_and_check(&w, &j, undisturbed, err);
    for (int step = 1; step <= j.run.steps; step++) {
        const int done_steps = interrupt_at_step(&w, &j, step, err);
        SL_CHECK(done_steps >= step);
        j.run.resume = true;
        resume_and_check(&w, &j, done_steps, continued, err);
        SL_CHECK(strcmp(undisturbed, continued) == 0 && unlink(j.output) == 0);
        j.run.resume = false;
    }
    stop_worker(&w, err);
}

SL_TEST(a_job_continues_in_another_worker)
{
    worker w = start_worker(err);
    char undisturbed[65], continued[65];
    int step = 0;
    job j;

    load_all(&w, err);
    make_short_job(&j, "killed", err);
    run_and_check(&w, &j, undisturbed, err);
    send_run(&w, &j, err);
    while (step < 2)
        step = wait_event(&w, SLUICE__WORKER__EVENT__KIND_STEP, err)->step->step;
    SL_CHECK(kill(w.pid, SIGKILL) == 0);
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == -SIGKILL);
    SL_CHECK(exists(j.latent));

    w = start_worker(err);
    load_all(&w, err);
    j.run.resume = true;
    const Sluice__Worker__Done *done = wait_done(&w, send_run(&w, &j, err), err);
    check_result(&j, done, w.workspace_bytes);
    SL_CHECK(done->resumed_from_step >= 2 && strcmp(done->output_sha256, undisturbed) == 0);
    SL_CHECK(unlink(j.output) == 0);

    /* Without a file, or with a broken one, it starts over. */
    run_and_check(&w, &j, continued, err);
    FILE *f = fopen(j.latent, "w");
    SL_CHECK(f && fwrite("SLLATENT and nonsense", 1, 21, f) == 21);
    fclose(f);
    run_and_check(&w, &j, continued, err);
    SL_CHECK(strcmp(undisturbed, continued) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(a_job_goes_on_where_no_latent_can_be_kept)
{
    worker w = start_worker(err);
    char without[65], sha256[65];
    job j;

    load_all(&w, err);
    make_short_job(&j, "no-latent", err);
    j.run.latent_path = (char *)"";
    run_and_check(&w, &j, without, err);
    j.run.latent_path = (char *)"/nowhere/latent";
    const Sluice__Worker__Done *done = wait_done(&w, send_run(&w, &j, err), err);
    check_result(&j, done, w.workspace_bytes);
    memcpy(sha256, done->output_sha256, sizeof sha256);
    SL_CHECK(strcmp(without, sha256) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(a_waiting_run_is_preempted_too)
{
    worker w = start_worker(err);
    job j, waiting;

    start_long_job(&w, &j, "first", err);
    make_job(&waiting, "second", 32, 5, 1, err);
    const uint64_t first = w.last_id, second = send_run(&w, &waiting, err);
    preempt(&w, "second", err);
    cancel(&w, "first", err);
    const Sluice__Worker__Done *done = wait_done(&w, first, err);
    SL_CHECK(done->status == SL_ERR_CANCELLED && !done->preempted);
    done = wait_done(&w, second, err);
    SL_CHECK(done->status == SL_ERR_CANCELLED && done->preempted);
    SL_CHECK(!exists(waiting.output));
    stop_worker(&w, err);
}

SL_TEST(pings_are_answered_during_a_job)
{
    worker w = start_worker(err);
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Ping ping = SLUICE__WORKER__PING__INIT;
    job j;

    start_long_job(&w, &j, "long", err);
    command.id = 77;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_PING;
    command.ping = &ping;
    const int64_t start_ns = sl_clock_now_ns();
    send_command(&w, &command, err);
    const Sluice__Worker__Event *pong = wait_event(&w, SLUICE__WORKER__EVENT__KIND_PONG, err);
    SL_CHECK(pong->id == 77 && sl_clock_now_ns() - start_ns < PATIENCE * SL_NS_PER_S);
    SL_CHECK(pong->memory->activations_bytes == j.plan.activation_bytes);
    SL_CHECK(pong->memory->rss_bytes > pong->memory->rss_arena_bytes);
    stop_worker(&w, err); /* Shutdown in the middle of a job */
    SL_CHECK(!exists(j.output));
}

SL_TEST(the_end_of_the_stream_ends_it_and_its_file)
{
    worker w = start_worker(err);
    job j;

    start_long_job(&w, &j, "orphan", err);
    SL_CHECK(kill(w.pid, SIGTERM) == 0 && kill(w.pid, SIGINT) == 0); /* not its business */
    sl_channel_destroy(w.channel);
    w.channel = NULL;
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 0);
    SL_CHECK(!exists(j.output));
}

SL_TEST(garbage_ends_it_cleanly)
{
    static const unsigned char bad[] = { 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0xff };
    worker w = start_worker(err);
    job j;

    start_long_job(&w, &j, "garbage", err);
    SL_CHECK(send(sl_channel_fd(w.channel), bad, sizeof bad, 0) == sizeof bad);
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
    SL_CHECK(!exists(j.output));
}

SL_TEST(an_empty_command_is_garbage_too)
{
    static const unsigned char bad[] = { 0, 0, 0, 2, 0x08, 0x01 }; /* an id and no kind */
    worker w = start_worker(err);

    SL_CHECK(send(sl_channel_fd(w.channel), bad, sizeof bad, 0) == sizeof bad);
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
}

SL_TEST(what_cannot_be_done_is_a_status)
{
    worker w = start_worker(err);
    job good, bad;

    make_job(&good, "bad", 32, 5, 1, err);
    expect_run(&w, &good, SL_ERR_PRECONDITION, "text_encoder of \"tiny\" is not loaded", err);
    SL_CHECK(load(&w, SL_COMPONENT_DIT_HIGH, SL_GRANULE_BYTES, err)->status == SL_ERR_NOT_FOUND);
    SL_CHECK(load(&w, SL_COMPONENT_DIT, SL_GRANULE_BYTES, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(load(&w, (sl_component_kind)99, SL_GRANULE_BYTES, err)->status == SL_ERR_INVALID);
    SL_CHECK(unload(&w, (sl_component_kind)-1, err)->status == SL_ERR_INVALID);
    load_all(&w, err);

    const int32_t ids[] = { 1, -1 };
    bad = good, bad.run.ids = (int32_t *)ids, bad.run.n_ids = 2;
    expect_run(&w, &bad, SL_ERR_INVALID, "token id -1", err);
    bad = good, bad.run.n_ids = 0;
    expect_run(&w, &bad, SL_ERR_INVALID, "0 token ids", err);
    bad = good, bad.run.sampler = 7;
    expect_run(&w, &bad, SL_ERR_INVALID, "sampler", err);
    bad = good, bad.run.output_format = -1;
    expect_run(&w, &bad, SL_ERR_INVALID, "format", err);
    bad = good, bad.run.width = 33;
    expect_run(&w, &bad, SL_ERR_INVALID, "32", err);
    bad = good, bad.run.model_path = (char *)"/nowhere";
    expect_run(&w, &bad, SL_ERR_NOT_FOUND, "/nowhere", err);
    bad = good, bad.run.activation_bytes = LIMIT;
    expect_run(&w, &bad, SL_ERR_NO_MEMORY, "activations", err);
    bad = good, bad.run.activation_bytes = UINT64_MAX;
    const Sluice__Worker__Done *done = wait_done(&w, send_run(&w, &bad, err), err);
    SL_CHECK(done->status != SL_OK && done->after_bytes == done->before_bytes);
    make_job(&bad, "bad", 256, 17, 1, err); /* a plan that lies is a bug of ours, not a retry */
    bad.run.activation_bytes = SL_GRANULE_BYTES;
    expect_run(&w, &bad, SL_ERR_INTERNAL, "did not suffice", err);
    bad = good, bad.run.output_path = (char *)"/nowhere/out.y4m";
    expect_run(&w, &bad, SL_ERR_NOT_FOUND, "/nowhere/out.y4m", err);

    char sha256[65];
    good.run.output_path = good.output;
    run_and_check(&w, &good, sha256, err); /* none of it has left a trace */
    SL_CHECK(unlink(good.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(a_broken_file_is_a_status)
{
    worker w = start_worker(err);
    char path[PATH_MAX + 32], keep[PATH_MAX];
    struct stat info;

    snprintf(path, sizeof path, "%s/Wan2.1_VAE.safetensors", model_path);
    snprintf(keep, sizeof keep, "%s/kept", work_dir);
    SL_CHECK(stat(path, &info) == 0 && rename(path, keep) == 0);
    FILE *f = fopen(path, "w");
    SL_CHECK(f && fwrite("nonsense", 1, 8, f) == 8);
    fclose(f);
    const Sluice__Worker__Done *done =
        load(&w, SL_COMPONENT_VAE, planned_bytes(SL_COMPONENT_VAE), err);
    SL_CHECK(done->status != SL_OK && done->after_bytes == done->before_bytes);
    SL_CHECK(rename(keep, path) == 0);
    SL_CHECK(load(&w, SL_COMPONENT_VAE, planned_bytes(SL_COMPONENT_VAE), err)->status == SL_OK);
    stop_worker(&w, err);
}

/* ---- under the supervisor ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t generation;
    int downs, phases;
    char reason[256];
} seen = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void on_event(void *arg, uint64_t generation, const Sluice__Worker__Event *event)
{
    (void)arg;
    pthread_mutex_lock(&seen.lock);
    if (event->kind_case == SLUICE__WORKER__EVENT__KIND_HELLO)
        seen.generation = generation;
    seen.phases += event->kind_case == SLUICE__WORKER__EVENT__KIND_PHASE;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

static void on_down(void *arg, uint64_t generation, const char *reason)
{
    (void)arg;
    (void)generation;
    pthread_mutex_lock(&seen.lock);
    seen.downs++;
    snprintf(seen.reason, sizeof seen.reason, "%s", reason);
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

/* Waits until generation, downs and phases have reached these. */
static void wait_seen(uint64_t generation, int downs, int phases)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20 * PATIENCE;
    pthread_mutex_lock(&seen.lock);
    while (seen.generation < generation || seen.downs < downs || seen.phases < phases)
        if (pthread_cond_timedwait(&seen.changed, &seen.lock, &until) == ETIMEDOUT)
            break;
    const bool reached =
        seen.generation >= generation && seen.downs >= downs && seen.phases >= phases;
    pthread_mutex_unlock(&seen.lock);
    SL_CHECK(reached);
}

static void supervise_job(sl_supervisor *s, uint64_t generation, job *j, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Load message = SLUICE__WORKER__LOAD__INIT;

    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        Sluice__Worker__ComponentKey key = key_of(kinds[i]);
        message.key = &key;
        message.model_path = model_path;
        message.planned_bytes = planned_bytes(kinds[i]);
        command.id = i + 1;
        command.kind_case = SLUICE__WORKER__COMMAND__KIND_LOAD;
        command.load = &message;
        SL_CHECK_OK(sl_supervisor_send(s, generation, &command, err));
    }
    command.id = 9;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &j->run;
    SL_CHECK_OK(sl_supervisor_send(s, generation, &command, err));
}

SL_TEST(a_supervised_worker_may_die_and_be_shut_down)
{
    const sl_supervisor_config config = { .device = DEVICE, .threads = THREADS, .lock_fd = -1 };
    const sl_supervisor_events events = { NULL, on_event, on_down };
    sl_supervisor *s = NULL;
    job j;

    make_long_job(&j, "supervised", err);
    SL_CHECK_OK(sl_supervisor_create(&s, &config, &events, err)); /* found beside this program */
    wait_seen(1, 0, 0);
    supervise_job(s, 1, &j, err);
    wait_seen(1, 0, 2);
    SL_CHECK(kill(sl_supervisor_pid(s), SIGKILL) == 0);
    wait_seen(2, 1, 2);
    SL_CHECK(strcmp(seen.reason, "killed by signal 9 (Killed)") == 0);
    unlink(j.output); /* which the daemon does on_down */
    supervise_job(s, 2, &j, err);
    wait_seen(2, 1, 4);
    sl_supervisor_destroy(s); /* in the middle of a job */
    SL_CHECK(strcmp(seen.reason, "exited with status 0") == 0);
    SL_CHECK(!exists(j.output));
    SL_CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(components_map_what_was_planned_and_give_it_back),
        SL_RUN(a_job_uses_what_was_planned_and_repeats_to_the_byte),
        SL_RUN(the_hash_is_of_the_file),
        SL_RUN(a_cancel_stops_a_step_within_a_second),
        SL_RUN(a_waiting_run_is_cancelled_too),
        SL_RUN(a_job_shrinks_at_its_phase_edges),
        SL_RUN(a_preempted_job_continues_to_the_same_bytes),
        SL_RUN(a_job_continues_in_another_worker),
        SL_RUN(a_job_goes_on_where_no_latent_can_be_kept),
        SL_RUN(a_waiting_run_is_preempted_too),
        SL_RUN(pings_are_answered_during_a_job),
        SL_RUN(the_end_of_the_stream_ends_it_and_its_file),
        SL_RUN(garbage_ends_it_cleanly),
        SL_RUN(an_empty_command_is_garbage_too),
        SL_RUN(what_cannot_be_done_is_a_status),
        SL_RUN(a_broken_file_is_a_status),
        SL_RUN(a_supervised_worker_may_die_and_be_shut_down),
    };

    return RUN_WORKER_TESTS(tests);
}
