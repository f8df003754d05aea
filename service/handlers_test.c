/* The service and its methods, with a made-up supervisor and worker: this file
 * defines sl_supervisor_* itself.  The worker does what it is told on a thread of
 * its own, keeps the books of its arena, and can be held, killed and made to lie. */
#include "service/handlers.h"
#include "service/service_state.h"
#include "service/wire.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/test.h"
#include "engine/model/synth.h"

#include <dirent.h>
#include <openssl/sha.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FAKE_COMMANDS = 64, OUTPUT_BYTES = 100000 };
#define FAKE_WORKSPACE ((size_t)16 << 20)

/* --- the made-up worker --- */

struct sl_supervisor {
    sl_supervisor_events events;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    uint8_t *commands[FAKE_COMMANDS];
    size_t sizes[FAKE_COMMANDS];
    int first, count;
    _Atomic uint64_t generation; /* read by any thread, as the real one allows */
    size_t mapped, peak;
    char cancelled[128];
    char killed[256];     /* reason; "": not */
    bool hold_run;        /* a Run stays in its denoising until released or cancelled */
    int die_in_run;       /* so many Runs end with the worker's death */
    sl_status load_fails; /* and why */
    bool stop;
};

static sl_supervisor *fake; /* the latest */

static void wait_locked(sl_supervisor *f)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 5000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&f->changed, &f->lock, &until);
}

static void tell(sl_supervisor *f, Sluice__Worker__Event *event)
{
    Sluice__Worker__Memory memory = SLUICE__WORKER__MEMORY__INIT;

    memory.mapped_bytes = f->mapped;
    memory.peak_bytes = f->peak;
    memory.workspace_bytes = FAKE_WORKSPACE;
    memory.rss_bytes = f->mapped + 1000;
    memory.rss_arena_bytes = f->mapped;
    event->memory = &memory;
    f->events.on_event(f->events.arg, f->generation, event);
}

static void hello(sl_supervisor *f)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Hello message = SLUICE__WORKER__HELLO__INIT;

    f->mapped = f->peak = FAKE_WORKSPACE;
    f->generation++;
    message.pid = 4711;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_HELLO;
    event.hello = &message;
    tell(f, &event);
}

static void map(sl_supervisor *f, size_t more)
{
    f->mapped += more;
    if (f->mapped > f->peak)
        f->peak = f->mapped;
}

static void finish(sl_supervisor *f, uint64_t id, Sluice__Worker__Done *done, sl_status status)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;

    done->status = (int32_t)status;
    done->message = (char *)(status == SL_OK ? "" : "as the test wants it");
    done->after_bytes = f->mapped;
    done->peak_bytes = f->peak;
    done->duration_ns = 1000;
    event.id = id;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_DONE;
    event.done = done;
    tell(f, &event);
}

/* True when the run must end early. */
static bool interrupted(sl_supervisor *f, const char *job_id)
{
    bool out;

    pthread_mutex_lock(&f->lock);
    while (f->hold_run && !f->stop && !f->killed[0] && strcmp(f->cancelled, job_id) != 0)
        wait_locked(f);
    out = f->stop || f->killed[0] || strcmp(f->cancelled, job_id) == 0;
    pthread_mutex_unlock(&f->lock);
    return out;
}

static void tell_phase(sl_supervisor *f, char *job_id, int phase)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Phase message = SLUICE__WORKER__PHASE__INIT;

    message.job_id = job_id;
    message.phase = phase;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PHASE;
    event.phase = &message;
    tell(f, &event);
}

static void tell_steps(sl_supervisor *f, const Sluice__Worker__Run *run)
{
    for (int i = 1; i <= run->steps; i++) {
        Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
        Sluice__Worker__Step message = SLUICE__WORKER__STEP__INIT;
        message.job_id = run->job_id;
        message.step = i;
        message.step_count = run->steps;
        event.kind_case = SLUICE__WORKER__EVENT__KIND_STEP;
        event.step = &message;
        tell(f, &event);
    }
}

static void write_output(const char *path)
{
    FILE *file = fopen(path, "w");

    for (int i = 0; file && i < OUTPUT_BYTES; i++)
        fputc(i * 7 % 251, file);
    if (file)
        fclose(file);
}

