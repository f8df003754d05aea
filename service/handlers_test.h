/* handlers_test.h - the service with a made-up supervisor and worker, for tests.
 *
 * This file defines sl_supervisor_* itself: include it once in a program.  The
 * worker does what it is told on a thread of its own, keeps the books of its arena,
 * and can be held, killed and made to lie.
 */
#ifndef SL_SERVICE_HANDLERS_TEST_H
#define SL_SERVICE_HANDLERS_TEST_H

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
    _Atomic int lanes; /* of the next one */
    size_t host_bytes; /* the same */
    int runs; /* that have begun */
    bool resumed; /* the last one should continue */
    char latent_path[200];
};

static sl_supervisor *fake; /* the latest */
static bool next_fake_holds; /* hold_run of the coming one */

static inline void wait_locked(sl_supervisor *f)
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

static inline void tell(sl_supervisor *f, Sluice__Worker__Event *event)
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

static inline void hello(sl_supervisor *f)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Hello message = SLUICE__WORKER__HELLO__INIT;

    f->mapped = f->peak = FAKE_WORKSPACE;
    f->generation++;
    message.pid = 4711;
    message.lanes = f->lanes;
    message.canary_ns = SL_NS_PER_MS;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_HELLO;
    event.hello = &message;
    tell(f, &event);
}

static inline void map(sl_supervisor *f, size_t more)
{
    f->mapped += more;
    if (f->mapped > f->peak)
        f->peak = f->mapped;
}

static inline void finish(sl_supervisor *f, uint64_t id, Sluice__Worker__Done *done, sl_status status)
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
static inline bool interrupted(sl_supervisor *f, const char *job_id)
{
    bool out;

    pthread_mutex_lock(&f->lock);
    while (f->hold_run && !f->stop && !f->killed[0] && strcmp(f->cancelled, job_id) != 0)
        wait_locked(f);
    out = f->stop || f->killed[0] || strcmp(f->cancelled, job_id) == 0;
    pthread_mutex_unlock(&f->lock);
    return out;
}

static inline void tell_phase(sl_supervisor *f, char *job_id, int phase)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Phase message = SLUICE__WORKER__PHASE__INIT;

    message.job_id = job_id;
    message.phase = phase;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PHASE;
    event.phase = &message;
    tell(f, &event);
}

static inline void tell_steps(sl_supervisor *f, const Sluice__Worker__Run *run)
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

static inline void write_output(const char *path)
{
    FILE *file = fopen(path, "w");

    for (int i = 0; file && i < OUTPUT_BYTES; i++)
        fputc(i * 7 % 251, file);
    if (file)
        fclose(file);
}

static inline void hash_output(char hex[SL_SHA256_HEX_BYTES])
{
    static unsigned char bytes[OUTPUT_BYTES];
    unsigned char digest[SHA256_DIGEST_LENGTH];

    for (int i = 0; i < OUTPUT_BYTES; i++)
        bytes[i] = (unsigned char)(i * 7 % 251);
    SHA256(bytes, sizeof bytes, digest);
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* False: the worker died of it. */
static inline bool do_fake_run(sl_supervisor *f, uint64_t id, const Sluice__Worker__Run *run)
{
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    sl_status status = SL_OK;
    char sha256[SL_SHA256_HEX_BYTES];

    done.before_bytes = f->mapped;
    f->runs++;
    f->resumed = run->resume;
    snprintf(f->latent_path, sizeof f->latent_path, "%s", run->latent_path);
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
    const bool early = interrupted(f, run->job_id);
    pthread_mutex_lock(&f->lock);
    const bool is_killed = f->killed[0] != '\0';
    pthread_mutex_unlock(&f->lock);
    if (is_killed)
        return true; /* without a word */
    if (early) {
        unlink(run->output_path);
        status = SL_ERR_CANCELLED;
    } else {
        tell_steps(f, run);
        tell_phase(f, run->job_id, SL_PHASE_DECODE);
        done.output_size_bytes = OUTPUT_BYTES;
        done.output_sha256 = sha256;
        hash_output(sha256);
    }
    done.job_peak_bytes = f->peak; /* it is alone */
    f->mapped -= run->activation_bytes;
    finish(f, id, &done, status);
    return true;
}

static inline bool do_command(sl_supervisor *f, const Sluice__Worker__Command *command)
{
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    sl_status load_fails = SL_OK;

    done.before_bytes = f->mapped;
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
        return do_fake_run(f, command->id, command->run);
    f->peak = f->mapped;
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_LOAD) {
        SL_ASSERT(command->load->model_path[0] == '/');
        pthread_mutex_lock(&f->lock);
        load_fails = f->load_fails;
        pthread_mutex_unlock(&f->lock);
        if (load_fails == SL_OK) {
            map(f, command->load->planned_bytes);
            done.component_bytes = command->load->planned_bytes;
        }
        finish(f, command->id, &done, load_fails);
    } else {
        /* The size is not in the command: all components of the tests' model are of
         * the sizes that its plan says; the service is asked for them. */
        f->mapped = FAKE_WORKSPACE;
        finish(f, command->id, &done, SL_OK);
    }
    return true;
}

