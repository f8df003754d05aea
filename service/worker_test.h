/* worker_test.h - the real sluice-worker on a small synthetic model, over its
 * channel: what its tests share.
 *
 * Include it once in a program.
 */
#ifndef SL_SERVICE_WORKER_TEST_H
#define SL_SERVICE_WORKER_TEST_H

#include "api/worker.pb-c.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "base/test.h"
#include "engine/media/media.h"
#include "engine/model/model_dir.h"
#include "engine/model/synth.h"
#include "engine/pipeline/t2v.h"
#include "service/channel.h"
#include "service/hosttier.h"
#include "service/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A sanitizer build takes longer for everything. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { PATIENCE = 10 };
#else
enum { PATIENCE = 1 };
#endif

#define DEVICE "cpu:1GiB"
#define LIMIT  SL_GIB

enum { THREADS = 2 };

static const int32_t prompt_ids[] = { 5, 17, 9, 33, 1 };

/* Made once: the model, and a folder for outputs, beside this program. */
static char build_dir[PATH_MAX - 64], work_dir[PATH_MAX - 32], model_path[PATH_MAX];

/* ---- a worker and what it says ---- */

typedef struct {
    pid_t pid;
    sl_channel *channel;
    sl_arena *arena; /* of the last event */
    uint64_t last_id;
    size_t workspace_bytes;
} worker;

static inline void check_memory(const Sluice__Worker__Memory *m)
{
    SL_CHECK(m && m->limit_bytes == LIMIT);
    SL_CHECK(m->mapped_bytes <= m->limit_bytes && m->peak_bytes >= m->mapped_bytes);
    if (!m->changing)
        SL_CHECK(m->mapped_bytes == m->workspace_bytes + m->weights_bytes + m->activations_bytes);
    if (m->rss_bytes)
        SL_CHECK(m->rss_bytes >= m->rss_arena_bytes && m->rss_arena_bytes <= m->mapped_bytes);
}

/* The next event; NULL at the end of the stream.  Fails after a while. */
static inline const Sluice__Worker__Event *next_event(worker *w, sl_error *err)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(20 * PATIENCE * SL_NS_PER_S);

    for (;;) {
        ProtobufCMessage *message = NULL;
        sl_arena_destroy(w->arena);
        w->arena = NULL;
        SL_CHECK_OK(sl_arena_create(&w->arena, 0, err));
        const sl_status filled = sl_channel_fill(w->channel, err);
        SL_CHECK_OK(sl_channel_pop(w->channel, &sluice__worker__event__descriptor, w->arena,
                                   &message, err));
        if (message) {
            check_memory(((Sluice__Worker__Event *)message)->memory);
            return (Sluice__Worker__Event *)message;
        }
        if (filled != SL_OK)
            return NULL;
        SL_CHECK(sl_clock_now_ns() < deadline_ns);
        struct pollfd poll_fd = { .fd = sl_channel_fd(w->channel), .events = POLLIN };
        poll(&poll_fd, 1, 100);
    }
}

/* Skips to the next event of a kind. */
static inline const Sluice__Worker__Event *
wait_event(worker *w, Sluice__Worker__Event__KindCase kind, sl_error *err)
{
    const Sluice__Worker__Event *event;

    do {
        event = next_event(w, err);
        SL_CHECK(event != NULL);
    } while (event->kind_case != kind);
    return event;
}

static inline const Sluice__Worker__Done *wait_done(worker *w, uint64_t id, sl_error *err)
{
    const Sluice__Worker__Event *event = wait_event(w, SLUICE__WORKER__EVENT__KIND_DONE, err);

    SL_CHECK(event->id == id);
    return event->done;
}