/* False: the worker died of it. */
static bool do_fake_run(sl_supervisor *f, uint64_t id, const Sluice__Worker__Run *run)
{
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    sl_status status = SL_OK;

    done.before_bytes = f->mapped;
    f->peak = f->mapped;
    map(f, run->activation_bytes);
    tell_phase(f, run->job_id, SL_PHASE_ENCODE_TEXT);
    tell_phase(f, run->job_id, SL_PHASE_DENOISE);
    write_output(run->output_path);
    pthread_mutex_lock(&f->lock);
    const bool dies = f->die_in_run > 0;
    f->die_in_run -= dies;
    pthread_mutex_unlock(&f->lock);
    if (dies)
        return false;
    if (interrupted(f, run->job_id)) {
        unlink(run->output_path);
        status = SL_ERR_CANCELLED;
    } else {
        tell_steps(f, run);
        tell_phase(f, run->job_id, SL_PHASE_DECODE);
        done.output_size_bytes = OUTPUT_BYTES;
        done.output_sha256 = (char *)"abc";
    }
    f->mapped -= run->activation_bytes;
    finish(f, id, &done, status);
    return true;
}

static bool do_command(sl_supervisor *f, const Sluice__Worker__Command *command)
{
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;

    done.before_bytes = f->mapped;
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
        return do_fake_run(f, command->id, command->run);
    f->peak = f->mapped;
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_LOAD) {
        SL_ASSERT(command->load->model_path[0] == '/');
        if (f->load_fails == SL_OK) {
            map(f, command->load->planned_bytes);
            done.component_bytes = command->load->planned_bytes;
        }
        finish(f, command->id, &done, f->load_fails);
    } else {
        /* The size is not in the command: all components of the tests' model are of
         * the sizes that its plan says; the service is asked for them. */
        f->mapped = FAKE_WORKSPACE;
        finish(f, command->id, &done, SL_OK);
    }
    return true;
}

static void *run_fake(void *arg)
{
    sl_supervisor *f = arg;

    hello(f);
    pthread_mutex_lock(&f->lock);
    while (!f->stop) {
        bool alive = true;
        if (f->count > 0) {
            uint8_t *bytes = f->commands[f->first];
            const size_t size = f->sizes[f->first];
            f->first = (f->first + 1) % FAKE_COMMANDS;
            f->count--;
            pthread_mutex_unlock(&f->lock);
            Sluice__Worker__Command *command = sluice__worker__command__unpack(NULL, size, bytes);
            alive = do_command(f, command);
            sluice__worker__command__free_unpacked(command, NULL);
            free(bytes);
            pthread_mutex_lock(&f->lock);
        } else if (!f->killed[0]) {
            wait_locked(f);
        }
        if (alive && !f->killed[0])
            continue;
        char reason[256];
        snprintf(reason, sizeof reason, "%s", alive ? f->killed : "killed by signal 9");
        f->killed[0] = '\0';
        while (f->count > 0) {
            free(f->commands[f->first]);
            f->first = (f->first + 1) % FAKE_COMMANDS;
            f->count--;
        }
        pthread_mutex_unlock(&f->lock);
        f->events.on_down(f->events.arg, f->generation, reason);
        hello(f);
        pthread_mutex_lock(&f->lock);
    }
    pthread_mutex_unlock(&f->lock);
    f->events.on_down(f->events.arg, f->generation, "stopped");
    return NULL;
}

sl_status sl_supervisor_create(sl_supervisor **out, const sl_supervisor_config *config,
                               const sl_supervisor_events *events, sl_error *err)
{
    (void)config;
    (void)err;
    fake = calloc(1, sizeof *fake);
    fake->events = *events;
    pthread_mutex_init(&fake->lock, NULL);
    pthread_cond_init(&fake->changed, NULL);
    *out = fake;
    return pthread_create(&fake->thread, NULL, run_fake, fake) == 0 ? SL_OK : SL_ERR_INTERNAL;
}

