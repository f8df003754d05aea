/* sluice-worker: owns one device, loads components, runs jobs. */
#include "service/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
    EXIT_USAGE = 2,
    EXIT_START = 3,    /* no device, no memory */
    EXIT_PROTOCOL = 4, /* the daemon sent what is no message */
    MAX_QUEUE = 64,
};

/* How long the job thread may take to end after a cancel before the process
 * goes without it. */
#define QUIT_DEADLINE_NS (800 * SL_NS_PER_MS)
#define SEND_DEADLINE_NS (10 * SL_NS_PER_S)

/* ---- telling the daemon ---- */

static size_t resident_set_bytes(void)
{
    char text[128];
    unsigned long total, rss = 0;
    const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    if (sscanf(text, "%lu %lu", &total, &rss) != 2)
        return 0;
    return rss * (size_t)sysconf(_SC_PAGESIZE);
}

void sl_worker_fill_memory(sl_worker *worker, Sluice__Worker__Memory *out, bool with_resident)
{
    sl_device_stats stats;

    sl_device_get_stats(worker->device, &stats);
    out->limit_bytes = stats.limit_bytes;
    out->mapped_bytes = stats.mapped_bytes;
    out->peak_bytes = stats.peak_mapped_bytes;
    out->workspace_bytes = worker->exec ? sl_exec_workspace_bytes(worker->exec) : 0;
    out->weights_bytes = atomic_load(&worker->weights_bytes);
    out->activations_bytes = atomic_load(&worker->activations_bytes);
    if (with_resident) {
        /* Both change while a job runs; the arena first, so that rss is not less. */
        out->rss_arena_bytes = sl_device_resident_bytes(worker->device);
        out->rss_bytes = resident_set_bytes();
    }
    out->changing = atomic_load(&worker->changing);
}

void sl_worker_send(sl_worker *worker, Sluice__Worker__Event *event, bool with_resident)
{
    Sluice__Worker__Memory memory = SLUICE__WORKER__MEMORY__INIT;
    sl_error error;

    const bool settles = event->kind_case == SLUICE__WORKER__EVENT__KIND_DONE ||
                         event->kind_case == SLUICE__WORKER__EVENT__KIND_PHASE;

    sl_worker_fill_memory(worker, &memory, with_resident);
    if (settles)
        memory.changing = false;
    event->memory = &memory;
    sl_status status = sl_channel_push(worker->channel, &event->base, &error);
    /* Not before: a pong in between must not show what the daemon does not
     * know of yet. */
    if (settles)
        atomic_store(&worker->changing, false);
    if (status == SL_OK)
        status = sl_channel_flush(worker->channel, SEND_DEADLINE_NS, &error);
    event->memory = NULL;
    if (status != SL_OK && sl_debug("worker"))
        sl_log(SL_LOG_DEBUG, "worker_send", "message=%s", error.message);
}

static void send_hello(sl_worker *worker)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Hello hello = SLUICE__WORKER__HELLO__INIT;

    hello.pid = getpid();
    hello.threads = sl_exec_thread_count(worker->exec);
    event.kind_case = SLUICE__WORKER__EVENT__KIND_HELLO;
    event.hello = &hello;
    sl_worker_send(worker, &event, true);
}

static void send_pong(sl_worker *worker, uint64_t id)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Pong pong = SLUICE__WORKER__PONG__INIT;

    event.id = id;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PONG;
    event.pong = &pong;
    sl_worker_send(worker, &event, true);
}

/* ---- the job thread ---- */

/* Waits for a command; NULL: quit.  The cancel word belongs to it from here on. */
static queued *next_command(sl_worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    while (!worker->queue && !worker->quit)
        pthread_cond_wait(&worker->arrived, &worker->lock);
    queued *q = worker->quit ? NULL : worker->queue;
    if (q) {
        worker->queue = q->next;
        worker->queue_length--;
        if (q->command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
            worker->running_job = q->command->run->job_id;
        atomic_store(&worker->cancel, q->cancelled);
    }
    pthread_mutex_unlock(&worker->lock);
    return q;
}

static void free_queued(queued *q)
{
    sl_arena_destroy(q->arena); /* q itself lives there */
}

static sl_status do_command(sl_worker *worker, const Sluice__Worker__Command *command,
                            sl_worker_run_result *result, Sluice__Worker__Done *done, sl_error *err)
{
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
        return sl_worker_run(worker, command->run, result, done, err);
    if (command->kind_case == SLUICE__WORKER__COMMAND__KIND_LOAD)
        return sl_worker_load(worker, command->load, done, err);
    return sl_worker_unload(worker, command->unload, err);
}

static void perform(sl_worker *worker, const queued *q)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    sl_worker_run_result result;
    sl_device_stats stats;
    sl_error error = { .status = SL_OK };
    const int64_t start_ns = sl_clock_now_ns();
    sl_status status;

    atomic_store(&worker->changing, true); /* until the event that tells of it */
    sl_device_reset_peak(worker->device);
    sl_device_get_stats(worker->device, &stats);
    done.before_bytes = stats.mapped_bytes;
    if (q->cancelled)
        status = sl_fail(&error, SL_ERR_CANCELLED, "cancelled before it started");
    else
        status = do_command(worker, q->command, &result, &done, &error);
    sl_device_get_stats(worker->device, &stats);

    done.status = (int32_t)status;
    done.message = status == SL_OK ? (char *)"" : error.message;
    done.after_bytes = stats.mapped_bytes;
    done.peak_bytes = stats.peak_mapped_bytes;
    done.duration_ns = sl_clock_now_ns() - start_ns;
    event.id = q->command->id;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_DONE;
    event.done = &done;
    pthread_mutex_lock(&worker->lock);
    worker->running_job = NULL;
    pthread_mutex_unlock(&worker->lock);
    sl_worker_send(worker, &event, true);
}