static inline void *run_fake(void *arg)
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
    (void)err;
    fake = calloc(1, sizeof *fake);
    fake->events = *events;
    fake->lanes = config->lanes;
    fake->hold_run = next_fake_holds;
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

sl_status sl_supervisor_send_fds(sl_supervisor *f, uint64_t generation,
                                 const Sluice__Worker__Command *command, const int *fds,
                                 int fd_count, sl_error *err)
{
    (void)fds;
    (void)fd_count;
    return sl_supervisor_send(f, generation, command, err);
}

void sl_supervisor_set_lanes(sl_supervisor *f, int lanes)
{
    f->lanes = lanes;
}

void sl_supervisor_set_host_bytes(sl_supervisor *f, size_t host_bytes)
{
    f->host_bytes = host_bytes;
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

static inline void set_fake(bool hold, int die, sl_status load_fails)
{
    pthread_mutex_lock(&fake->lock);
    fake->hold_run = hold;
    fake->die_in_run = die;
    fake->load_fails = load_fails;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

/* --- calling methods --- */

static char root[64], outputs[80], models[80], store_path[100];

static inline sl_service *start(size_t limit_bytes, sl_error *err)
{
    const char *const roots[] = { models };
    const sl_service_config config = {
        .device = { .kind = SL_DEVICE_CPU, .limit_bytes = limit_bytes },
        .models = roots,
        .model_count = 1,
        .outputs = outputs,
        .store = store_path,
        .threads = 1, /* and the loader's lane has one: FAKE_WORKSPACE in all */
        .retry_limit = 2,
        .limits = { .running = 1, .queue = 8 },
        .watchers = 2,
        .load_waiters = 2,
        .keep_jobs = 100,
        .lock_fd = -1,
    };
    sl_service *s = NULL;

    SL_CHECK_OK(sl_service_create(&s, &config, err));
    return s;
}

static inline void stop(sl_service *s)
{
    sl_service_begin_stop(s);
    sl_service_stop(s, 0);
    sl_service_destroy(s);
}

static inline void begin_call(sl_rpc_call *call, sl_role role, const char *who, const void *request)
{
    sl_error ignored;

    *call = (sl_rpc_call){ .peer = { .role = role }, .method = "test", .trace_id = "",
                           .deadline_ns = sl_clock_deadline_ns(20 * SL_NS_PER_S),
                           .request = request };
    snprintf(call->peer.identity, sizeof call->peer.identity, "%s", who);
    SL_CHECK(sl_arena_create(&call->arena, 16 << 20, &ignored) == SL_OK);
}

static inline Sluice__V1__GenerateRequest a_request(const char *id)
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
static inline const char *generate(sl_service *s, const char *who, const char *request_id, sl_error *err)
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
static inline void await_state(sl_service *s, const char *id, Sluice__V1__JobState state, sl_error *err)
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

static inline void get_job(sl_service *s, sl_rpc_call *call, const char *id, sl_error *err)
{
    Sluice__V1__GetJobRequest request = SLUICE__V1__GET_JOB_REQUEST__INIT;

    request.job_id = (char *)id;
    begin_call(call, SL_ROLE_ADMIN, "uid:0", &request.base);
    SL_CHECK_OK(sl_handle_get_job(s, call, err));
}

#define JOB_OF(call) (((const Sluice__V1__GetJobReply *)(call).reply)->job)

/* total = the sum of everything else. */
static inline void check_ledger(sl_service *s, sl_error *err)
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

static inline int count_files(const char *prefix)
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

/* --- the stage --- */

static inline int set_up(void **state)
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
    snprintf(store_path, sizeof store_path, "%s/.jobs.db", outputs);
    snprintf(path, sizeof path, "%s/tiny", models);
    if (mkdir(outputs, 0700) != 0 || mkdir(models, 0700) != 0
        || sl_synth_model(path, sl_arch_find("tiny-t2v"), 1, NULL, NULL, &err) != SL_OK)
        return -1;
    snprintf(path, sizeof path, "%s/broken", models);
    return mkdir(path, 0700);
}

static inline int clear_outputs(void **state)
{
    char command[200];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir -m 700 '%s'", outputs, outputs);
    return system(command);
}

static inline int tear_down(void **state)
{
    char command[200];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

#define RUN(name) cmocka_unit_test_setup(name, clear_outputs)

#endif