sl_status sl_supervisor_send(sl_supervisor *f, uint64_t generation,
                             const Sluice__Worker__Command *command, sl_error *err)
{
    pthread_mutex_lock(&f->lock);
    if (generation != f->generation || f->stop) {
        pthread_mutex_unlock(&f->lock);
        return sl_fail(err, SL_ERR_UNAVAILABLE, "no such worker");
    }
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_CANCEL) {
        snprintf(f->cancelled, sizeof f->cancelled, "%s", command->cancel->job_id);
    } else {
        const int at = (f->first + f->count++) % FAKE_COMMANDS;
        SL_ASSERT(f->count <= FAKE_COMMANDS);
        f->sizes[at] = sluice__worker__command__get_packed_size(command);
        f->commands[at] = malloc(f->sizes[at]);
        sluice__worker__command__pack(command, f->commands[at]);
    }
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    return SL_OK;
}

void sl_supervisor_kill(sl_supervisor *f, uint64_t generation, const char *reason)
{
    (void)generation;
    pthread_mutex_lock(&f->lock);
    snprintf(f->killed, sizeof f->killed, "%s", reason);
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

void sl_supervisor_stop(sl_supervisor *f, int64_t grace_ns)
{
    (void)grace_ns;
    pthread_mutex_lock(&f->lock);
    const bool again = f->stop;
    f->stop = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    if (!again)
        pthread_join(f->thread, NULL);
}

void sl_supervisor_destroy(sl_supervisor *f)
{
    if (!f)
        return;
    sl_supervisor_stop(f, 0);
    for (; f->count > 0; f->count--) {
        free(f->commands[f->first]);
        f->first = (f->first + 1) % FAKE_COMMANDS;
    }
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
    free(f);
}

pid_t sl_supervisor_pid(const sl_supervisor *f)
{
    (void)f;
    return 4711;
}

uint32_t sl_supervisor_restarts(const sl_supervisor *f)
{
    return (uint32_t)(f->generation > 0 ? f->generation - 1 : 0);
}

static void set_fake(bool hold, int die, sl_status load_fails)
{
    pthread_mutex_lock(&fake->lock);
    fake->hold_run = hold;
    fake->die_in_run = die;
    fake->load_fails = load_fails;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

/* --- calling methods --- */

static char root[64], outputs[80], models[80];

static sl_service *start(size_t limit_bytes, sl_error *err)
{
    const char *const roots[] = { models };
    const sl_service_config config = {
        .device = { .kind = SL_DEVICE_CPU, .limit_bytes = limit_bytes },
        .models = roots,
        .model_count = 1,
        .outputs = outputs,
        .threads = 2,
        .queue = 8,
        .retry_limit = 2,
        .watchers = 2,
        .load_waiters = 2,
        .keep_jobs = 100,
        .lock_fd = -1,
    };
    sl_service *s = NULL;

    SL_CHECK_OK(sl_service_create(&s, &config, err));
    return s;
}

static void stop(sl_service *s)
{
    sl_service_begin_stop(s);
    sl_service_stop(s, 0);
    sl_service_destroy(s);
}

static void begin_call(sl_rpc_call *call, sl_role role, const char *who, const void *request)
{
    sl_error ignored;

    *call = (sl_rpc_call){ .peer = { .role = role }, .method = "test", .trace_id = "",
                           .deadline_ns = sl_clock_deadline_ns(20 * SL_NS_PER_S),
                           .request = request };
    snprintf(call->peer.identity, sizeof call->peer.identity, "%s", who);
    SL_CHECK(sl_arena_create(&call->arena, 16 << 20, &ignored) == SL_OK);
}

static Sluice__V1__GenerateRequest a_request(const char *id)
{
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;

    request.request_id = (char *)id;
    request.model = (char *)"tiny";
    request.prompt = (char *)"a red circle";
    request.width = request.height = 64;
    request.frames = 5;
    request.steps = 2;
    return request;
}

/* The job's id in static memory. */
static const char *generate(sl_service *s, const char *who, const char *request_id, sl_error *err)
{
    static char ids[16][SL_CORE_ID_BYTES];
    static int next;
    char *id = ids[next++ % 16];
    const Sluice__V1__GenerateRequest request = a_request(request_id);
    sl_rpc_call call;

    begin_call(&call, SL_ROLE_USER, who, &request.base);
    SL_CHECK_OK(sl_handle_generate(s, &call, err));
    const Sluice__V1__GenerateReply *reply = (const void *)call.reply;
    snprintf(id, SL_CORE_ID_BYTES, "%s", reply->job->job_id);
    sl_arena_destroy(call.arena);
    return id;
}

/* Watches until the job stands at `state` or beyond it; checks the numbering. */
static void await_state(sl_service *s, const char *id, Sluice__V1__JobState state, sl_error *err)
{
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    Sluice__V1__JobState now = 0;
    const int64_t give_up_ns = sl_clock_deadline_ns(10 * SL_NS_PER_S);

    request.job_id = (char *)id;
    request.wait_ns = SL_NS_PER_S;
    while (now < state && sl_clock_now_ns() < give_up_ns) {
        sl_rpc_call call;
        begin_call(&call, SL_ROLE_ADMIN, "uid:0", &request.base);
        SL_CHECK_OK(sl_handle_watch_job(s, &call, err));
        const Sluice__V1__WatchJobReply *reply = (const void *)call.reply;
        for (size_t i = 0; i < reply->n_events; i++)
            SL_CHECK(reply->events[i]->seq == ++request.after_seq);
        now = reply->job->state;
        if (now >= SLUICE__V1__JOB_STATE__DONE && now != state && state != 0)
            fail_msg("job ended as %d: %s", now, reply->job->message);
        sl_arena_destroy(call.arena);
    }
    SL_CHECK(now >= state);
}

static void get_job(sl_service *s, sl_rpc_call *call, const char *id, sl_error *err)
{
    Sluice__V1__GetJobRequest request = SLUICE__V1__GET_JOB_REQUEST__INIT;

    request.job_id = (char *)id;
    begin_call(call, SL_ROLE_ADMIN, "uid:0", &request.base);
    SL_CHECK_OK(sl_handle_get_job(s, call, err));
}

#define JOB_OF(call) (((const Sluice__V1__GetJobReply *)(call).reply)->job)

/* total = the sum of everything else. */
static void check_ledger(sl_service *s, sl_error *err)
{
    const Sluice__V1__GetMemoryStatsRequest request = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    sl_rpc_call call;

    begin_call(&call, SL_ROLE_VIEWER, "uid:9", &request.base);
    SL_CHECK_OK(sl_handle_get_memory_stats(s, &call, err));
    const Sluice__V1__DeviceMemory *d =
        ((const Sluice__V1__GetMemoryStatsReply *)call.reply)->devices[0];
    SL_CHECK(d->total_bytes
             == d->context_bytes + d->weights_bytes + d->activations_bytes + d->workspace_bytes
                    + d->reserved_bytes + d->foreign_bytes + d->free_bytes
                    + (uint64_t)d->unexplained_bytes);
    sl_arena_destroy(call.arena);
}

static int count_files(const char *prefix)
{
    struct dirent *entry;
    DIR *dir = opendir(outputs);
    int n = 0;

    while (dir && (entry = readdir(dir)) != NULL)
        n += entry->d_name[0] != '.' || strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    if (dir)
        closedir(dir);
    return n;
}

/* --- tests --- */

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
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__CANCELLED_STATE);
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

/* --- the stage --- */

static int set_up(void **state)
{
    sl_error err = { .status = SL_OK };
    char path[200];

    (void)state;
    sl_log_set_level(SL_LOG_ERROR);
    snprintf(root, sizeof root, "/tmp/sl_handlers_test_XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(outputs, sizeof outputs, "%s/out", root);
    snprintf(models, sizeof models, "%s/models", root);
    snprintf(path, sizeof path, "%s/tiny", models);
    if (mkdir(outputs, 0700) != 0 || mkdir(models, 0700) != 0
        || sl_synth_model(path, sl_arch_find("tiny-t2v"), 1, NULL, NULL, &err) != SL_OK)
        return -1;
    snprintf(path, sizeof path, "%s/broken", models);
    return mkdir(path, 0700);
}

static int clear_outputs(void **state)
{
    char command[200];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir -m 700 '%s'", outputs, outputs);
    return system(command);
}

static int tear_down(void **state)
{
    char command[200];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

#define RUN(name) cmocka_unit_test_setup(name, clear_outputs)

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
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
