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
};

/* How the canary went: a time, or a problem. */
typedef struct {
    int64_t duration_ns;
    sl_error error;
} canary_result;

static void send_hello(sl_worker *worker, canary_result *canary)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Hello hello = SLUICE__WORKER__HELLO__INIT;

    hello.pid = getpid();
    hello.device_uuid = (char *)(uintptr_t)sl_device_uuid(worker->device);
    hello.threads = sl_exec_thread_count(worker->lanes[worker->job_lane_first].exec);
    hello.lanes = worker->lane_count - worker->job_lane_first;
    hello.canary_ns = canary->duration_ns;
    hello.canary_problem = canary->error.message;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_HELLO;
    event.hello = &hello;
    sl_worker_send(worker, NULL, &event, true);
}

static void send_pong(sl_worker *worker, uint64_t id)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Pong pong = SLUICE__WORKER__PONG__INIT;

    event.id = id;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PONG;
    event.pong = &pong;
    sl_worker_send(worker, NULL, &event, true);
}

/* ---- the main thread ---- */

/* Takes the arena.  *quit: the daemon wants no more. */
static sl_status handle(sl_worker *worker, sl_arena *arena, const Sluice__Worker__Command *command,
                        bool *quit, sl_error *err)
{
    switch (command->kind_case) {
    case SLUICE__WORKER__COMMAND__KIND_LOAD:
    case SLUICE__WORKER__COMMAND__KIND_UNLOAD:
    case SLUICE__WORKER__COMMAND__KIND_RUN:
    case SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS:
    case SLUICE__WORKER__COMMAND__KIND_HOST_FILL:
    case SLUICE__WORKER__COMMAND__KIND_HOST_FORGET:
    case SLUICE__WORKER__COMMAND__KIND_TRIM:
        return sl_worker_enqueue(worker, arena, command, err);
    case SLUICE__WORKER__COMMAND__KIND_CANCEL:
        sl_worker_cancel(worker, command->cancel->job_id);
        break;
    case SLUICE__WORKER__COMMAND__KIND_PREEMPT:
        sl_worker_preempt(worker, command->preempt->job_id);
        break;
    case SLUICE__WORKER__COMMAND__KIND_GO:
        sl_worker_go(worker, command->go);
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

/* ---- start ---- */

typedef struct {
    const char *device;
    int fd, threads, lanes;
    size_t host_bytes;
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

static bool parse_size(const char *text, size_t *out)
{
    char *end;

    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        return false;
    *out = (size_t)value;
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
        else if (strcmp(argv[i], "--host-bytes") == 0 &&
                 parse_size(argv[i + 1], &out->host_bytes))
            continue;
        else if (strcmp(argv[i], "--lanes") == 0 &&
                 parse_int(argv[i + 1], 1, SL_WORKER_MAX_LANES, &out->lanes))
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
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is a failed write */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* One that comes back wrong is for the daemon to judge; a device that is gone is not. */
static sl_status run_canary(sl_worker *worker, canary_result *out, sl_error *err)
{
    char quoted[2 * SL_ERROR_MESSAGE_BYTES];
    const sl_status status = sl_worker_run_canary(worker, &out->duration_ns, &out->error);

    if (status == SL_ERR_DEVICE)
        return sl_fail(err, status, "%s", out->error.message);
    if (status != SL_OK)
        sl_log(SL_LOG_ERROR, "canary_wrong", "pid=%d message=%s", (int)getpid(),
               sl_log_quote(quoted, sizeof quoted, out->error.message));
    return SL_OK;
}

static sl_status start(sl_worker *worker, const options *o, canary_result *canary, sl_error *err)
{
    sl_device_spec spec;
    sl_status status = sl_channel_create(&worker->channel, o->fd, "daemon", err);

    worker->card.host_bytes = o->host_bytes;

    if (status == SL_OK)
        status = sl_device_spec_parse(o->device, &spec, err);
    if (status == SL_OK)
        status = sl_worker_open_device(worker, &spec, err);
    if (status == SL_OK)
        status = sl_worker_init_lanes(worker, o->lanes, o->threads, err);
    if (status == SL_OK)
        status = sl_worker_settle_card(worker, err);
    if (status == SL_OK)
        status = run_canary(worker, canary, err);
    if (status == SL_OK)
        status = sl_worker_start_lanes(worker, err);
    return status;
}

static void init_worker(sl_worker *worker)
{
    pthread_condattr_t attributes;

    memset(worker, 0, sizeof *worker);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_mutex_init(&worker->telling, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&worker->arrived, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void fini_worker(sl_worker *worker)
{
    sl_worker_unload_all(worker);
    sl_worker_forget_all(worker);
    sl_worker_fini_lanes(worker);
    sl_device_destroy(worker->device);
    sl_worker_close_card(worker);
    sl_channel_destroy(worker->channel);
    pthread_cond_destroy(&worker->arrived);
    pthread_mutex_destroy(&worker->lock);
    pthread_mutex_destroy(&worker->telling);
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
    canary_result canary = { .error = { .status = SL_OK } };
    sl_error error;
    options o;

    if (!parse_options(argc, argv, &o)) {
        fprintf(stderr, "usage: sluice-worker --device SPEC --fd N [--threads N] [--lanes N]"
                        " [--host-bytes N]\n"
                        "started by sluiced; not for use by hand\n");
        return EXIT_USAGE;
    }
    settle_in();
    init_worker(&worker);
    if (start(&worker, &o, &canary, &error) != SL_OK) {
        log_failure("worker_start_failed", &error);
        if (!sl_worker_stop_lanes(&worker))
            _exit(EXIT_START);
        fini_worker(&worker);
        return EXIT_START;
    }
    send_hello(&worker, &canary);
    const sl_status status = serve(&worker, &error);
    if (status != SL_OK)
        log_failure("worker_protocol", &error);
    if (!sl_worker_stop_lanes(&worker))
        _exit(status == SL_OK ? EXIT_SUCCESS : EXIT_PROTOCOL);
    fini_worker(&worker);
    return status == SL_OK ? EXIT_SUCCESS : EXIT_PROTOCOL;
}