/* lanes: 0 without --lanes. */
static inline worker start_worker_with(int lanes, sl_error *err)
{
    char program[PATH_MAX], log_path[PATH_MAX], fd_text[16], threads_text[16], lanes_text[16];
    worker w = { 0 };
    int pair[2];

    snprintf(program, sizeof program, "%s/sluice-worker", build_dir);
    SL_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    snprintf(fd_text, sizeof fd_text, "%d", pair[1]);
    snprintf(threads_text, sizeof threads_text, "%d", THREADS);
    snprintf(lanes_text, sizeof lanes_text, "%d", lanes);
    w.pid = fork();
    SL_CHECK(w.pid >= 0);
    if (w.pid == 0) {
        close(pair[0]);
        snprintf(log_path, sizeof log_path, "%s/worker.log", work_dir);
        if (!freopen(log_path, "a", stderr)) /* what it says of garbage is not for the reader */
            _exit(126);
        execl(program, program, "--device", DEVICE, "--fd", fd_text, "--threads", threads_text,
              lanes ? "--lanes" : (char *)NULL, lanes_text, (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    SL_CHECK_OK(sl_channel_create(&w.channel, pair[0], "worker", err));
    const Sluice__Worker__Event *hello = next_event(&w, err);
    SL_CHECK(hello && hello->kind_case == SLUICE__WORKER__EVENT__KIND_HELLO && hello->id == 0);
    SL_CHECK(hello->hello->pid == w.pid && hello->hello->threads == THREADS);
    SL_CHECK(hello->memory->mapped_bytes == hello->memory->workspace_bytes);
    w.workspace_bytes = hello->memory->workspace_bytes;
    return w;
}

static inline worker start_worker(sl_error *err)
{
    return start_worker_with(0, err);
}

static inline void send_command(worker *w, Sluice__Worker__Command *command, sl_error *err)
{
    SL_CHECK_OK(sl_channel_push(w->channel, &command->base, err));
    SL_CHECK_OK(sl_channel_flush(w->channel, SL_NS_PER_S, err));
}

/* Its exit status, or -signal; fails when it takes longer than limit_ns. */
static inline int wait_exit(worker *w, int64_t limit_ns)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(limit_ns);
    int wait_status;

    while (waitpid(w->pid, &wait_status, WNOHANG) == 0) {
        if (sl_clock_now_ns() > deadline_ns) {
            kill(w->pid, SIGKILL);
            waitpid(w->pid, NULL, 0);
            fail_msg("the worker did not end in time");
        }
        usleep(1000);
    }
    sl_channel_destroy(w->channel);
    sl_arena_destroy(w->arena);
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -WTERMSIG(wait_status);
}

static inline void stop_worker(worker *w, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Shutdown message = SLUICE__WORKER__SHUTDOWN__INIT;

    command.kind_case = SLUICE__WORKER__COMMAND__KIND_SHUTDOWN;
    command.shutdown = &message;
    send_command(w, &command, err);
    SL_CHECK(wait_exit(w, 2 * PATIENCE * SL_NS_PER_S) == 0);
}

/* ---- commands ---- */

static inline Sluice__Worker__ComponentKey key_of(sl_component_kind kind)
{
    Sluice__Worker__ComponentKey key = SLUICE__WORKER__COMPONENT_KEY__INIT;

    key.model = (char *)"tiny";
    key.component = (int32_t)kind;
    key.precision = SL_PRECISION_BF16;
    return key;
}

static inline size_t planned_bytes(sl_component_kind kind)
{
    const sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), kind, SL_PRECISION_BF16);
    return sl_component_plan_bytes(&spec);
}

static inline const Sluice__Worker__Done *load(worker *w, sl_component_kind kind, size_t bytes,
                                               sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Load message = SLUICE__WORKER__LOAD__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);

    message.key = &key;
    message.model_path = model_path;
    message.planned_bytes = bytes;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_LOAD;
    command.load = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

static inline const Sluice__Worker__Done *unload_mode(worker *w, sl_component_kind kind,
                                                      sl_component_mode mode, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Unload message = SLUICE__WORKER__UNLOAD__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);

    key.mode = (int32_t)mode;
    message.key = &key;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_UNLOAD;
    command.unload = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

static inline const Sluice__Worker__Done *unload(worker *w, sl_component_kind kind, sl_error *err)
{
    return unload_mode(w, kind, SL_MODE_RESIDENT, err);
}

/* ---- host memory ---- */