static void *job_thread(void *arg)
{
    sl_worker *worker = arg;
    queued *q;

    while ((q = next_command(worker)) != NULL) {
        perform(worker, q);
        free_queued(q);
    }
    pthread_mutex_lock(&worker->lock);
    worker->ended = true;
    pthread_cond_broadcast(&worker->arrived);
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

/* ---- the main thread ---- */

/* Takes the arena. */
static sl_status enqueue(sl_worker *worker, sl_arena *arena, const Sluice__Worker__Command *command,
                         sl_error *err)
{
    queued *q = sl_arena_alloc(arena, sizeof *q);
    sl_status status = SL_OK;

    if (!q) {
        sl_arena_destroy(arena);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a command");
    }
    q->arena = arena;
    q->command = command;
    pthread_mutex_lock(&worker->lock);
    if (worker->queue_length == MAX_QUEUE) {
        status =
            sl_fail(err, SL_ERR_DATA, "the daemon sent more than %d commands at once", MAX_QUEUE);
    } else {
        queued **end = &worker->queue;
        while (*end)
            end = &(*end)->next;
        *end = q;
        worker->queue_length++;
        pthread_cond_signal(&worker->arrived);
    }
    pthread_mutex_unlock(&worker->lock);
    if (status != SL_OK)
        free_queued(q);
    return status;
}

static void cancel_job(sl_worker *worker, const char *job_id)
{
    pthread_mutex_lock(&worker->lock);
    if (worker->running_job && strcmp(worker->running_job, job_id) == 0)
        atomic_store(&worker->cancel, 1);
    for (queued *q = worker->queue; q; q = q->next)
        if (q->command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN &&
            strcmp(q->command->run->job_id, job_id) == 0)
            q->cancelled = true;
    pthread_mutex_unlock(&worker->lock);
}

/* Takes the arena.  *quit: the daemon wants no more. */
static sl_status handle(sl_worker *worker, sl_arena *arena, const Sluice__Worker__Command *command,
                        bool *quit, sl_error *err)
{
    switch (command->kind_case) {
    case SLUICE__WORKER__COMMAND__KIND_LOAD:
    case SLUICE__WORKER__COMMAND__KIND_UNLOAD:
    case SLUICE__WORKER__COMMAND__KIND_RUN:
        return enqueue(worker, arena, command, err);
    case SLUICE__WORKER__COMMAND__KIND_CANCEL:
        cancel_job(worker, command->cancel->job_id);
        break;
    case SLUICE__WORKER__COMMAND__KIND_PING:
        send_pong(worker, command->id);
        break;
    case SLUICE__WORKER__COMMAND__KIND_SHUTDOWN:
        *quit = true;
        break;
    default:
        sl_arena_destroy(arena);
        return sl_fail(err, SL_ERR_DATA, "the daemon sent a command of no known kind");
    }
    sl_arena_destroy(arena);
    return SL_OK;
}

static sl_status handle_next(sl_worker *worker, bool *more, bool *quit, sl_error *err)
{
    ProtobufCMessage *message = NULL;
    sl_arena *arena = NULL;
    sl_status status = sl_arena_create(&arena, SL_CHANNEL_MAX_UNPACKED, err);

    if (status == SL_OK)
        status = sl_channel_pop(worker->channel, &sluice__worker__command__descriptor, arena,
                                &message, err);
    *more = status == SL_OK && message;
    if (!*more) {
        sl_arena_destroy(arena);
        return status;
    }
    return handle(worker, arena, (const Sluice__Worker__Command *)message, quit, err);
}

/* Until Shutdown, the end of the stream (both SL_OK), or what is no command. */
static sl_status serve(sl_worker *worker, sl_error *err)
{
    bool quit = false, closed = false;

    while (!quit && !closed) {
        struct pollfd poll_fd = { .fd = sl_channel_fd(worker->channel), .events = POLLIN };
        sl_status status;
        bool more;

        if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
            return sl_fail_errno(err, "could not wait for the daemon");
        closed = sl_channel_fill(worker->channel, err) != SL_OK;
        do
            status = handle_next(worker, &more, &quit, err);
        while (status == SL_OK && more && !quit);
        if (status != SL_OK)
            return status;
    }
    return SL_OK;
}

/* Cancels what runs, drops what waits; false: the job thread has not ended. */
static bool stop_jobs(sl_worker *worker)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(QUIT_DEADLINE_NS);
    const struct timespec until = { .tv_sec = deadline_ns / SL_NS_PER_S,
                                    .tv_nsec = deadline_ns % SL_NS_PER_S };

    pthread_mutex_lock(&worker->lock);
    worker->quit = true;
    atomic_store(&worker->cancel, 1);
    pthread_cond_broadcast(&worker->arrived);
    while (!worker->ended &&
           pthread_cond_timedwait(&worker->arrived, &worker->lock, &until) != ETIMEDOUT)
        ;
    const bool ended = worker->ended;
    /* Without the thread's help: whatever it still writes has no name any more. */
    if (!ended && worker->partial)
        unlink(worker->partial);
    pthread_mutex_unlock(&worker->lock);
    return ended;
}

