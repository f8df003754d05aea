/* The real sluice-worker on a small synthetic model, over its channel. */
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

static void check_memory(const Sluice__Worker__Memory *m)
{
    SL_CHECK(m && m->limit_bytes == LIMIT);
    SL_CHECK(m->mapped_bytes <= m->limit_bytes && m->peak_bytes >= m->mapped_bytes);
    if (!m->changing)
        SL_CHECK(m->mapped_bytes == m->workspace_bytes + m->weights_bytes + m->activations_bytes);
    if (m->rss_bytes)
        SL_CHECK(m->rss_bytes >= m->rss_arena_bytes && m->rss_arena_bytes <= m->mapped_bytes);
}

/* The next event; NULL at the end of the stream.  Fails after a while. */
static const Sluice__Worker__Event *next_event(worker *w, sl_error *err)
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
static const Sluice__Worker__Event *wait_event(worker *w, Sluice__Worker__Event__KindCase kind,
                                               sl_error *err)
{
    const Sluice__Worker__Event *event;

    do {
        event = next_event(w, err);
        SL_CHECK(event != NULL);
    } while (event->kind_case != kind);
    return event;
}

static const Sluice__Worker__Done *wait_done(worker *w, uint64_t id, sl_error *err)
{
    const Sluice__Worker__Event *event = wait_event(w, SLUICE__WORKER__EVENT__KIND_DONE, err);

    SL_CHECK(event->id == id);
    return event->done;
}

/* lanes: 0 without --lanes. */
static worker start_worker_with(int lanes, sl_error *err)
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

static worker start_worker(sl_error *err)
{
    return start_worker_with(0, err);
}

static void send_command(worker *w, Sluice__Worker__Command *command, sl_error *err)
{
    SL_CHECK_OK(sl_channel_push(w->channel, &command->base, err));
    SL_CHECK_OK(sl_channel_flush(w->channel, SL_NS_PER_S, err));
}

/* Its exit status, or -signal; fails when it takes longer than limit_ns. */
static int wait_exit(worker *w, int64_t limit_ns)
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

static void stop_worker(worker *w, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Shutdown message = SLUICE__WORKER__SHUTDOWN__INIT;

    command.kind_case = SLUICE__WORKER__COMMAND__KIND_SHUTDOWN;
    command.shutdown = &message;
    send_command(w, &command, err);
    SL_CHECK(wait_exit(w, 2 * PATIENCE * SL_NS_PER_S) == 0);
}

/* ---- commands ---- */

static Sluice__Worker__ComponentKey key_of(sl_component_kind kind)
{
    Sluice__Worker__ComponentKey key = SLUICE__WORKER__COMPONENT_KEY__INIT;

    key.model = (char *)"tiny";
    key.component = (int32_t)kind;
    key.precision = SL_PRECISION_BF16;
    return key;
}

static size_t planned_bytes(sl_component_kind kind)
{
    const sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), kind, SL_PRECISION_BF16);
    return sl_component_plan_bytes(&spec);
}

static const Sluice__Worker__Done *load(worker *w, sl_component_kind kind, size_t bytes,
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

static const Sluice__Worker__Done *unload_mode(worker *w, sl_component_kind kind,
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

static const Sluice__Worker__Done *unload(worker *w, sl_component_kind kind, sl_error *err)
{
    return unload_mode(w, kind, SL_MODE_RESIDENT, err);
}

/* ---- host memory ---- */

static void send_with_fds(worker *w, Sluice__Worker__Command *command, const int *fds, int fd_count,
                          sl_error *err)
{
    SL_CHECK_OK(sl_channel_push_fds(w->channel, &command->base, fds, fd_count, err));
    SL_CHECK_OK(sl_channel_flush(w->channel, SL_NS_PER_S, err));
}

static size_t image_bytes(sl_component_kind kind)
{
    const sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), kind, SL_PRECISION_BF16);
    return sl_component_image_bytes(&spec);
}