static inline void send_with_fds(worker *w, Sluice__Worker__Command *command, const int *fds,
                                 int fd_count, sl_error *err)
{
    SL_CHECK_OK(sl_channel_push_fds(w->channel, &command->base, fds, fd_count, err));
    SL_CHECK_OK(sl_channel_flush(w->channel, SL_NS_PER_S, err));
}

static inline size_t image_bytes(sl_component_kind kind)
{
    const sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), kind, SL_PRECISION_BF16);
    return sl_component_image_bytes(&spec);
}

static inline const Sluice__Worker__Done *host_segments(worker *w, sl_component_kind kind,
                                                        const sl_host_image *image, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostSegments message = SLUICE__WORKER__HOST_SEGMENTS__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);
    uint64_t segment_bytes[SL_HOST_MAX_SEGMENTS];

    for (int i = 0; i < image->segment_count; i++)
        segment_bytes[i] = image->segment_bytes[i];
    message.key = &key;
    message.image_bytes = image->image_bytes;
    message.n_segment_bytes = (size_t)image->segment_count;
    message.segment_bytes = segment_bytes;
    message.filled = image->filled;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS;
    command.host_segments = &message;
    send_with_fds(w, &command, image->fds, image->segment_count, err);
    return wait_done(w, command.id, err);
}

static inline const Sluice__Worker__Done *host_fill(worker *w, sl_component_kind kind,
                                                    sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostFill message = SLUICE__WORKER__HOST_FILL__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);

    message.key = &key;
    message.model_path = model_path;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_FILL;
    command.host_fill = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

static inline const Sluice__Worker__Done *host_forget(worker *w, sl_component_kind kind,
                                                      sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostForget message = SLUICE__WORKER__HOST_FORGET__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);

    message.key = &key;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_FORGET;
    command.host_forget = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

static inline const Sluice__Worker__Done *trim(worker *w, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Trim message = SLUICE__WORKER__TRIM__INIT;

    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_TRIM;
    command.trim = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

/* From the image; mode: sl_component_mode. */
static inline const Sluice__Worker__Done *load_host(worker *w, sl_component_kind kind,
                                                    sl_component_mode mode, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Load message = SLUICE__WORKER__LOAD__INIT;
    Sluice__Worker__ComponentKey key = key_of(kind);
    sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), kind, SL_PRECISION_BF16);

    spec.mode = mode;
    key.mode = (int32_t)mode;
    message.key = &key;
    message.model_path = model_path;
    if (mode == SL_MODE_RESIDENT || sl_component_can_stream(kind))
        message.planned_bytes = sl_component_plan_bytes(&spec);
    message.from_host = true;
    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_LOAD;
    command.load = &message;
    send_command(w, &command, err);
    return wait_done(w, command.id, err);
}

static inline int open_fd_count(pid_t pid)
{
    char path[64];
    int count = 0;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    SL_CHECK(dir != NULL);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static const sl_component_kind kinds[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT,
                                           SL_COMPONENT_VAE };

static inline void load_all(worker *w, sl_error *err)
{
    for (size_t i = 0; i < SL_COUNT(kinds); i++)
        SL_CHECK(load(w, kinds[i], planned_bytes(kinds[i]), err)->status == SL_OK);
}

static inline void cancel(worker *w, const char *job_id, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Cancel message = SLUICE__WORKER__CANCEL__INIT;

    message.job_id = (char *)job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_CANCEL;
    command.cancel = &message;
    send_command(w, &command, err);
}

static inline void preempt(worker *w, const char *job_id, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Preempt message = SLUICE__WORKER__PREEMPT__INIT;

    message.job_id = (char *)job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_PREEMPT;
    command.preempt = &message;
    send_command(w, &command, err);
}

/* A job of some size with its plan. */
typedef struct {
    Sluice__Worker__Run run;
    sl_t2v_plan plan;
    char output[PATH_MAX], latent[PATH_MAX];
    uint64_t phase_bytes[SL_PHASE_COUNT];
} job;

static inline void make_job(job *j, const char *id, int size, int frames, int steps, sl_error *err)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    sl_t2v_request request = sl_t2v_request_default(arch);

    request.width = request.height = size;
    request.frames = frames;
    request.steps = steps;
    request.precision = SL_PRECISION_BF16;
    request.token_count = SL_COUNT(prompt_ids);
    SL_CHECK_OK(sl_t2v_plan_make(&j->plan, &request, arch, SL_DEVICE_CPU, err));
    snprintf(j->output, sizeof j->output, "%s/.partial-%s-1.y4m", work_dir, id);
    snprintf(j->latent, sizeof j->latent, "%s/.latent-%s", work_dir, id);
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        j->phase_bytes[i] = j->plan.remaining_bytes[i];
    sluice__worker__run__init(&j->run);
    j->run.job_id = (char *)id;
    j->run.model = (char *)"tiny";
    j->run.model_path = model_path;
    j->run.precision = SL_PRECISION_BF16;
    j->run.width = j->run.height = size;
    j->run.frames = frames;
    j->run.steps = steps;
    j->run.sampler = (int32_t)request.mode;
    j->run.sigma_max = request.sigma_max;
    j->run.seed = 42;
    j->run.n_ids = SL_COUNT(prompt_ids);
    j->run.ids = (int32_t *)prompt_ids;
    j->run.activation_bytes = j->plan.activation_bytes;
    j->run.output_path = j->output;
    j->run.output_format = SL_MEDIA_Y4M;
}