/* ---- start ---- */

typedef struct {
    const char *device;
    int fd, threads;
} options;

static bool parse_int(const char *text, int least, int most, int *out)
{
    char *end;

    errno = 0;
    const long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        return false;
    *out = (int)value;
    return true;
}

static bool parse_options(int argc, char **argv, options *out)
{
    *out = (options){ .fd = -1 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--device") == 0)
            out->device = argv[i + 1];
        else if (strcmp(argv[i], "--fd") == 0 && parse_int(argv[i + 1], 3, 1 << 20, &out->fd))
            continue;
        else if (strcmp(argv[i], "--threads") != 0 ||
                 !parse_int(argv[i + 1], 0, 1024, &out->threads))
            return false;
    }
    return argc % 2 == 1 && out->device && out->fd >= 0;
}

/* The daemon decides when the worker ends; should it die without closing the
 * channel, the kernel does.  Under memory pressure the worker goes first. */
static void settle_in(void)
{
    const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (write(fd, "500", 3) != 3)
            sl_log(SL_LOG_DEBUG, "oom_score_adj", "errno=%d", errno);
        close(fd);
    }
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static sl_status start(sl_worker *worker, const options *o, pthread_t *thread, sl_error *err)
{
    sl_device_spec spec;
    sl_status status = sl_channel_create(&worker->channel, o->fd, "daemon", err);

    if (status == SL_OK)
        status = sl_device_spec_parse(o->device, &spec, err);
    if (status == SL_OK)
        status = sl_device_create(&worker->device, &spec, err);
    if (status == SL_OK)
        status =
            sl_exec_create_cpu(&worker->exec, worker->device, o->threads, &worker->cancel, err);
    if (status == SL_OK && (errno = pthread_create(thread, NULL, job_thread, worker)) != 0)
        status = sl_fail_errno(err, "could not start the job thread");
    return status;
}

static void init_worker(sl_worker *worker)
{
    pthread_condattr_t attributes;

    memset(worker, 0, sizeof *worker);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&worker->arrived, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void fini_worker(sl_worker *worker)
{
    while (worker->queue) {
        queued *next = worker->queue->next;
        free_queued(worker->queue);
        worker->queue = next;
    }
    sl_worker_unload_all(worker);
    sl_exec_destroy(worker->exec);
    sl_device_destroy(worker->device);
    sl_channel_destroy(worker->channel);
    pthread_cond_destroy(&worker->arrived);
    pthread_mutex_destroy(&worker->lock);
}

static void log_failure(const char *event, const sl_error *error)
{
    char quoted[2 * SL_ERROR_MESSAGE_BYTES];

    sl_log(SL_LOG_ERROR, event, "pid=%d message=%s", (int)getpid(),
           sl_log_quote(quoted, sizeof quoted, error->message));
}

int main(int argc, char **argv)
{
    static sl_worker worker;
    sl_error error;
    options o;
    pthread_t thread;

    if (!parse_options(argc, argv, &o)) {
        fprintf(stderr, "usage: sluice-worker --device SPEC --fd N [--threads N]\n"
                        "started by sluiced; not for use by hand\n");
        return EXIT_USAGE;
    }
    settle_in();
    init_worker(&worker);
    if (start(&worker, &o, &thread, &error) != SL_OK) {
        log_failure("worker_start_failed", &error);
        fini_worker(&worker);
        return EXIT_START;
    }
    send_hello(&worker);
    const sl_status status = serve(&worker, &error);
    if (status != SL_OK)
        log_failure("worker_protocol", &error);
    if (!stop_jobs(&worker))
        _exit(status == SL_OK ? EXIT_SUCCESS : EXIT_PROTOCOL);
    pthread_join(thread, NULL);
    fini_worker(&worker);
    return status == SL_OK ? EXIT_SUCCESS : EXIT_PROTOCOL;
}