static const Sluice__Worker__Done *host_segments(worker *w, sl_component_kind kind,
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

static const Sluice__Worker__Done *host_fill(worker *w, sl_component_kind kind, sl_error *err)
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

static const Sluice__Worker__Done *host_forget(worker *w, sl_component_kind kind, sl_error *err)
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

static const Sluice__Worker__Done *trim(worker *w, sl_error *err)
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
static const Sluice__Worker__Done *load_host(worker *w, sl_component_kind kind,
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

static int open_fd_count(pid_t pid)
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

static void load_all(worker *w, sl_error *err)
{
    for (size_t i = 0; i < SL_COUNT(kinds); i++)
        SL_CHECK(load(w, kinds[i], planned_bytes(kinds[i]), err)->status == SL_OK);
}

static void cancel(worker *w, const char *job_id, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Cancel message = SLUICE__WORKER__CANCEL__INIT;

    message.job_id = (char *)job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_CANCEL;
    command.cancel = &message;
    send_command(w, &command, err);
}

static void preempt(worker *w, const char *job_id, sl_error *err)
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

static void make_job(job *j, const char *id, int size, int frames, int steps, sl_error *err)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    sl_t2v_request request = sl_t2v_request_default(arch);

    request.width = request.height = size;
    request.frames = frames;
    request.steps = steps;
    request.precision = SL_PRECISION_BF16;
    request.token_count = SL_COUNT(prompt_ids);
    SL_CHECK_OK(sl_t2v_plan_make(&j->plan, &request, arch, err));
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

static uint64_t send_run(worker *w, job *j, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;

    command.id = ++w->last_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &j->run;
    send_command(w, &command, err);
    return command.id;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Many steps of work: long enough to be interrupted. */
static void make_long_job(job *j, const char *id, sl_error *err)
{
    make_job(j, id, 256, 33, 4, err);
}

static void start_long_job(worker *w, job *j, const char *id, sl_error *err)
{
    make_long_job(j, id, err);
    load_all(w, err);
    send_run(w, j, err); /* its id is last_id */
    for (int phase = -1; phase != SL_PHASE_DENOISE;)
        phase = wait_event(w, SLUICE__WORKER__EVENT__KIND_PHASE, err)->phase->phase;
    SL_CHECK(exists(j->output));
}

/* ---- tests ---- */

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

/* The phases that the plan has, in their order, then the one of the file. */
static int next_phase(const job *j, int phase)
{
    do
        phase++;
    while (phase < SL_PHASE_COUNT && j->plan.phase_activation_bytes[phase] == 0);
    return phase;
}

/* What the job has mapped in a phase, by its plan and what it was told. */
static size_t mapped_in(const job *j, int phase)
{
    if (j->run.n_phase_bytes == 0 || phase < 0)
        return j->plan.activation_bytes;
    for (; phase > 0 && (phase == SL_PHASE_COUNT || j->phase_bytes[phase] == 0);)
        phase--; /* the last one that the job has */
    return j->phase_bytes[phase];
}

static void check_result(const job *j, const Sluice__Worker__Done *done, size_t workspace_bytes)
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
static void resume_and_check(worker *w, job *j, int step, char sha256[65], sl_error *err)
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

static void run_and_check(worker *w, job *j, char sha256[65], sl_error *err)
{
    resume_and_check(w, j, 0, sha256, err);
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

/* A job whose steps are short, and whose decoding is in several parts. */
static void make_short_job(job *j, const char *id, sl_error *err)
{
    make_job(j, id, 64, 17, 4, err);
    j->run.latent_path = j->latent;
    j->run.n_phase_bytes = SL_PHASE_COUNT;
    j->run.phase_bytes = j->phase_bytes;
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

static void expect_run(worker *w, job *j, sl_status status, const char *text, sl_error *err)
{
    const Sluice__Worker__Done *done = wait_done(w, send_run(w, j, err), err);

    if ((sl_status)done->status != status || !strstr(done->message, text))
        fail_msg("got %s: %s; want %s: %s", sl_status_text((sl_status)done->status), done->message,
                 sl_status_text(status), text);
    SL_CHECK(done->after_bytes == done->before_bytes && !exists(j->output));
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

SL_TEST(host_images_survive_the_worker)
{
    const int open_before = open_fd_count(getpid());
    char from_file[65], from_host[65];
    sl_hosttier *tier = NULL;
    sl_host_image *images[SL_COUNT(kinds)];
    worker w = start_worker(err);
    job j;

    load_all(&w, err);
    make_job(&j, "host", 64, 5, 2, err);
    run_and_check(&w, &j, from_file, err);
    SL_CHECK(unlink(j.output) == 0);

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    const int worker_open = open_fd_count(w.pid);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK_OK(sl_host_image_create(&images[i], tier, "tiny", image_bytes(kinds[i]), err));
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_OK);
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_ERR_EXISTS);
        const Sluice__Worker__Done *done = host_fill(&w, kinds[i], err);
        SL_CHECK(done->status == SL_OK && done->component_bytes == images[i]->image_bytes);
        SL_CHECK(done->after_bytes == done->before_bytes); /* nothing on the device */
        sl_host_image_set_filled(images[i]);
    }
    SL_CHECK(sl_hosttier_resident_bytes(tier) == sl_hosttier_booked_bytes(tier));
    SL_CHECK(open_fd_count(w.pid) == worker_open);
    SL_CHECK(kill(w.pid, SIGKILL) == 0 && wait_exit(&w, PATIENCE * SL_NS_PER_S) == -SIGKILL);

    w = start_worker(err);
    SL_CHECK(load_host(&w, SL_COMPONENT_DIT, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_OK);
        const Sluice__Worker__Done *done = load_host(&w, kinds[i], SL_MODE_RESIDENT, err);
        SL_CHECK(done->status == SL_OK && done->component_bytes == planned_bytes(kinds[i]));
    }
    /* A resident component has its bytes: the image may go. */
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK(host_forget(&w, kinds[i], err)->status == SL_OK);
        SL_CHECK(host_forget(&w, kinds[i], err)->status == SL_ERR_NOT_FOUND);
        sl_host_image_destroy(images[i]);
    }
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 0);
    run_and_check(&w, &j, from_host, err);
    SL_CHECK(strcmp(from_file, from_host) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
    SL_CHECK(open_fd_count(getpid()) == open_before);
}

static void make_streamed_job(job *j, const char *id, unsigned streamed, sl_error *err)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    sl_t2v_request request = sl_t2v_request_default(arch);

    make_job(j, id, 64, 5, 2, err);
    request.width = request.height = 64;
    request.frames = 5;
    request.steps = 2;
    request.token_count = SL_COUNT(prompt_ids);
    request.streamed = streamed;
    SL_CHECK_OK(sl_t2v_plan_make(&j->plan, &request, arch, err));
    j->run.activation_bytes = j->plan.activation_bytes;
    j->run.streamed = (int32_t)streamed;
}

SL_TEST(streamed_components_give_the_same_bytes)
{
    const sl_component_kind streamed[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT };
    char resident[65], from_host[65];
    sl_hosttier *tier = NULL;
    sl_host_image *images[SL_COUNT(streamed)];
    worker w = start_worker(err);
    job j;

    load_all(&w, err);
    make_job(&j, "resident", 64, 5, 2, err);
    run_and_check(&w, &j, resident, err);
    SL_CHECK(unlink(j.output) == 0);

    make_streamed_job(&j, "streamed", SL_COMPONENT_BIT(streamed[0]) | SL_COMPONENT_BIT(streamed[1]),
                      err);
    expect_run(&w, &j, SL_ERR_PRECONDITION, "not loaded", err);
    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    for (size_t i = 0; i < SL_COUNT(streamed); i++) {
        SL_CHECK_OK(sl_host_image_create(&images[i], tier, "tiny", image_bytes(streamed[i]), err));
        SL_CHECK(host_segments(&w, streamed[i], images[i], err)->status == SL_OK);
        SL_CHECK(load_host(&w, streamed[i], SL_MODE_STREAMED, err)->status ==
                 SL_ERR_PRECONDITION); /* empty yet */
        SL_CHECK(host_fill(&w, streamed[i], err)->status == SL_OK);
        SL_CHECK(load_host(&w, streamed[i], SL_MODE_STREAMED, err)->status == SL_OK);
        SL_CHECK(host_forget(&w, streamed[i], err)->status == SL_ERR_PRECONDITION);
        SL_CHECK(host_fill(&w, streamed[i], err)->status == SL_ERR_PRECONDITION);
        SL_CHECK(unload(&w, streamed[i], err)->status == SL_OK); /* the resident one */
    }
    SL_CHECK(trim(&w, err)->status == SL_OK);
    run_and_check(&w, &j, from_host, err);
    SL_CHECK(strcmp(resident, from_host) == 0 && unlink(j.output) == 0);
    for (size_t i = 0; i < SL_COUNT(streamed); i++) {
        SL_CHECK(unload_mode(&w, streamed[i], SL_MODE_STREAMED, err)->status == SL_OK);
        SL_CHECK(host_forget(&w, streamed[i], err)->status == SL_OK);
    }
    SL_CHECK(load_host(&w, SL_COMPONENT_VAE, SL_MODE_STREAMED, err)->status == SL_ERR_INVALID);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(host_memory_that_is_not_as_told_is_refused)
{
    const sl_component_kind kind = SL_COMPONENT_VAE;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL, bad;
    worker w = start_worker(err);

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    SL_CHECK_OK(sl_host_image_create(&image, tier, "tiny/vae", image_bytes(kind), err));
    const int worker_open = open_fd_count(w.pid);
    SL_CHECK(host_fill(&w, kind, err)->status == SL_ERR_NOT_FOUND);
    bad = *image, bad.segment_bytes[0] += page; /* beyond the file */
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.segment_bytes[0] -= 1;
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.image_bytes = image->booked_bytes + 1;
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.segment_count = 2, bad.segment_bytes[1] = page, bad.fds[1] = bad.fds[0];
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.fds[0] = STDERR_FILENO; /* no memory, not sealed */
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    SL_CHECK(open_fd_count(w.pid) == worker_open);

    /* Of the right form, and of another size than the component. */
    sl_host_image *other = NULL;
    SL_CHECK_OK(sl_host_image_create(&other, tier, "tiny/vae", page, err));
    SL_CHECK(host_segments(&w, kind, other, err)->status == SL_OK);
    SL_CHECK(host_fill(&w, kind, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(load_host(&w, kind, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(host_forget(&w, kind, err)->status == SL_OK);
    other->filled = true; /* which is a lie */
    SL_CHECK(host_segments(&w, kind, other, err)->status == SL_OK);
    SL_CHECK(load_host(&w, kind, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(host_forget(&w, kind, err)->status == SL_OK);
    SL_CHECK(open_fd_count(w.pid) == worker_open);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(segments_without_their_descriptors_are_garbage)
{
    worker w = start_worker(err);
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostSegments message = SLUICE__WORKER__HOST_SEGMENTS__INIT;
    Sluice__Worker__ComponentKey key = key_of(SL_COMPONENT_VAE);
    uint64_t segment_bytes[] = { 4096, 4096 };

    message.key = &key;
    message.image_bytes = 8192;
    message.n_segment_bytes = 2;
    message.segment_bytes = segment_bytes;
    command.id = 1;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS;
    command.host_segments = &message;
    const int one = STDIN_FILENO;
    send_with_fds(&w, &command, &one, 1, err);
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
}

/* ---- lanes ---- */

/* A done of several that are awaited. */
typedef struct {
    uint64_t id;
    bool seen;
    sl_status status;
    uint64_t job_peak_bytes;
    char sha256[65];
} awaited;

/* Until all have come; events of jobs are counted into *events. */
static void await(worker *w, awaited *list, int count, int *events, sl_error *err)
{
    for (int left = count; left > 0;) {
        const Sluice__Worker__Event *event = next_event(w, err);
        SL_CHECK(event != NULL);
        if (event->kind_case != SLUICE__WORKER__EVENT__KIND_DONE) {
            *events += left == count; /* before the first done */
            continue;
        }
        for (int i = 0; i < count; i++)
            if (list[i].id == event->id) {
                SL_CHECK(!list[i].seen);
                list[i].seen = true;
                list[i].status = (sl_status)event->done->status;
                list[i].job_peak_bytes = event->done->job_peak_bytes;
                snprintf(list[i].sha256, sizeof list[i].sha256, "%s", event->done->output_sha256);
                left--;
            }
    }
}

SL_TEST(jobs_side_by_side_give_the_bytes_that_each_gives_alone)
{
    worker w = start_worker_with(2, err);
    char alone[2][65];
    job jobs[2];

    SL_CHECK(w.workspace_bytes == 6 * SL_CPU_WORKSPACE_PER_THREAD); /* 2 of the loader, 2 * 2 */
    load_all(&w, err);
    for (int i = 0; i < 2; i++) {
        make_short_job(&jobs[i], i ? "right" : "left", err);
        jobs[i].run.seed = (uint64_t)(40 + i);
        jobs[i].run.lane = i;
        run_and_check(&w, &jobs[i], alone[i], err);
        SL_CHECK(unlink(jobs[i].output) == 0);
    }
    SL_CHECK(strcmp(alone[0], alone[1]) != 0);
    for (int round = 0; round < 3; round++) {
        awaited done[2] = { { .id = send_run(&w, &jobs[0], err) },
                            { .id = send_run(&w, &jobs[1], err) } };
        int events = 0;
        await(&w, done, 2, &events, err);
        SL_CHECK(events > 7); /* both were under way */
        for (int i = 0; i < 2; i++) {
            SL_CHECK(done[i].status == SL_OK && strcmp(done[i].sha256, alone[i]) == 0);
            SL_CHECK(done[i].job_peak_bytes == jobs[i].plan.total_bytes + w.workspace_bytes);
            SL_CHECK(unlink(jobs[i].output) == 0);
        }
    }
    stop_worker(&w, err);
}

SL_TEST(components_come_and_go_beside_a_job)
{
    worker w = start_worker_with(1, err);
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL;
    job j;

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    SL_CHECK_OK(sl_host_image_create(&image, tier, "tiny", image_bytes(SL_COMPONENT_DIT), err));
    start_long_job(&w, &j, "long", err); /* denoises now */
    const uint64_t run_id = w.last_id;

    const Sluice__Worker__Done *done = unload(&w, SL_COMPONENT_DIT, err);
    SL_CHECK(done->status == SL_ERR_PRECONDITION && strstr(done->message, "in use"));
    SL_CHECK(unload(&w, SL_COMPONENT_VAE, err)->status == SL_ERR_PRECONDITION);
    done = unload(&w, SL_COMPONENT_TEXT_ENCODER, err);
    SL_CHECK(done->status == SL_OK);
    SL_CHECK(done->after_bytes == done->before_bytes - planned_bytes(SL_COMPONENT_TEXT_ENCODER));
    SL_CHECK(host_segments(&w, SL_COMPONENT_DIT, image, err)->status == SL_OK);
    SL_CHECK(host_fill(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    SL_CHECK(load_host(&w, SL_COMPONENT_DIT, SL_MODE_STREAMED, err)->status == SL_OK);
    SL_CHECK(trim(&w, err)->status == SL_OK);
    SL_CHECK(unload_mode(&w, SL_COMPONENT_DIT, SL_MODE_STREAMED, err)->status == SL_OK);
    cancel(&w, "long", err);
    SL_CHECK(wait_done(&w, run_id, err)->status == SL_ERR_CANCELLED);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(a_cancel_and_a_preempt_reach_their_lane_alone)
{
    worker w = start_worker_with(2, err);
    char alone[65];
    job left, right;

    load_all(&w, err);
    make_short_job(&left, "left", err);
    run_and_check(&w, &left, alone, err);
    SL_CHECK(unlink(left.output) == 0);
    make_job(&right, "right", 128, 17, 4, err);
    right.run.lane = 1;
    for (int round = 0; round < 2; round++) {
        awaited done[2] = { { .id = send_run(&w, &right, err) },
                            { .id = send_run(&w, &left, err) } };
        int events = 0;
        wait_event(&w, SLUICE__WORKER__EVENT__KIND_PHASE, err);
        if (round == 0)
            cancel(&w, "right", err);
        else
            preempt(&w, "right", err);
        await(&w, done, 2, &events, err);
        SL_CHECK(done[0].status == SL_ERR_CANCELLED && !exists(right.output));
        SL_CHECK(done[1].status == SL_OK && strcmp(done[1].sha256, alone) == 0);
        SL_CHECK(unlink(left.output) == 0);
    }

    make_long_job(&right, "right", err); /* the end of the stream, with a job in each lane */
    send_run(&w, &right, err);
    make_long_job(&left, "left", err);
    left.run.lane = 1;
    send_run(&w, &left, err);
    while (!exists(left.output) || !exists(right.output))
        SL_CHECK(next_event(&w, err) != NULL);
    sl_channel_destroy(w.channel);
    w.channel = NULL;
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 0);
    SL_CHECK(!exists(left.output) && !exists(right.output));
}

SL_TEST(a_lane_that_is_not_there_is_garbage)
{
    for (int lanes = 0; lanes < 2; lanes++) {
        worker w = start_worker_with(lanes, err);
        job j;

        make_job(&j, "lost", 32, 5, 1, err);
        j.run.lane = 1;
        send_run(&w, &j, err);
        SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
    }
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

/* ---- the model ---- */

static int make_model(void **state)
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

static int remove_model(void **state)
{
    char command[PATH_MAX + 16];

    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", work_dir);
    return system(command) == 0 ? 0 : -1;
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
        SL_RUN(host_images_survive_the_worker),
        SL_RUN(streamed_components_give_the_same_bytes),
        SL_RUN(host_memory_that_is_not_as_told_is_refused),
        SL_RUN(segments_without_their_descriptors_are_garbage),
        SL_RUN(jobs_side_by_side_give_the_bytes_that_each_gives_alone),
        SL_RUN(components_come_and_go_beside_a_job),
        SL_RUN(a_cancel_and_a_preempt_reach_their_lane_alone),
        SL_RUN(a_lane_that_is_not_there_is_garbage),
        SL_RUN(a_supervised_worker_may_die_and_be_shut_down),
    };

    sl_log_set_level((sl_log_level)(SL_LOG_ERROR + 1));
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