static inline uint64_t send_run(worker *w, job *j, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;

    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &j->run;
    send_command(w, &command, err);
    return command.id;
}

static inline bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Many steps of work: long enough to be interrupted. */
static inline void make_long_job(job *j, const char *id, sl_error *err)
{
    make_job(j, id, 256, 33, 4, err);
}

static inline void start_long_job(worker *w, job *j, const char *id, sl_error *err)
{
    make_long_job(j, id, err);
    load_all(w, err);
    send_run(w, j, err); /* its id is last_id */
    for (int phase = -1; phase != SL_PHASE_DENOISE;)
        phase = wait_event(w, SLUICE__WORKER__EVENT__KIND_PHASE, err)->phase->phase;
    SL_CHECK(exists(j->output));
}

/* ---- jobs, checked ---- */

/* The phases that the plan has, in their order, then the one of the file. */
static inline int next_phase(const job *j, int phase)
{
    do
        phase++;
    while (phase < SL_PHASE_COUNT && j->plan.phase_activation_bytes[phase] == 0);
    return phase;
}

/* What the job has mapped in a phase, by its plan and what it was told. */
static inline size_t mapped_in(const job *j, int phase)
{
    if (j->run.n_phase_bytes == 0 || phase < 0)
        return j->plan.activation_bytes;
    for (; phase > 0 && (phase == SL_PHASE_COUNT || j->phase_bytes[phase] == 0);)
        phase--; /* the last one that the job has */
    return j->phase_bytes[phase];
}

static inline void check_result(const job *j, const Sluice__Worker__Done *done,
                                size_t workspace_bytes)
{
    struct stat info;

    if (done->status != SL_OK)
        fail_msg("%s: %s", sl_status_text((sl_status)done->status), done->message);
    SL_CHECK(done->n_phase_activation_bytes == SL_PHASE_COUNT && !done->preempted);
    for (int i = 0; i < SL_PHASE_COUNT && done->resumed_from_step == 0; i++)
        SL_CHECK(done->phase_activation_bytes[i] == j->plan.phase_activation_bytes[i]);
    SL_CHECK(done->job_peak_bytes <= j->plan.total_bytes + workspace_bytes);
    if (done->resumed_from_step < j->run.steps)
        SL_CHECK(done->job_peak_bytes == j->plan.total_bytes + workspace_bytes);
    SL_CHECK(stat(j->output, &info) == 0 && (uint64_t)info.st_size == done->output_size_bytes);
    SL_CHECK(strlen(done->output_sha256) == 64);
    SL_CHECK(!exists(j->latent));
}

/* Runs a job to its end, from the first step that is not done, and checks
 * everything it says on the way. */
static inline void resume_and_check(worker *w, job *j, int step, char sha256[65], sl_error *err)
{
    const uint64_t id = send_run(w, j, err);
    const Sluice__Worker__Event *event;
    int phase = step == j->run.steps ? SL_PHASE_DECODE - 1 : -1, frames = 0;
    const int first_step = step;

    for (;;) {
        event = next_event(w, err);
        SL_CHECK(event != NULL && !event->memory->changing);
        if (event->kind_case == SLUICE__WORKER__EVENT__KIND_DONE)
            break;
        if (event->kind_case == SLUICE__WORKER__EVENT__KIND_PHASE) {
            SL_CHECK(event->phase->phase == next_phase(j, phase));
            phase = event->phase->phase;
        } else if (event->kind_case == SLUICE__WORKER__EVENT__KIND_STEP) {
            SL_CHECK(phase == SL_PHASE_DENOISE && event->step->step == ++step);
            SL_CHECK(event->step->step_count == j->run.steps);
            SL_CHECK(exists(j->latent) == (j->run.latent_path[0] != '\0'));
        } else if (event->kind_case == SLUICE__WORKER__EVENT__KIND_DECODED) {
            SL_CHECK(phase == SL_PHASE_DECODE && event->decoded->frames > frames);
            frames = event->decoded->frames;
        }
        SL_CHECK(event->memory->activations_bytes == mapped_in(j, phase));
    }
    const Sluice__Worker__Done *done = event->done;
    check_result(j, done, w->workspace_bytes);
    SL_CHECK(event->id == id && phase == SL_PHASE_COUNT);
    SL_CHECK(step == j->run.steps && frames == j->run.frames);
    SL_CHECK(done->resumed_from_step == first_step);
    SL_CHECK(done->peak_bytes == done->before_bytes + j->plan.activation_bytes);
    SL_CHECK(done->after_bytes == done->before_bytes);
    memcpy(sha256, done->output_sha256, 65);
}

static inline void run_and_check(worker *w, job *j, char sha256[65], sl_error *err)
{
    resume_and_check(w, j, 0, sha256, err);
}

/* A job whose steps are short, and whose decoding is in several parts. */
static inline void make_short_job(job *j, const char *id, sl_error *err)
{
    make_job(j, id, 64, 17, 4, err);
    j->run.latent_path = j->latent;
    j->run.n_phase_bytes = SL_PHASE_COUNT;
    j->run.phase_bytes = j->phase_bytes;
}

static inline void expect_run(worker *w, job *j, sl_status status, const char *text, sl_error *err)
{
    const Sluice__Worker__Done *done = wait_done(w, send_run(w, j, err), err);

    if ((sl_status)done->status != status || !strstr(done->message, text))
        fail_msg("got %s: %s; want %s: %s", sl_status_text((sl_status)done->status), done->message,
                 sl_status_text(status), text);
    SL_CHECK(done->after_bytes == done->before_bytes && !exists(j->output));
}

/* ---- the model ---- */

static inline int make_model(void **state)
{
    sl_error error;
    ssize_t n = readlink("/proc/self/exe", build_dir, sizeof build_dir - 1);

    (void)state;
    if (n <= 0)
        return -1;
    build_dir[n] = '\0';
    *strrchr(build_dir, '/') = '\0';
    snprintf(work_dir, sizeof work_dir, "%s/worker-test-XXXXXX", build_dir);
    if (!mkdtemp(work_dir))
        return -1;
    snprintf(model_path, sizeof model_path, "%s/tiny", work_dir);
    const sl_status status =
        sl_synth_model(model_path, sl_arch_find("tiny-t2v"), 7, NULL, NULL, &error);
    if (status != SL_OK)
        print_error("%s\n", error.message);
    return status == SL_OK ? 0 : -1;
}

static inline int remove_model(void **state)
{
    char command[PATH_MAX + 16];

    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", work_dir);
    return system(command) == 0 ? 0 : -1;
}

static inline int run_worker_tests(const struct CMUnitTest *tests, size_t count)
{
    sl_log_set_level((sl_log_level)(SL_LOG_ERROR + 1));
    return _cmocka_run_group_tests("worker", tests, count, make_model, remove_model);
}

#define RUN_WORKER_TESTS(tests) run_worker_tests(tests, SL_COUNT(tests))

#endif
